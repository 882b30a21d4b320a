/**
 * Where everything lies in the pad's picture, in its own units, and text that fits its place. Pure but for measuring text.
 *
 * @typedef {import('./coordinates.js').Point} Point
 *
 * @typedef {object} Place of a label
 * @property {number} x
 * @property {number} y baseline of the (last) line
 * @property {'start' | 'middle' | 'end'} anchor
 * @property {number} width the most it may take
 * @property {boolean} stacked the share stands below the name
 */

export const [WIDTH, HEIGHT] = [300, 268]
export const FONT_SIZE = 12
export const SMALL = 11
const FONT = 'Inter, Arial, sans-serif'
export const FONT_FAMILY = FONT
export const TRACK = { y: 243, from: 30, to: 270 }
export const MESSAGE = { y: 200, width: 284, lines: 2, lineHeight: 13 }
const [CENTRE, RADIUS] = [/** @type {Point} */ ([150, 94]), 66]
const MARGIN = 6

/** @type {(count: number) => Point[]} A regular polygon, the first corner at the top, clockwise. */
const polygon = (count) =>
  Array.from({ length: count }, (_, i) => {
    const angle = (2 * Math.PI * i) / count - Math.PI / 2
    return [CENTRE[0] + RADIUS * Math.cos(angle), CENTRE[1] + RADIUS * Math.sin(angle)]
  })

/** @type {Record<number, Point[]>} A point, a line, a triangle, a square, regular polygons. */
export const CORNERS = {
  1: [[150, 92]],
  2: [
    [30, 92],
    [270, 92]
  ],
  3: [
    [74, 160],
    [226, 160],
    [150, 28]
  ],
  4: [
    [84, 28],
    [216, 28],
    [216, 160],
    [84, 160]
  ],
  5: polygon(5),
  6: polygon(6),
  7: polygon(7),
  8: polygon(8)
}

const HALF = 140
const [ABOVE, BELOW] = [12, 23] // clear of the handle, whose radius is 9
/** @type {(x: number, y: number, anchor: 'start' | 'middle' | 'end', width?: number) => Place} */
const place = (x, y, anchor, width = HALF) => ({ x, y, anchor, width, stacked: false })
/** @type {Record<number, Place[]>} */
const LABELS = {
  1: [place(150, 92 - ABOVE, 'middle', 2 * HALF)],
  2: [place(MARGIN, 92 - ABOVE - 4, 'start'), place(WIDTH - MARGIN, 92 - ABOVE - 4, 'end')],
  3: [
    place(MARGIN, 160 + BELOW, 'start'),
    place(WIDTH - MARGIN, 160 + BELOW, 'end'),
    place(150, 28 - ABOVE, 'middle', 2 * HALF)
  ],
  4: [
    place(MARGIN, 28 - ABOVE, 'start'),
    place(WIDTH - MARGIN, 28 - ABOVE, 'end'),
    place(WIDTH - MARGIN, 160 + BELOW, 'end'),
    place(MARGIN, 160 + BELOW, 'start')
  ]
}

/** @type {(count: number) => Place[]} The labels' places, one per corner. */
export const labelPlaces = (count) => LABELS[count] ?? CORNERS[count].map(outside)

/** @type {(corner: Point) => Place} Beside a corner of a regular polygon, away from its centre. */
function outside([x, y]) {
  const [across, down] = [(x - CENTRE[0]) / RADIUS, (y - CENTRE[1]) / RADIUS]
  if (Math.abs(across) < 0.5) {
    const sideways = across > 0.1 ? 'start' : across < -0.1 ? 'end' : 'middle'
    const room = sideways === 'middle' ? HALF : sideways === 'start' ? WIDTH - MARGIN - x : x - MARGIN
    return { x, y: y + (down < 0 ? -ABOVE : BELOW), anchor: sideways, width: room, stacked: false }
  }
  const gap = 12
  const [anchor, width] = across > 0 ? ['start', WIDTH - MARGIN - x - gap] : ['end', x - gap - MARGIN]
  return {
    x: x + Math.sign(across) * gap,
    y: y + 2,
    anchor: /** @type {'start' | 'end'} */ (anchor),
    width: Number(width),
    stacked: true
  }
}

/** @type {CanvasRenderingContext2D | null} */
let ruler = null

/** @type {(text: string, size?: number, weight?: string) => number} The width of a text in the pad's units. */
export function widthOf(text, size = FONT_SIZE, weight = 'normal') {
  ruler ??= document.createElement('canvas').getContext('2d')
  if (!ruler) return text.length * size * 0.6
  ruler.font = `${weight} ${size}px ${FONT}`
  return ruler.measureText(text).width
}

/** @type {(text: string, width: number, size?: number) => string} The text, cut with an ellipsis where it is too wide. */
export function fit(text, width, size = FONT_SIZE) {
  if (widthOf(text, size) <= width) return text
  const letters = [...new Intl.Segmenter().segment(text)].map(({ segment }) => segment) // an emoji is one, of several characters
  const cut = (/** @type {number} */ length) => `${letters.slice(0, length).join('')}\u2026`
  let [least, most] = [1, letters.length]
  while (least < most) {
    const middle = Math.ceil((least + most) / 2)
    if (widthOf(cut(middle), size) <= width) least = middle
    else most = middle - 1
  }
  return cut(least)
}

/** @type {(text: string, width: number, lines: number, size?: number) => string[]} Broken at spaces, the last line cut. */
export function wrap(text, width, lines, size = SMALL) {
  const parts = text.match(/[\u2e80-\uffef]|[^\s\u2e80-\uffef]+\s*|\s+/gu) ?? []
  const made = ['']
  for (const part of parts) {
    const longer = made[made.length - 1] + part
    if (made[made.length - 1] && made.length < lines && widthOf(longer.trimEnd(), size) > width) made.push(part)
    else made[made.length - 1] = longer
  }
  return made.map((line) => fit(line.trim(), width, size)).filter(Boolean)
}
