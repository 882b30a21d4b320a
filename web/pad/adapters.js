/**
 * What the graph says about a Preference Weights node: which adapters its weights belong to, and which of its numbers come
 * from a link or from a subgraph's own node. Only reads the graph. The rule of `weight_places` in blending/slots.py.
 *
 * @typedef {object} Slot
 * @property {string} name of the adapter, or of the empty slot
 * @property {boolean} used holds an adapter that is switched on
 * @property {boolean} [unknown] the graph does not tell which
 * @property {boolean} [cross] holds a cross adapter
 *
 * @typedef {object} Found
 * @property {Slot[] | null} slots of this node's weights; null when the graph does not tell
 * @property {string} muted the title of a muted loader, or empty
 *
 * @typedef {object} Numbered
 * @property {number | null} value null when only the run can tell
 * @property {boolean} linked a node's output gives it
 * @property {any} widget the one that holds it
 * @property {any} owner the widget's node
 */

import { origin, sourceOf, targetsOf } from './links.js'

export const LOADER = 'LoadRewardLoRAs'
const PREFERENCE = 'PreferenceWeights'
export const NONE = 'None'

/** The ending that `diffusion-blend bake --method cross` gives its files. */
const CROSS = /\.cross\.safetensors$/i

/** @type {(file: unknown) => boolean} Whether a file holds a cross adapter, by its name. */
export const isCross = (file) => typeof file === 'string' && CROSS.test(file)
const LONGEST_CHAIN = 100 // a graph with a loop must not hang the page
const [NEVER, BYPASS] = [2, 4] // LiteGraph's node modes

/** @type {(node: any, name: string) => any} The node's widget of a name. */
export const widgetOf = (node, name) => node?.widgets?.find((/** @type {any} */ widget) => widget.name === name)

/** @type {WeakMap<object, { count: number, lists: Record<string, string[]> }>} By node, because pads ask several times a second. */
const lists = new WeakMap()

/** @type {(node: any, prefix: string) => string[]} The names of its numbered inputs, such as weight_1 ... weight_4. */
export function numbered(node, prefix) {
  const widgets = node.widgets ?? []
  let known = lists.get(node)
  if (known?.count !== widgets.length) lists.set(node, (known = { count: widgets.length, lists: {} }))
  return (known.lists[prefix] ??= widgets
    .map((/** @type {any} */ widget) => widget.name)
    .filter((/** @type {string} */ name) => new RegExp(`^${prefix}_\\d+$`).test(name))
    .sort((/** @type {string} */ a, /** @type {string} */ b) => Number(a.split('_')[1]) - Number(b.split('_')[1])))
}

/** @type {(node: any) => Found} */
export function slotsOf(node) {
  const last = notBypassed(origin(node, 'reward_loras') ?? loaderBeyond(node))
  const loaders = last ? chainOf(last, LOADER, 'reward_loras') : null
  const before = loaders?.length ? origin(loaders[0], 'reward_loras') : null
  if (before && before.comfyClass !== LOADER) return { slots: null, muted: '' } // the run alone knows its adapters
  if (!loaders?.length) return { slots: null, muted: '' }
  if (last.mode === NEVER) return { slots: null, muted: last.title }
  return { slots: ownSlots(node, loaders), muted: '' }
}

/** @type {(loader: any) => any} The loader whose adapters a run gets from here: a bypassed one hands on what comes before. */
function notBypassed(loader) {
  let at = loader
  for (let step = 0; at?.comfyClass === LOADER && at.mode === BYPASS && step < LONGEST_CHAIN; step++) at = origin(at, 'reward_loras')
  return at
}

/** @type {(node: any, loaders: any[]) => Slot[]} */
function ownSlots(node, loaders) {
  const before = chainOf(node, PREFERENCE, 'preference')
  const place = before.indexOf(node)
  const nodes = before.length + followers(node)
  if (nodes >= loaders.length) return place < loaders.length ? loaderSlots(loaders[place]) : []
  const joined = loaders.flatMap((loader) => withoutEmptyEnd(loaderSlots(loader)))
  const start = before.slice(0, place).reduce((sum, each) => sum + numbered(each, 'weight').length, 0)
  return joined.slice(start, start + numbered(node, 'weight').length)
}

/** @type {(loader: any) => any[]} The Preference Weights whose weight i belongs to this loader's slot i. */
export function ownersOfWeights(loader) {
  const mine = JSON.stringify(withoutEmptyEnd(loaderSlots(loader)))
  return targetsOf(loader, 0)
    .map(({ node }) => node)
    .filter((node) => node.comfyClass === PREFERENCE && mine === JSON.stringify(withoutEmptyEnd(slotsOf(node).slots ?? [])))
}

