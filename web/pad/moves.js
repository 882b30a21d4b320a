/** From where the dot is dragged to the numbers: empty slots get nothing, and a locked weight stays as it is. Pure. */

import { toHundredths } from './coordinates.js'

export const SCALE_ALLOWED = [-5, 5]
export const SCALE_STEP = 0.05

/** @type {(value: number) => number} The nearest KL scale that is allowed. */
export const toScaleStep = (value) => {
  const [least, most] = SCALE_ALLOWED
  return Math.min(most, Math.max(least, Math.round(Math.round(value / SCALE_STEP) * SCALE_STEP * 1000) / 1000))
}

/** @type {(slots: import('./adapters.js').Slot[]) => number[]} The same for every adapter. */
export const equal = (slots) => slots.map(({ used }) => (used ? 1 : 0))

/**
 * @param {number[]} wanted one per corner, at least 0
 * @param {import('./adapters.js').Slot[]} slots
 * @param {number} locked the corner whose share stays; -1: none
 * @param {(number | null)[]} now the present shares, sum 1
 * @returns {number[] | null} in hundredths, sum 1; null where nothing can be moved
 */
export function moved(wanted, slots, locked, now) {
  const kept = slots[locked]?.used ? locked : -1
  const fixed = kept < 0 ? 0 : Math.round((now[kept] ?? 0) * 100) / 100
  const total = (/** @type {number[]} */ values) => values.reduce((sum, value) => sum + value, 0)
  const candidates = kept < 0 ? [wanted] : [wanted, now, equal(slots)]
  const free = candidates
    .map((values) => values.map((value, i) => (slots[i].used && i !== kept ? (value ?? 0) : 0)))
    .find((values) => total(values) > 1e-9)
  if (!free) return null
  const sum = total(free)
  return toHundredths(free.map((value, i) => (i === kept ? fixed : ((1 - fixed) * value) / sum)))
}
