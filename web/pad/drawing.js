/** The elements of the pad's picture. Pure but for making elements. */

import { CORNERS, FONT_SIZE, MESSAGE, SMALL, TRACK, WIDTH, fit, labelPlaces, widthOf, wrap } from './layout.js'
import { say } from './words.js'

/** The adapters' colours (Okabe and Ito, which colour-blind people can distinguish). */
export const COLOURS = ['#56b4e9', '#e69f00', '#009e73', '#cc79a7', '#0072b2', '#d55e00', '#f0e442', '#999999']
export const VIOLET = '#7e57c2'
const GAP = 5 // between a name and its share

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

/**
 * The shape between the adapters.
 *
 * @param {import('./adapters.js').Slot[]} slots one per corner
 * @param {number} locked the corner whose weight is locked; -1: none
 * @param {import('./theme.js').Theme} theme
 * @returns {any[]} elements
 */
export function drawShape(slots, locked, theme) {
  const corners = CORNERS[slots.length]
  const outline = svg('polygon', {
    points: corners.map((corner) => corner.join(',')).join(' '),
    fill: 'none',
    stroke: theme.line,
    'stroke-width': 2,
    'stroke-linejoin': 'round'
  })
  const marks = slots.map(({ used }, i) => {
    const look = used ? { fill: COLOURS[i] } : { fill: 'none', stroke: theme.line, 'stroke-dasharray': '2 2' }
    return svg('circle', { cx: corners[i][0], cy: corners[i][1], r: 6, 'data-part': 'corner', ...look })
  })
  return [outline, ...marks, ...(slots[locked] ? [drawLock(corners[locked], theme)] : [])]
}

/**
 * The adapters' names and shares.
 *
 * @param {import('./adapters.js').Slot[]} slots one per corner
 * @param {(number | null)[]} shares one per corner, sum 1; null where they are unknown
 * @param {import('./theme.js').Theme} theme
 * @returns {any[]} elements
 */
export function drawLabels(slots, shares, theme) {
  const places = labelPlaces(slots.length)
  return slots.map((slot, i) => drawLabel(slot, shares[i], places[i], theme))
}

/** @type {(corner: import('./coordinates.js').Point, theme: import('./theme.js').Theme) => any} A padlock on a corner. */
function drawLock([x, y], theme) {
  const lock = svg('g', { 'data-part': 'lock', transform: `translate(${x} ${y})`, 'pointer-events': 'none' })
  const look = { stroke: theme.text, 'stroke-width': 1.5 }
  lock.append(
    svg('path', { d: 'M -3 0 V -3 A 3 3 0 0 1 3 -3 V 0', fill: 'none', ...look }),
    svg('rect', { x: -4.5, y: 0, width: 9, height: 6.5, rx: 1.5, fill: theme.background, ...look })
  )
  return lock
}

/**
 * @param {import('./adapters.js').Slot} slot
 * @param {number | null} share
 * @param {import('./layout.js').Place} place
 * @param {import('./theme.js').Theme} theme
 */
function drawLabel({ name, used }, share, { x, y, anchor, width, stacked }, theme) {
  const number = share === null || !used ? '' : share.toFixed(2)
  const beside = stacked || !number ? 0 : widthOf(number, FONT_SIZE, 'bold') + GAP
  const label = svg('text', {
    x,
    y,
    'text-anchor': anchor,
    fill: used ? theme.text : theme.muted,
    'font-size': FONT_SIZE,
    'data-part': 'label'
  })
  Object.assign(label.style, { paintOrder: 'stroke', stroke: theme.background, strokeWidth: '3px' }) // on images
  const shown = fit(name || say('empty'), width - beside)
  const look = { 'font-weight': 'bold', ...(stacked ? { x, dy: FONT_SIZE + 1 } : { dx: number ? GAP : 0 }) }
  const [named, numbered] = [svg('tspan', {}, shown), svg('tspan', look, number)]
  named.style.unicodeBidi = 'isolate' // a name from right to left must not carry the number to its other side
  label.append(named, numbered, svg('title', {}, name || say('empty')))
  return label
}

/**
 * A message below the shape.
 *
 * @param {string} text may be empty
 * @param {string} colour
 * @returns {any[]} elements
 */
export function drawMessage(text, colour) {
  const { y, width, lines, lineHeight } = MESSAGE
  return wrap(text, width, lines).map((line, i) =>
    svg('text', { x: WIDTH / 2, y: y + i * lineHeight, 'text-anchor': 'middle', fill: colour, 'font-size': SMALL }, line)
  )
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
 * @param {string} value the KL scale in words
 * @param {import('./theme.js').Theme} theme
 * @returns {any[]} elements
 */
export function drawTrack(range, value, theme) {
  const { y, from, to } = TRACK
  const line = (/** @type {number} */ a, /** @type {number} */ b, /** @type {object} */ look) =>
    svg('line', { x1: trackX(range, a), x2: trackX(range, b), y1: y, y2: y, ...look })
  const text = (/** @type {number} */ x, /** @type {number} */ dy, /** @type {string} */ anchor, /** @type {string} */ said) =>
    svg('text', { x, y: y + dy, 'text-anchor': anchor, fill: theme.muted, 'font-size': SMALL, 'data-part': 'word' }, said)
  const tick = (/** @type {number} */ scale) => {
    const x = trackX(range, scale)
    return svg('line', { x1: x, x2: x, y1: y - 5, y2: y + 5, stroke: theme.line })
  }
  const dotted = { stroke: theme.line, 'stroke-width': 2, 'stroke-dasharray': '2 4' }
  return [
    line(range[0], 0, dotted),
    line(0, 1, { stroke: VIOLET, 'stroke-width': 5 }),
    line(1, range[1], dotted),
    tick(0),
    tick(1),
    text(trackX(range, 0), 18, 'middle', say('base')),
    text(trackX(range, 1), 18, 'middle', say('blend')),
    text(from, -11, 'start', say('opposite')),
    text(to, -11, 'end', say('exaggerated')),
    text(to, 18, 'end', value)
  ]
}
