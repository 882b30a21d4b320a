/** The pair that a workflow holds. Any program can have written a workflow, so its shape is checked before it is shown. */

/** @type {(value: unknown) => boolean} */
const isNumber = (value) => Number.isFinite(value)

/** @type {(value: any, is: (each: any) => boolean, least?: number) => boolean} */
const isList = (value, is, least = 0) => Array.isArray(value) && value.length >= least && value.every(is)

/** @type {(length: number) => (value: any) => boolean} */
const rowOf = (length) => (value) => isList(value, isNumber, length)

/** @type {(value: any) => boolean} */
const isText = (value) => typeof value === 'string'

/** @type {(value: any) => boolean} */
const isPicture = (value) => isText(value?.filename)

/** @type {(value: any) => import('./view.js').Duel | null} The pair; null where it is none, or one of another version. */
export function duelOf(value) {
  const { names, votes, count, options, narrow, sides, best, spread, points, pair } = value ?? {}
  if (!isList(names, isText, 1) || ![votes, narrow].every(isText) || !isNumber(count)) return null
  const weights = rowOf(names.length)
  const isShown = isList(options, isText, 2) && isList(sides, (side) => isList(side, isPicture), 2)
  const isLearned = weights(best?.weights) && isNumber(best.kl_scale) && isList(spread, rowOf(2), names.length)
  return isShown && isLearned && isList(points, rowOf(names.length + 2)) && isList(pair, weights, 2) ? value : null
}
