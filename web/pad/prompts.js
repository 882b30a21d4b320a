/**
 * What the prompt of a run says: which nodes blend by a preference, and which adapters its weights belonged to.
 *
 * @typedef {{ class_type: string, inputs: Record<string, any> }} Item
 * @typedef {Record<string, Item>} Prompt
 */

import { LOADER, NONE, isCross, shortName } from './adapters.js'
import { slotsOfNode } from './slot_rule.js'

export const PAD = 'PreferenceWeights'
/** Nodes that make several preferences at once. */
const LISTS = ['PreferenceSweep', 'PreferenceDuel']
const SLOTS = 8
/** Outputs that show no image of a preference, by class; true: all of them. */
/** @type {Record<string, true | number[]>} */
const FIGURES = { PreferenceGrid: true, BlendProbe: [0, 1, 2] }

/** @type {(value: any) => boolean} */
export const isLink = (value) => Array.isArray(value) && value.length === 2 && typeof value[0] === 'string'

/** @type {(item: Item) => string[]} The nodes that its inputs come from. */
const sourcesOf = ({ inputs }) => Object.values(inputs).flatMap((value) => (isLink(value) ? [value[0]] : []))

/** @type {(prompt: Prompt, start: string) => Set<string>} A node and all that its images go through. */
export function downstream(prompt, start) {
  const found = new Set([start])
  for (const source of found) {
    const figures = FIGURES[prompt[source].class_type]
    for (const [id, { inputs }] of Object.entries(prompt)) {
      const follows = Object.values(inputs).some(
        (value) => isLink(value) && value[0] === source && figures !== true && !figures?.includes(value[1])
      )
      if (follows) found.add(id)
    }
  }
  return found
}

/** @type {(prompt: Prompt, end: string) => Set<string>} A node and all before it. */
export function upstream(prompt, end) {
  const found = new Set([end])
  for (const id of found) for (const source of prompt[id] ? sourcesOf(prompt[id]) : []) if (prompt[source]) found.add(source)
  return found
}

/** @type {(prompt: Prompt, pad: string) => string[]} The pad, and the nodes that make preferences of its adapters. */
export function startsOf(prompt, pad) {
  const adapters = JSON.stringify(prompt[pad].inputs.reward_loras)
  const lists = Object.keys(prompt).filter(
    (id) => LISTS.includes(prompt[id].class_type) && JSON.stringify(prompt[id].inputs.reward_loras) === adapters
  )
  return [pad, ...(adapters ? lists : [])]
}

/**
 * @param {Prompt} prompt
 * @param {string[]} starts nodes that give preferences
 * @returns {{ blends: string[], through: Set<string> }} the nodes that blend by them, the nearest first, and all on the way there
 */
export function blendsOf(prompt, starts) {
  const through = new Set(starts)
  /** @type {Set<string>} */
  const blends = new Set()
  for (const source of through) {
    for (const [id, item] of Object.entries(prompt)) {
      if (!sourcesOf(item).includes(source)) continue
      const blending = isLink(item.inputs.reward_loras) && ![PAD, ...LISTS].includes(item.class_type)
      if (blending) blends.add(id)
      else through.add(id)
    }
  }
  return { blends: [...blends], through }
}

/** @type {(prompt: Prompt, nodes: Iterable<string>) => boolean} Whether one of them makes several preferences at once. */
export const makesLists = (prompt, nodes) => [...nodes].some((id) => LISTS.includes(prompt[id].class_type))

/** @type {(prompt: Prompt, pad: string) => number[]} */
export const numbersOf = (prompt, pad) =>
  Array.from({ length: SLOTS }, (_, i) => Number(prompt[pad].inputs[`weight_${i + 1}`] ?? 0))

/** @type {(prompt: Prompt, pad: string) => string[]} The Preference Weights of the pad's chain, the first one first. */
export function chainOf(prompt, pad) {
  const chain = [pad]
  const isNew = (/** @type {string | undefined} */ id) => id && prompt[id]?.class_type === PAD && !chain.includes(id)
  const before = () => prompt[chain[0]].inputs.preference?.[0]
  const after = () =>
    Object.keys(prompt).find((id) => isNew(id) && prompt[id].inputs.preference?.[0] === chain[chain.length - 1])
  for (let id = before(); isNew(id); id = before()) chain.unshift(id)
  for (let id = after(); id; id = after()) chain.push(id)
  return chain
}

/**
 * @param {Prompt} prompt
 * @param {string} pad
 * @param {string | undefined} blend the node that blends by it
 * @returns {string[] | null} the adapter of each of its weights, empty without one; null where the prompt does not tell
 */
export function namesOf(prompt, pad, blend) {
  const loaders = loadersOf(prompt, prompt[blend ?? pad].inputs.reward_loras)
  if (!loaders) return null
  const chain = chainOf(prompt, pad)
  const links = chain.map((id) => loadersOf(prompt, prompt[id].inputs.reward_loras))
  const sizes = chain.map(() => SLOTS)
  return slotsOfNode(chain.indexOf(pad), sizes, loaders, links).slots.map(({ name }) => name)
}

/** @type {(prompt: Prompt, link: any) => import('./slot_rule.js').RuleSlot[][] | null} The slots of a chain of loaders. */
function loadersOf(prompt, link) {
  const loaders = []
  for (let at = link; at !== undefined; ) {
    const item = isLink(at) ? prompt[at[0]] : null
    const slots = item?.class_type === LOADER ? slotsOf(item) : null
    if (!item || !slots || loaders.length > Object.keys(prompt).length) return null // only the run knows them
    loaders.unshift(slots)
    at = item.inputs.reward_loras
  }
  return loaders.length ? loaders : null
}

/** @type {(item: Item) => import('./slot_rule.js').RuleSlot[] | null} */
function slotsOf({ inputs }) {
  const slots = Array.from({ length: SLOTS }, (_, i) => [inputs[`lora_${i + 1}`] ?? NONE, inputs[`on_${i + 1}`] ?? true])
  if (slots.some(([file, on]) => typeof file !== 'string' || typeof on !== 'boolean')) return null
  return slots.map(([file, on]) => {
    const takesPart = on && file !== NONE && !isCross(file)
    return { name: takesPart ? shortName(file) : '', file: file !== NONE }
  })
}
