/**
 * What the slots of a loader hold, and which numbers of a node come from a link or from a subgraph's own node. Only reads the
 * graph.
 *
 * @typedef {object} Slot
 * @property {string} name of the adapter, or of the empty slot
 * @property {boolean} used holds an adapter that is switched on
 * @property {boolean} [unknown] the graph does not tell which
 * @property {boolean} [cross] holds a cross adapter
 *
 * @typedef {object} Numbered
 * @property {number | null} value null when only the run can tell
 * @property {boolean} linked a node's output gives it, or the copies of a subgraph differ in it
 * @property {boolean} [several] the copies of a subgraph differ in it
 * @property {any} widget the one that holds it
 * @property {any} owner the widget's node
 */

import { sourceOf } from './links.js'

export const LOADER = 'LoadRewardLoRAs'
export const NONE = 'None'

/** The ending that `diffusion-blend bake --method cross` gives its files. */
const CROSS = /\.cross\.safetensors$/i

/** @type {(file: unknown) => boolean} Whether a file holds a cross adapter, by its name. */
export const isCross = (file) => typeof file === 'string' && CROSS.test(file)

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

/** @type {(loader: any, name: string) => unknown} A value of the loader as a run sees it. */
const valueOf = (loader, name) => (holderOf(loader, name)?.widget ?? widgetOf(loader, name))?.value

/** @type {(loader: any, index: number) => string} The file in a slot of a loader, empty without one. */
export function fileOf(loader, index) {
  const file = valueOf(loader, `lora_${index + 1}`)
  return typeof file === 'string' && file !== NONE ? file : ''
}

/** @type {(loader: any, index: number) => Slot} */
export function slotAt(loader, index) {
  const file = fileOf(loader, index)
  // A cross adapter has no weight of its own: its gate follows from the weights of its two adapters. Its slot counts as empty.
  if (isCross(file)) return { name: '', used: false, cross: true }
  return { name: shortName(file), used: file !== '' && valueOf(loader, `on_${index + 1}`) !== false }
}

/** @type {(slots: Slot[]) => Slot[]} The slots up to the last adapter that can have a weight. */
export const upToLastAdapter = (slots) => slots.slice(0, slots.findLastIndex(({ name }) => name) + 1)

/** @type {(file: string) => string} A file's name without folders and ending. */
export const shortName = (file) =>
  file
    .split(/[\\/]/)
    .pop()
    ?.replace(/\.(safetensors|sft)$/i, '') ?? file

/** @type {(node: any, name: string) => number} */
const inputIndex = (node, name) => node.inputs?.findIndex((/** @type {any} */ input) => input.widget?.name === name) ?? -1

/**
 * The widget whose value a run uses for an input: the node's own, or the one on a subgraph's own node.
 *
 * @param {any} node
 * @param {string} name the input's name
 * @returns {{ widget: any, owner: any } | null} null where the output of a node gives the value, or the copies of a subgraph differ
 */
export function holderOf(node, name) {
  const index = inputIndex(node, name)
  if (node.inputs?.[index]?.link == null) return { widget: widgetOf(node, name), owner: node }
  const source = sourceOf(node, index)
  if (!source?.input) return null
  const promoted = widgetOf(source.node, source.input.widget?.name ?? source.input.name)
  return promoted ? { widget: promoted, owner: source.node } : null
}

/** @type {(node: any, name: string) => { widget: any, owner: any } | null} Like `holderOf`, and the widget of a node that gives a number. */
export function givingWidget(node, name) {
  const holder = holderOf(node, name)
  if (holder) return holder
  const source = sourceOf(node, inputIndex(node, name))
  const widget = source && !source.input ? widgetOf(source.node, 'value') : null
  return widget ? { widget, owner: source?.node } : null
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
  const value = givingWidget(node, name)?.widget.value
  const several = Boolean(sourceOf(node, inputIndex(node, name))?.several)
  return { value: typeof value === 'number' ? value : null, linked: true, several, widget: null, owner: null }
}
