/**
 * The pad's context menu: equal weights, a locked weight, presets that the workflow keeps, the remembered images, and whether a
 * run starts when a drag ends.
 *
 * @typedef {{ name: string, numbers: Record<string, number> }} Preset
 *
 * @typedef {object} MenuActions
 * @property {() => void} reset
 * @property {{ weight: string, name: string }[]} adapters those on the pad
 * @property {() => Record<string, number>} read the numbers of now
 * @property {(numbers: Record<string, number>) => void} write
 */

import { app } from '../../../scripts/app.js'
import { openEntries } from './context_menu.js'
import { keyOfNode } from './node_ids.js'
import { forgetAll, rememberedOf } from './remembered.js'
import { changing } from './undo.js'
import { say } from './words.js'

const PRESETS = 'diffusion_blend_presets'
const LOCKED = 'diffusion_blend_locked'
const RUNS = 'diffusion_blend_run_on_release'

/** @typedef {import('./context_menu.js').Entry} Entry */
/** @type {((node: any) => Entry[])[]} */
const makers = []

/** @type {(maker: (node: any) => Entry[]) => void} Other modules add entries for a Preference Weights. */
export const addEntries = (maker) => void makers.push(maker)

/** @type {(value: any) => boolean} A workflow can hold anything. */
const isPreset = (value) => typeof value?.name === 'string' && value.numbers !== null && typeof value.numbers === 'object'

/** @type {(node: any) => Preset[]} */
const presetsOf = (node) => (Array.isArray(node.properties?.[PRESETS]) ? node.properties[PRESETS].filter(isPreset) : [])

/** @type {(node: any) => boolean} Whether a run starts when the pointer lets go. */
export const runsOnRelease = (node) => node.properties?.[RUNS] === true

/** @type {(node: any) => string} The input's name of the weight that stays as it is when the dot is dragged, or empty. */
export const lockedWeight = (node) => String(node.properties?.[LOCKED] ?? '')

/** @type {(node: any, event: MouseEvent, actions: MenuActions) => void} */
export function openMenu(node, event, actions) {
  const presets = presetsOf(node)
  const entries = [
    { content: say('reset'), callback: actions.reset },
    ...actions.adapters.map(({ weight, name }) => lockEntry(node, weight, name)),
    { content: say('savePreset'), callback: () => void savePreset(node, actions.read()) },
    ...presets.map(({ name, numbers }) => ({
      content: say('recall', { name }),
      callback: () => actions.write(numbers)
    })),
    ...presets.map(({ name }) => ({ content: say('forget', { name }), callback: () => forgetPreset(node, name) })),
    {
      content: `${runsOnRelease(node) ? '\u2713 ' : ''}${say('runOnRelease')}`,
      callback: () => setProperty(node, RUNS, !runsOnRelease(node))
    }
  ]
  const images = rememberedOf(keyOfNode(node)).length
  if (images) entries.push({ content: say('forgetImages', { number: images }), callback: () => forgetAll(keyOfNode(node)) })
  entries.push(...makers.flatMap((make) => make(node)))
  openEntries(entries, event)
}

/**
 * Put the weights of the presets, and the lock, in another order, as the adapters are.
 *
 * @param {any} node
 * @param {(number | null)[]} order for every slot, the slot that comes there; null: an empty one
 */
export function reorderKept(node, order) {
  const presets = presetsOf(node).map(({ name, numbers }) => {
    const weights = order.map((from, to) => [weightName(to), from === null ? 0 : (numbers[weightName(from)] ?? 0)])
    return { name, numbers: { ...numbers, ...Object.fromEntries(weights) } }
  })
  if (presets.length) keep(node, PRESETS, presets)
  const locked = lockedWeight(node)
  if (locked) keep(node, LOCKED, order.flatMap((from, to) => (from !== null && weightName(from) === locked ? [weightName(to)] : []))[0] ?? '')
}

/** @type {(index: number) => string} */
const weightName = (index) => `weight_${index + 1}`

/** @type {(node: any, weight: string, name: string) => { content: string, callback: () => void }} */
function lockEntry(node, weight, name) {
  const isLocked = lockedWeight(node) === weight
  return {
    content: `${isLocked ? '\u2713 ' : ''}${say('lock', { name })}`,
    callback: () => setProperty(node, LOCKED, isLocked ? '' : weight)
  }
}

/** @type {(node: any, name: string, value: unknown) => void} */
function keep(node, name, value) {
  node.setProperty ? node.setProperty(name, value) : (node.properties[name] = value)
}

/** @type {(node: any, name: string, value: unknown) => void} A property is saved with the workflow, and undone with it. */
const setProperty = (node, name, value) => changing(() => keep(node, name, value))

/** @type {(node: any, numbers: Record<string, number>) => Promise<void>} A preset of the same name is replaced. */
async function savePreset(node, numbers) {
  const suggested = say('preset', { number: presetsOf(node).length + 1 })
  const name = await app.extensionManager.dialog.prompt({
    title: say('savePreset'),
    message: say('presetName'),
    defaultValue: suggested
  })
  if (!name) return
  const others = presetsOf(node).filter((preset) => preset.name !== name)
  setProperty(node, PRESETS, [...others, { name, numbers }])
}

/** @type {(node: any, name: string) => void} */
const forgetPreset = (node, name) =>
  setProperty(
    node,
    PRESETS,
    presetsOf(node).filter((preset) => preset.name !== name)
  )
