/**
 * The images that the page remembers for its pads: in memory only, and lost when the page is closed.
 *
 * @typedef {object} Seed
 * @property {string} node the execution id, such as 7, or 3:7 in a subgraph
 * @property {string} name of the widget
 * @property {number} value
 *
 * @typedef {object} Remembered
 * @property {string} thumbnail address of a small copy
 * @property {string} picture address of a copy of at most 512 pixels
 * @property {string[] | null} names of the adapters that `weights` belong to; null: by the order of the pad's corners
 * @property {number[]} weights
 * @property {number} klScale
 * @property {Seed[]} seeds of the run
 */

export const MOST = 200

/** @type {Map<string, Remembered[]>} */
const images = new Map()
/** @type {Map<string, number>} */
const versions = new Map()
/** @type {Set<(key: string) => void>} */
const listeners = new Set()

/** @type {(key: string) => Remembered[]} The images of a pad, the oldest first. */
export const rememberedOf = (key) => images.get(key) ?? []

/** @type {(key: string) => number} Changes with the images of a pad. */
export const versionOf = (key) => versions.get(key) ?? 0

/** @type {(listener: (key: string) => void) => void} Called with the pad's key after each change. */
export const onRemembered = (listener) => void listeners.add(listener)

/** @type {(key: string, more: Remembered[]) => void} The oldest images are forgotten where there are too many. */
export function remember(key, more) {
  const all = [...rememberedOf(key), ...more]
  replace(key, all.slice(-MOST), all.slice(0, -MOST))
}

/** @type {(key: string) => void} */
export const forgetAll = (key) => replace(key, [], rememberedOf(key))

/** @type {(key: string, kept: Remembered[], dropped: Remembered[]) => void} */
function replace(key, kept, dropped) {
  for (const { thumbnail, picture } of dropped) [thumbnail, picture].forEach((url) => URL.revokeObjectURL(url))
  images.set(key, kept)
  versions.set(key, versionOf(key) + 1)
  listeners.forEach((listener) => listener(key))
}

/** @type {(image: Remembered, slots: import('./adapters.js').Slot[]) => boolean} Whether names tell which weight belongs to which corner. */
export const isNamed = ({ names, weights }, slots) =>
  Boolean(names) && weights.every((weight, i) => !weight || names?.[i]) && !slots.some(({ unknown }) => unknown)

/**
 * The weights of a remembered image, one per corner of a pad.
 *
 * @param {Remembered} image
 * @param {import('./adapters.js').Slot[]} slots the pad's corners
 * @returns {number[] | null} sum 1; null where the image has an adapter that the pad lacks
 */
export function weightsFor(image, slots) {
  const { names, weights } = image
  const byName = isNamed(image, slots)
  const found = slots.map(() => 0)
  for (const [i, weight] of weights.entries()) {
    if (!weight) continue
    const corner = byName ? slots.findIndex(({ name, used }, j) => used && name === names?.[i] && !found[j]) : i
    if (corner < 0 || !slots[corner]) return null
    found[corner] = weight
  }
  const total = found.reduce((sum, weight) => sum + weight, 0)
  return total > 0 ? found.map((weight) => weight / total) : null
}
