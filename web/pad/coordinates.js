/**
 * The pad's geometry: a point in a convex polygon stands for one weight per corner, and weights for a point.
 * Pure functions; y grows downwards, as in SVG.
 *
 * @typedef {[number, number]} Point
 */

/** @type {(a: Point, b: Point, c: Point) => number} Twice the signed area of a triangle. */
const area = (a, b, c) => (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])

/**
 * The point's weights by Wachspress coordinates (Wachspress 1975; Meyer et al. 2002, in the form without division, so that
 * edges and corners need no special case): `w_i ~ A(v_i-1, v_i, v_i+1) prod_{j not i-1, i} A(p, v_j, v_j+1)`. In a triangle
 * these are the barycentric coordinates, in a square the bilinear ones.
 *
 * @param {Point[]} corners a convex polygon, at least two corners (two make a line), in order around it
 * @param {Point} point inside or on the border
 * @returns {number[]} one weight per corner, at least 0, sum 1
 */
export function weightsAt(corners, point) {
  if (corners.length === 1) return [1]
  if (corners.length === 2) {
    const along = projection(corners[0], corners[1], point)
    return [1 - along, along]
  }
  const n = corners.length
  const edges = corners.map((corner, j) => area(point, corner, corners[(j + 1) % n]))
  const weights = corners.map((corner, i) => {
    const before = (i + n - 1) % n
    const others = edges.reduce((product, edge, j) => (j === before || j === i ? product : product * edge), 1)
    return area(corners[before], corner, corners[(i + 1) % n]) * others
  })
  const total = weights.reduce((sum, weight) => sum + weight, 0)
  return weights.map((weight) => Math.max(0, weight / total))
}

/**
 * The weighted mean of the corners, `sum w_i v_i / sum w_i`.
 *
 * @param {Point[]} corners
 * @param {number[]} weights one per corner, at least 0
 * @returns {Point | null} null when all weights are 0
 */
export function pointOf(corners, weights) {
  const total = weights.reduce((sum, weight) => sum + weight, 0)
  if (!(total > 0)) return null
  const mean = (/** @type {0 | 1} */ axis) =>
    corners.reduce((sum, corner, i) => sum + (weights[i] / total) * corner[axis], 0)
  return [mean(0), mean(1)]
}

/**
 * The nearest point of a convex polygon.
 *
 * @param {Point[]} corners in order around it, either way
 * @param {Point} point anywhere
 * @returns {Point}
 */
export function clampTo(corners, point) {
  const n = corners.length
  if (n === 1) return corners[0]
  if (n > 2) {
    const turn = Math.sign(area(corners[0], corners[1], corners[2]))
    if (corners.every((corner, j) => turn * area(point, corner, corners[(j + 1) % n]) >= 0)) return point
  }
  let nearest = corners[0]
  let least = Infinity
  for (let j = 0; j < (n === 2 ? 1 : n); j++) {
    const [from, to] = [corners[j], corners[(j + 1) % n]]
    const along = projection(from, to, point)
    /** @type {Point} */
    const candidate = [from[0] + along * (to[0] - from[0]), from[1] + along * (to[1] - from[1])]
    const distance = Math.hypot(candidate[0] - point[0], candidate[1] - point[1])
    if (distance < least) [nearest, least] = [candidate, distance]
  }
  return nearest
}

/**
 * The corner, the centre or the edge point near a point, in this order; the point itself where none is near.
 *
 * @param {Point[]} corners
 * @param {Point} point
 * @param {number} reach the largest distance that counts as near
 * @returns {Point}
 */
export function snap(corners, point, reach) {
  const distance = (/** @type {Point} */ to) => Math.hypot(to[0] - point[0], to[1] - point[1])
  const centre = /** @type {Point} */ (pointOf(corners, Array(corners.length).fill(1)))
  const near = [...corners, centre].find((target) => distance(target) <= reach)
  if (near || corners.length < 3) return near ?? point
  const feet = corners.map((from, j) => {
    const to = corners[(j + 1) % corners.length]
    const along = projection(from, to, point)
    return /** @type {Point} */ ([from[0] + along * (to[0] - from[0]), from[1] + along * (to[1] - from[1])])
  })
  return feet.find((foot) => distance(foot) <= reach) ?? point
}

/** @type {(from: Point, to: Point, point: Point) => number} How far along the segment the nearest point lies, 0 to 1. */
function projection(from, to, point) {
  const [x, y] = [to[0] - from[0], to[1] - from[1]]
  const along = ((point[0] - from[0]) * x + (point[1] - from[1]) * y) / (x * x + y * y)
  return Math.min(1, Math.max(0, along))
}

/**
 * Weights in hundredths whose sum stays exactly 1: those with the largest remainders are rounded up.
 *
 * @param {number[]} weights at least 0, sum 1
 * @returns {number[]}
 */
export function toHundredths(weights) {
  const exact = weights.map((weight) => weight * 100)
  const parts = exact.map((part) => Math.floor(part + 1e-9))
  const byRemainder = exact.map((part, i) => i).sort((a, b) => exact[b] - parts[b] - (exact[a] - parts[a]))
  let left = 100 - parts.reduce((sum, part) => sum + part, 0)
  for (const i of byRemainder) {
    if (left-- <= 0) break
    parts[i] += 1
  }
  return parts.map((part) => part / 100)
}
