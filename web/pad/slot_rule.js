/**
 * Which slots the weights of each Preference Weights of a chain belong to: the rule of blending/slots.py (`weight_places`,
 * `loaders_of_nodes`). Knows neither the graph nor the prompt.
 *
 * @typedef {object} RuleSlot
 * @property {string} name of the adapter that takes part; empty without one
 * @property {boolean} file it holds a file
 *
 * @typedef {'' | 'zero' | 'none'} Left no loader is left for the node: its weights count as 0, or must be 0
 */

/** @type {<T extends RuleSlot>(slots: T[]) => T[]} The slots up to the last file, of which a run knows. */
export const upToLastFile = (slots) => slots.slice(0, slots.findLastIndex(({ file }) => file) + 1)

/**
 * @template {RuleSlot} T
 * @param {number} node its place in the chain
 * @param {number[]} sizes how many weights each node of the chain has
 * @param {T[][]} loaders all slots of each loader that the run uses, in order
 * @param {(T[][] | null)[]} links the loaders that each node is connected to itself; null where it is not connected
 * @returns {{ slots: T[], left: Left }} the slots of the node's weights, in order
 */
export function slotsOfNode(node, sizes, loaders, links) {
  if (sizes.length < loaders.length) {
    const start = sizes.slice(0, node).reduce((sum, size) => sum + size, 0)
    return { slots: loaders.flatMap(upToLastFile).slice(start, start + sizes[node]), left: '' }
  }
  const own = loadersOfNodes(loaders, links)[node]
  const slots = typeof own === 'number' ? loaders[own] : null
  return { slots: slots?.slice(0, sizes[node]) ?? [], left: slots ? '' : own === null ? 'zero' : 'none' }
}

/** @type {(loaders: RuleSlot[][], links: (RuleSlot[][] | null)[]) => (number | null | undefined)[]} Null: its weights count as 0. */
function loadersOfNodes(loaders, links) {
  const inOrder = links.map((_, node) => (node < loaders.length ? node : undefined))
  const ends = links.map((link) => endOf(loaders, link))
  if (links.length <= loaders.length || ends.every((end) => end === null)) return inOrder
  /** @type {(number | null)[]} */
  const found = []
  let last = -1
  for (const [node, end] of ends.entries()) {
    if (end !== null && end < last) return inOrder // the connections do not tell
    const later = ends.slice(node + 1).find((each) => each !== null) ?? loaders.length
    const next = last + 1 < later ? last + 1 : null // the next loader, if it is no later node's
    found.push(end === null ? next : end === last ? null : end) // a second one: its own is bypassed, and the host hands on this
    last = found[node] ?? last
  }
  const missed = loaders.some((slots, loader) => upToLastFile(slots).length && !found.includes(loader))
  return missed ? inOrder : found
}

/** @type {(loaders: RuleSlot[][], link: RuleSlot[][] | null) => number | null} The loader that a connection ends at. */
function endOf(loaders, link) {
  const names = (/** @type {RuleSlot[]} */ slots) => JSON.stringify(upToLastFile(slots).map(({ name }) => name))
  if (!link?.length || link.length > loaders.length) return null
  const end = link.length - 1
  return names(loaders[end]) === names(link[end]) ? end : null
}
