/**
 * The layer of remembered images: each stands on the pad where its preference was. Hovering shows it large. A click takes its
 * preference and seeds back. While the dot is dragged the nearest ones are shown, faded by their distance.
 */

import { app } from '../../../scripts/app.js'
import { givingWidget, numberOf } from './adapters.js'
import { svg } from './drawing.js'
import { hidePictures, showPictures } from './floating.js'
import { addLayer } from './layers.js'
import { keyOfNode, nodeOf } from './node_ids.js'
import { rememberedOf, versionOf, weightsFor } from './remembered.js'
import { warn } from './toast.js'
import { say } from './words.js'

/** @typedef {import('./coordinates.js').Point} Point */
/** @typedef {{ image: import('./remembered.js').Remembered, weights: number[], point: Point, size: number }} Placed */

const [LARGE, SMALL, MANY] = [26, 14, 40] // sides in the picture's units, for few images and from so many on
const [HOVERED, DRAGGED] = [256, 128] // sides in pixels of the page
const NEAREST = 3
const REACH = 45 // at this distance, in the picture's units, an image fades to 1 / e

/** @type {(context: import('./layers.js').LayerContext) => Placed[]} The images that this pad can show, the oldest first. */
export function placed({ node, slots, pointOf }) {
  const found = rememberedOf(keyOfNode(node)).flatMap((image) => {
    const weights = weightsFor(image, slots)
    const point = weights && pointOf(weights)
    return weights && point ? [{ image, weights, point }] : []
  })
  const crowd = Math.min(1, found.length / MANY)
  return found.map((each) => ({ ...each, size: LARGE + crowd * (SMALL - LARGE) }))
}

addLayer({
  name: 'remembered',
  above: true,
  version: ({ node, slots }) => {
    const key = keyOfNode(node)
    const version = versionOf(key)
    return version ? JSON.stringify([key, version, slots]) : ''
  },
  draw: (context) => placed(context).map((each) => drawOne(each, context.theme.line))
})

/** @type {(each: Placed, line: string) => any} */
function drawOne({ image, point: [x, y], size }, line) {
  const at = { x: x - size / 2, y: y - size / 2, width: size, height: size }
  const group = svg('g', { 'data-part': 'remembered' })
  const picture = svg('image', { ...at, href: image.thumbnail, preserveAspectRatio: 'xMidYMid slice' })
  picture.style.clipPath = 'inset(0 round 3px)'
  group.append(picture, svg('rect', { ...at, rx: 3, fill: 'none', stroke: line, 'stroke-width': 1 }))
  return group
}

/** @type {(context: import('./layers.js').LayerContext, point: Point) => Placed | null} The topmost image at a point. */
export const imageAt = (context, [x, y]) =>
  placed(context).findLast(({ point, size }) => Math.max(Math.abs(point[0] - x), Math.abs(point[1] - y)) <= size / 2) ?? null

const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/

/** @type {(name: string) => string} A name from right to left must not carry the number to its other side. */
const isolated = (name) => (RIGHT_TO_LEFT.test(name) ? `\u2068${name}\u2069` : name)

/** @type {(placed: Placed, slots: import('./adapters.js').Slot[]) => string} */
function caption({ weights, image }, slots) {
  const shares = weights.flatMap((weight, i) => (weight ? [`${isolated(slots[i].name)} ${weight.toFixed(2)}`] : []))
  return [...shares, say('kl', { value: image.klScale })].join(', ')
}

/** @type {(beside: Element, context: import('./layers.js').LayerContext, point: Point) => void} */
export function showHovered(beside, context, point) {
  const found = imageAt(context, point)
  if (!found) return hidePictures()
  const shown = [{ url: found.image.picture, opacity: 1, caption: caption(found, context.slots) }]
  showPictures(beside, say('takeBack'), shown, HOVERED)
}

/** @type {(beside: Element, context: import('./layers.js').LayerContext, point: Point) => void} */
export function showNearest(beside, context, point) {
  const byDistance = placed(context)
    .map((each) => ({ each, distance: Math.hypot(each.point[0] - point[0], each.point[1] - point[1]) }))
    .sort((a, b) => a.distance - b.distance)
    .slice(0, NEAREST)
  if (!byDistance.length) return hidePictures()
  const shown = byDistance.map(({ each, distance }) => ({
    url: each.image.picture,
    opacity: Number(Math.exp(-distance / REACH).toFixed(2)),
    caption: caption(each, context.slots)
  }))
  showPictures(beside, say('remembered'), shown, DRAGGED)
}

export { hidePictures }

/** @type {(image: import('./remembered.js').Remembered) => void} */
export function takeSeedsBack({ seeds }) {
  for (const { node: id, name, value } of seeds) {
    const node = nodeOf(id)
    if (node && numberOf(node, name).several) warn(say('several', { weight: name }))
    const { widget, owner } = (node && givingWidget(node, name)) ?? {}
    if (!widget || widget.value === value) continue
    widget.value = value
    widget.callback?.(value, app.canvas, owner)
  }
}
