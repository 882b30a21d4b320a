/** What the pad shows, read from the graph. */

import { numberOf, numbered, upToLastAdapter } from './adapters.js'
import { CORNERS } from './layout.js'
import { instancesOf } from './links.js'
import { lockedWeight } from './menu.js'
import { idleLoader, slotsOf } from './places.js'
import { theme } from './theme.js'
import { say } from './words.js'

export const KL_SCALE = 'kl_scale'
const MOST_CORNERS = Object.keys(CORNERS).length

/**
 * @param {any} node
 * @param {number} atLeast corners to keep while the adapters are unknown, so that the shape does not change under the hand
 * @returns {import('./view.js').PadState}
 */
export function readState(node, atLeast) {
  const names = numbered(node, 'weight')
  const numbers = names.map((name) => numberOf(node, name))
  const found = slotsOf(node)
  const { slots } = found
  const known = slots?.some(({ used }) => used) ? upToLastAdapter(slots) : null
  const weighted = numbers.findLastIndex(({ value, linked }) => linked || (value ?? 0) > 0) + 1
  const corners = Math.min(MOST_CORNERS, known ? known.length : Math.max(2, weighted, atLeast))
  const own = numbers.slice(0, corners)
  const kl = numberOf(node, KL_SCALE)
  return {
    slots: Array.from({ length: corners }, (_, i) => known?.[i] ?? unknownSlot(i + 1)),
    weights: own.map(({ value }) => value),
    locked: names.indexOf(lockedWeight(node)),
    weightsLocked: own.some(({ linked }) => linked),
    klScale: kl.value,
    klLocked: kl.linked,
    ...(messageOfLoaders(node, found, numbers, known) ?? messageOfWeights(node, numbers, known, found.other)),
    theme: theme()
  }
}

/** @type {(number: number) => import('./adapters.js').Slot} */
const unknownSlot = (number) => ({ name: say('adapter', { number }), used: true, unknown: true })

/** @typedef {{ message: string, isProblem: boolean }} Said */

/** @type {(message: string) => Said} */
const problem = (message) => ({ message, isProblem: true })

/** @type {(message: string) => Said} */
const note = (message) => ({ message, isProblem: false })

/**
 * @param {any} node
 * @param {ReturnType<typeof slotsOf>} found
 * @param {import('./adapters.js').Numbered[]} numbers
 * @param {import('./adapters.js').Slot[] | null} known the slots up to the last adapter
 * @returns {Said | null} null where the loaders are as they should be
 */
function messageOfLoaders(node, { slots, muted, left }, numbers, known) {
  const idle = idleLoader(node)
  if (muted) return problem(say('muted', { title: muted }))
  if (left === 'zero') return note(idle ? say(idle.bypassed ? 'bypassedZero' : 'mutedZero', { title: idle.title }) : say('noneZero'))
  if (left) return numbers.every(({ value }) => value === 0) ? note('') : problem(say('noneLeft'))
  return slots?.length && !known ? problem(say('noLora')) : null
}

/**
 * @param {any} node
 * @param {import('./adapters.js').Numbered[]} numbers of the weights
 * @param {import('./adapters.js').Slot[] | null} known the slots up to the last adapter
 * @param {boolean} other the run uses other adapters than the node is connected to
 * @returns {Said}
 */
function messageOfWeights(node, numbers, known, other) {
  const names = numbered(node, 'weight')
  const counted = numbers.filter((_, i) => known?.[i]?.used ?? !known)
  if (counted.every(({ value }) => value === 0)) return problem(say('allZero'))
  if (other) return note(say('otherLoras'))
  const linked = numbers.findIndex((number, i) => number.linked && (known?.[i]?.used ?? !known))
  if (linked >= 0) return note(say(numbers[linked].several ? 'several' : 'linked', { weight: names[linked] }))
  const ignored = numbers.findIndex(({ value }, i) => known && !known[i]?.used && (value ?? 0) > 0)
  const name = known?.[ignored]?.name
  if (name) return note(say('switchedOff', { weight: names[ignored], name }))
  if (ignored >= 0) return note(say('emptySlot', { weight: names[ignored], number: ignored + 1 }))
  const copies = instancesOf(node.graph)
  return note(copies > 1 ? say('shared', { number: copies }) : '')
}
