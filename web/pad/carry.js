/**
 * Numbers that belong to an adapter go along when its row in Load Reward LoRAs is moved or removed: the weights of every
 * Preference Weights, and the noise scales of every MSDDA Sampler.
 *
 * @typedef {object} Owner a node with such numbers, as it was before
 * @property {any} node
 * @property {string[]} names of the numbers
 * @property {import('./adapters.js').Numbered[]} numbers
 * @property {import('./places.js').Place[]} places of the numbers, in order
 * @property {number} unset what a number is in a slot that is new
 *
 * @typedef {(number | null)[]} Order for every place, the one that comes there; null: a new one
 */

import { numberOf, numbered } from './adapters.js'
import { graphsOf } from './links.js'
import { reorderKept } from './menu.js'
import { writeNumber } from './numbers.js'
import { PREFERENCE, idlePlaces, placesInOrder, placesOf } from './places.js'

const ETAS = 'MSDDASampler'

/** @type {(node: any) => Owner | null} Null for a node without such numbers, or where the graph does not tell their slots. */
function ownerOf(node) {
  const isPreference = node.comfyClass === PREFERENCE
  if (!isPreference && node.comfyClass !== ETAS) return null
  const names = numbered(node, isPreference ? 'weight' : 'eta')
  const running = isPreference ? placesOf(node).places : placesInOrder(node, names.length)
  const places = running?.length ? running : idlePlaces(node)
  if (!places.length) return null
  return { node, names, places, numbers: names.map((name) => numberOf(node, name)), unset: isPreference ? 0 : 1 }
}

/** @type {(loader: any) => Owner[]} */
const ownersOf = (loader) =>
  graphsOf(loader.graph).flatMap((graph) => graph.nodes.flatMap((/** @type {any} */ node) => ownerOf(node) ?? []))

/** @type {(before: Owner, after: Owner, loader: any, order: Order) => Order} For every number, the one that comes there. */
function orderOf(before, after, loader, order) {
  return before.names.map((_, i) => {
    const place = after.places[i]
    if (!place) return before.places[i] ? null : i // a number without a slot stays as it is
    const index = place.loader === loader ? order[place.index] : place.index
    const from = before.places.findIndex((each) => each.loader === place.loader && each.index === index)
    return from < 0 ? null : from
  })
}

/** @type {(owner: Owner, order: Order) => (number | null)[]} The numbers in their new order; null where only the run knows one. */
const valuesOf = ({ numbers, unset }, order) => order.map((from) => (from === null ? unset : numbers[from].value))

/**
 * Change the rows of a loader, and the numbers with them. Nothing is changed where one of these numbers comes from a link.
 *
 * @param {any} loader
 * @param {Order} order of its slots
 * @param {(order: Order | null) => void} writeRows null: as they were before
 * @returns {{ title: string, name: string } | null} the number that a link sets
 */
export function reorderWithNumbers(loader, order, writeRows) {
  const before = ownersOf(loader)
  writeRows(order)
  const changes = before.flatMap((owner) => {
    const after = ownerOf(owner.node)
    const own = after && orderOf(owner, after, loader, order)
    return own?.some((from, i) => from !== i) ? [{ owner, own, values: valuesOf(owner, own) }] : []
  })
  for (const { owner, own, values } of changes) {
    const stuck = owner.numbers.findIndex(
      ({ value, linked }, i) => own[i] !== i && (values[i] === null || (linked && values[i] !== value))
    )
    if (stuck < 0) continue
    writeRows(null)
    return { title: owner.node.title, name: owner.names[stuck] }
  }
  for (const { owner, own, values } of changes) {
    values.forEach((value, i) => own[i] !== i && value !== null && writeNumber(owner.node, owner.names[i], value))
    if (owner.node.comfyClass === PREFERENCE) reorderKept(owner.node, own)
  }
  return null
}
