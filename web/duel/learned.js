/**
 * A picture of what the votes taught: a shaded line or triangle for two or three adapters, bars for more.
 *
 * @typedef {object} Learned
 * @property {string[]} names of the adapters
 * @property {{ weights: number[], kl_scale: number }} best
 * @property {number[][]} spread for each weight and the KL scale, from where to where the best may lie
 * @property {number[][]} points rows of weights, mean and sureness, both 0 to 1
 * @property {number[][]} pair weights and KL scale of the two on screen
 */

import { COLOURS, VIOLET, svg } from '../pad/drawing.js'
import { fit } from '../pad/layout.js'

export const [WIDTH, HEIGHT] = [220, 128]
/** @type {Record<number, [number, number][]>} */
const CORNERS = {
  2: [
    [20, 52],
    [200, 52]
  ],
  3: [
    [56, 104],
    [164, 104],
    [110, 18]
  ]
}
const SMALL = 11

/** @type {(learned: Learned, theme: import('../pad/theme.js').Theme) => any[]} SVG elements in a box of WIDTH by HEIGHT. */
export const drawLearned = (learned, theme) =>
  CORNERS[learned.names.length] ? drawShape(learned, theme) : drawBars(learned, theme)

/** @type {(corners: [number, number][], weights: number[]) => number[]} */
const placeOf = (corners, weights) =>
  [0, 1].map((axis) => corners.reduce((sum, corner, i) => sum + weights[i] * corner[axis], 0))

/** @type {(learned: Learned, theme: import('../pad/theme.js').Theme) => any[]} */
function drawShape({ names, best, points, pair }, theme) {
  const corners = CORNERS[names.length]
  const outline = svg('polygon', { points: corners.join(' '), fill: 'none', stroke: theme.line, 'stroke-width': 1 })
  const dots = points.map((row) => {
    const [cx, cy] = placeOf(corners, row)
    const [mean, sure] = row.slice(names.length)
    return svg('circle', { cx, cy, r: 1.5 + 3.5 * sure, fill: VIOLET, 'fill-opacity': 0.12 + 0.88 * mean ** 2 })
  })
  const labels = names.map((name, i) => {
    const [x, y] = corners[i]
    const anchor = names.length === 3 && i === 2 ? 'middle' : i ? 'end' : 'start'
    const at = anchor === 'middle' ? x : i ? WIDTH - 4 : 4
    const text = fit(name, anchor === 'middle' ? WIDTH - 20 : WIDTH / 2 - 8, SMALL)
    return svg('text', { x: at, y: anchor === 'middle' ? y - 8 : y + 18, 'text-anchor': anchor, fill: theme.text, 'font-size': SMALL }, text)
  })
  const shown = pair.map((row, i) => {
    const [x, y] = placeOf(corners, row)
    return svg('text', { x, y: y + 4, 'text-anchor': 'middle', fill: theme.text, 'font-size': SMALL, 'font-weight': 'bold' }, String(i + 1))
  })
  const [cx, cy] = placeOf(corners, best.weights)
  const star = svg('circle', { cx, cy, r: 6, fill: 'none', stroke: '#ffd54f', 'stroke-width': 2.5, 'data-part': 'best' })
  return [outline, ...dots, star, ...shown, ...labels]
}

/** @type {(learned: Learned, theme: import('../pad/theme.js').Theme) => any[]} */
function drawBars({ names, best, spread }, theme) {
  const step = (HEIGHT - 4) / names.length
  const [from, width] = [92, WIDTH - 98]
  return names.flatMap((name, i) => {
    const y = 2 + i * step
    const middle = y + step / 2
    const [low, high] = spread[i]
    const look = { stroke: theme.text, 'stroke-width': 1.5 }
    return [
      svg('text', { x: from - 6, y: middle + 4, 'text-anchor': 'end', fill: theme.text, 'font-size': SMALL }, fit(name, from - 10, SMALL)),
      svg('rect', { x: from, y: y + step * 0.2, width: best.weights[i] * width, height: step * 0.6, fill: COLOURS[i] ?? VIOLET }),
      svg('line', { x1: from + low * width, x2: from + high * width, y1: middle, y2: middle, ...look })
    ]
  })
}