/** @type {(last: any, type: string, input: string) => any[]} A node and those chained before it, the first one first. */
function chainOf(last, type, input) {
  const chain = []
  for (let node = last; node && chain.length < LONGEST_CHAIN; node = origin(node, input)) {
    if (node.comfyClass !== type || (node.mode === NEVER && node !== last)) break // a run does without muted nodes
    if (node.mode !== BYPASS || node === last) chain.unshift(node)
  }
  return chain.filter((node) => type !== LOADER || node.mode !== BYPASS)
}

/** @type {(node: any) => number} How many Preference Weights come after this one in its chain. */
function followers(node) {
  let count = 0
  for (let at = node; at && count < LONGEST_CHAIN; ) {
    const next = targetsOf(at, 0).find(
      (end) => end.node.comfyClass === PREFERENCE && end.node.inputs[end.index]?.name === 'preference'
    )
    if (next?.node.mode === NEVER) break
    if (next && next.node.mode !== BYPASS) count += 1
    at = next?.node
  }
  return count
}

/** @type {(loader: any) => Slot[]} */
function loaderSlots(loader) {
  return numbered(loader, 'lora').map((name) => {
    const valueOf = (/** @type {string} */ input) => (holderOf(loader, input)?.widget ?? widgetOf(loader, input))?.value
    const file = valueOf(name)
    const chosen = typeof file === 'string' && file !== NONE
    const on = valueOf(name.replace('lora', 'on')) !== false
    // A cross adapter has no weight of its own: its gate follows from the weights of its two adapters. Its slot counts as empty.
    if (isCross(file)) return { name: '', used: false, cross: true }
    return { name: chosen ? shortName(file) : '', used: chosen && on }
  })
}

/** @type {(slots: Slot[]) => Slot[]} The slots up to the last file, of which a run knows. */
const withoutEmptyEnd = (slots) => slots.slice(0, slots.findLastIndex(({ name, cross }) => name || cross) + 1)

/** @type {(slots: Slot[]) => Slot[]} The slots up to the last adapter that can have a weight. */
export const upToLastAdapter = (slots) => slots.slice(0, slots.findLastIndex(({ name }) => name) + 1)

/** @type {(file: string) => string} A file's name without folders and ending. */
export const shortName = (file) =>
  file
    .split(/[\\/]/)
    .pop()
    ?.replace(/\.safetensors$/i, '') ?? file

/** @type {(node: any) => any} The loader of a node that this preference goes to. */
function loaderBeyond(node) {
  for (const end of targetsOf(node, 0)) {
    const loader = origin(end.node, 'reward_loras')
    if (loader) return loader
    const further = end.node.outputs?.some((/** @type {any} */ output) => output.type === 'PREFERENCE')
    const beyond = further && end.node !== node ? targetsOf(end.node, 0) : []
    for (const { node: user } of beyond) {
      const found = origin(user, 'reward_loras')
      if (found) return found
    }
  }
  return null
}

/** @type {(node: any, name: string) => number} */
const inputIndex = (node, name) => node.inputs?.findIndex((/** @type {any} */ input) => input.widget?.name === name) ?? -1

/**
 * The widget whose value a run uses for an input: the node's own, or the one on a subgraph's own node.
 *
 * @param {any} node
 * @param {string} name the input's name
 * @returns {{ widget: any, owner: any } | null} null where the output of a node gives the value
 */
export function holderOf(node, name) {
  const index = inputIndex(node, name)
  if (node.inputs?.[index]?.link == null) return { widget: widgetOf(node, name), owner: node }
  const source = sourceOf(node, index)
  if (!source?.input) return null
  const promoted = widgetOf(source.node, source.input.widget?.name ?? source.input.name)
  return promoted ? { widget: promoted, owner: source.node } : null
}

/**
 * A number of the node as a run would see it.
 *
 * @param {any} node
 * @param {string} name the input's name
 * @returns {Numbered}
 */
export function numberOf(node, name) {
  const holder = holderOf(node, name)
  if (holder) return { value: Number(holder.widget?.value), linked: false, ...holder }
  const source = sourceOf(node, inputIndex(node, name))
  const value = source && !source.input ? widgetOf(source.node, 'value')?.value : null
  return { value: typeof value === 'number' ? value : null, linked: true, widget: null, owner: null }
}
