/**
 * What the pad's picture consists of, in its own units (300 by 200). Pure but for making elements.
 *
 * @typedef {import('./coordinates.js').Point} Point
 */

export const [WIDTH, HEIGHT] = [300, 200]

/** @type {Record<number, Point[]>} The corners of a point, a line, a triangle, a square. */
export const CORNERS = {
  1: [[150, 75]],
  2: [
    [40, 75],
    [260, 75]
  ],
  3: [
    [82, 122],
    [218, 122],
    [150, 22]
  ],
  4: [
    [105, 20],
    [195, 20],
    [195, 122],
    [105, 122]
  ]
}
/** @type {Record<number, [number, number, string][]>} Offset and anchor of each corner's label. */
const LABELS = {
  1: [[0, -14, 'middle']],
  2: [
    [0, -16, 'middle'],
    [0, -16, 'middle']
  ],
  3: [
    [-8, 16, 'middle'],
    [8, 16, 'middle'],
    [12, 0, 'start']
  ],
  4: [
    [-10, 2, 'end'],
    [10, 2, 'start'],
    [10, 2, 'start'],
    [-10, 2, 'end']
  ]
}
const COLOURS = ['#56b4e9', '#e69f00', '#009e73', '#cc79a7'] // Okabe and Ito; colour-blind people can distinguish them
const LONGEST_NAME = 15
export const TRACK = { y: 170, from: 30, to: 270 }
const [TEXT, MUTED] = ['var(--input-text, #ddd)', 'var(--descrip-text, #999)'] // the host's theme

/**
 * @param {string} tag
 * @param {Record<string, string | number>} [attributes]
 * @param {string} [text]
 * @returns {any}
 */
export function svg(tag, attributes = {}, text) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value))
  if (text !== undefined) element.textContent = text
  return element
}

/** @type {(name: string) => string} */
const shortened = (name) => (name.length > LONGEST_NAME ? `${name.slice(0, LONGEST_NAME - 1)}\u2026` : name)

/**
 * The shape between the adapters, with their names and shares.
 *
 * @param {string[]} names one per corner
 * @param {(number | null)[]} weights one per corner; no shares are shown unless all are known
 * @returns {any[]} elements
 */
export function drawShape(names, weights) {
  const corners = CORNERS[names.length]
  const total = weights.reduce((/** @type {number} */ sum, weight) => sum + (weight ?? NaN), 0)
  const outline = svg('polygon', {
    points: corners.map((corner) => corner.join(',')).join(' '),
    fill: 'var(--comfy-input-bg, #222)',
    stroke: MUTED,
    'stroke-width': 2,
    'stroke-linejoin': 'round'
  })
  const labels = names.flatMap((name, i) => {
    const [[x, y], [dx, dy, anchor]] = [corners[i], LABELS[names.length][i]]
    const share = total > 0 ? ` ${((weights[i] ?? 0) / total).toFixed(2)}` : ''
    const label = svg('text', { x: x + dx, y: y + dy, 'text-anchor': anchor, fill: TEXT, 'data-part': 'label' })
    label.append(shortened(name), svg('tspan', { 'font-weight': 'bold' }, share), svg('title', {}, name))
    return [svg('circle', { cx: x, cy: y, r: 5, fill: COLOURS[i] }), label]
  })
  return [outline, ...labels]
}

/**
 * Where a KL scale is on the track; its end when it lies outside.
 *
 * @param {number[]} range least and most on the track
 * @param {number} scale
 * @returns {number}
 */
export function trackX([least, most], scale) {
  const share = (Math.min(most, Math.max(least, scale)) - least) / (most - least)
  return TRACK.from + share * (TRACK.to - TRACK.from)
}

/**
 * The KL scale's track: solid from the base to the blend, dotted beyond.
 *
 * @param {number[]} range least and most on the track
 * @param {string} value what to write as the value
 * @returns {any[]} elements
 */
export function drawTrack(range, value) {
  const { y, from, to } = TRACK
  const line = (/** @type {number} */ a, /** @type {number} */ b, /** @type {object} */ look) =>
    svg('line', { x1: trackX(range, a), x2: trackX(range, b), y1: y, y2: y, ...look })
  const text = (
    /** @type {number} */ x,
    /** @type {number} */ dy,
    /** @type {string} */ anchor,
    /** @type {string} */ said
  ) => svg('text', { x, y: y + dy, 'text-anchor': anchor, fill: MUTED }, said)
  const tick = (/** @type {number} */ scale) => {
    const x = trackX(range, scale)
    return svg('line', { x1: x, x2: x, y1: y - 5, y2: y + 5, stroke: MUTED })
  }
  const dotted = { stroke: MUTED, 'stroke-width': 2, 'stroke-dasharray': '2 4' }
  return [
    line(range[0], 0, dotted),
    line(0, 1, { stroke: '#7e57c2', 'stroke-width': 5 }),
    line(1, range[1], dotted),
    tick(0),
    tick(1),
    text(trackX(range, 0), 19, 'middle', '0 base'),
    text(trackX(range, 1), 19, 'middle', '1 blend'),
    text(from, -10, 'start', 'opposite'),
    text(to, -10, 'end', 'exaggerated'),
    text(to, 19, 'end', value)
  ]
}
