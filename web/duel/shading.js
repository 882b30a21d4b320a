/** The layer of votes on the pad: how good each mixture is by the votes, and where the votes say little. */

import { VIOLET, svg } from '../pad/drawing.js'
import { addLayer } from '../pad/layers.js'
import { refreshSoon } from '../pad/live.js'
import { addEntries } from '../pad/menu.js'
import { weightsFor } from '../pad/remembered.js'
import { changing } from '../pad/undo.js'
import { canCompare, openCompare } from './compare.js'
import { sessionOf } from './session.js'
import { say } from './words.js'

const HIDDEN = 'diffusion_blend_votes_hidden'
const [FAINT, STRONG] = [0.05, 0.6] // opacity of the worst and of the best mixture
const [LINE_HEIGHT, DOT] = [28, 2] // in the picture's units
let clips = 0

/** @type {(node: any) => import('./view.js').Duel | null} What this Preference Weights is shaded with. */
function shown(node) {
  if (node.properties?.[HIDDEN] === true) return null
  const duel = sessionOf(node)?.duel
  return duel?.points.length ? duel : null
}

addLayer({
  name: 'votes',
  above: false,
  version: ({ node, slots, theme }) => {
    const duel = shown(node)
    return duel ? JSON.stringify([duel.votes, duel.names, duel.points.length, slots, theme]) : ''
  },
  draw: (context) => {
    const duel = shown(context.node)
    return duel ? drawVotes(duel, context) : []
  }
})

/** @type {(duel: import('./view.js').Duel, context: import('../pad/layers.js').LayerContext) => any[]} */
function drawVotes({ names, points, best }, context) {
  const { slots, corners, theme } = context
  const placeOf = (/** @type {number[]} */ weights) => {
    const own = weightsFor({ names, weights }, slots)
    return own && context.pointOf(own)
  }
  const cells = points.flatMap((row) => {
    const point = placeOf(row.slice(0, names.length))
    const [mean, sure] = row.slice(names.length)
    return point ? [{ point, mean, sure }] : []
  })
  const place = placeOf(best.weights)
  if (cells.length < 2 || !place) return [] // the duel has other adapters than the pad
  const step = Math.min(...cells.slice(1).map(({ point }) => Math.hypot(point[0] - cells[0].point[0], point[1] - cells[0].point[1])))
  const shaded = svg('g', { 'data-part': 'shading' })
  shaded.append(
    ...cells.map(({ point, mean }) => cell(point, step, corners.length, FAINT + (STRONG - FAINT) * mean)),
    ...cells.map(({ point: [cx, cy], sure }) => svg('circle', { cx, cy, r: DOT * (1 - sure), fill: theme.text, 'fill-opacity': 0.55 }))
  )
  const [clip, id] = clipOf(corners)
  shaded.setAttribute('clip-path', `url(#${id})`)
  const ring = { cx: place[0], cy: place[1], r: 12, fill: 'none' }
  const rings = [svg('circle', { ...ring, stroke: theme.text, 'stroke-width': 4 }), svg('circle', { ...ring, stroke: '#ffd54f', 'stroke-width': 2, 'data-part': 'votes-best' })]
  return [clip, shaded, ...rings, svg('title', {}, say('shading'))]
}

/** @type {(point: [number, number], step: number, corners: number, opacity: number) => any} A cell of a lattice with this step. */
function cell([x, y], step, corners, opacity) {
  const look = { fill: VIOLET, 'fill-opacity': opacity.toFixed(3) }
  if (corners === 2) return svg('rect', { x: x - step / 2, y: y - LINE_HEIGHT / 2, width: step, height: LINE_HEIGHT, ...look })
  const around = Array.from({ length: 6 }, (_, i) => (Math.PI / 3) * (i + 0.5))
  const points = around.map((turn) => [x + (step / Math.sqrt(3)) * Math.cos(turn), y + (step / Math.sqrt(3)) * Math.sin(turn)])
  return svg('polygon', { points: points.map((point) => point.map((at) => at.toFixed(2)).join()).join(' '), ...look })
}

/** @type {(corners: [number, number][]) => [any, string]} What is outside the pad's shape is cut off. */
function clipOf(corners) {
  const id = `diffusion-blend-votes-${(clips += 1)}`
  const [[left, y], [right]] = corners.length === 2 ? corners : [[0, 0], [0]]
  const line = [[left, y - LINE_HEIGHT], [right, y - LINE_HEIGHT], [right, y + LINE_HEIGHT], [left, y + LINE_HEIGHT]]
  const clip = svg('clipPath', { id })
  clip.append(svg('polygon', { points: (corners.length === 2 ? line : corners).join(' ') }))
  return [clip, id]
}

addEntries((node) => {
  const session = sessionOf(node)
  if (!session?.duel) return []
  const hidden = node.properties?.[HIDDEN] === true
  const shade = { content: `${hidden ? '' : '\u2713 '}${say('shade')}`, callback: () => setHidden(node, !hidden) }
  return [shade, ...(canCompare(session) ? [{ content: say('compare'), callback: () => openCompare(session) }] : [])]
})

/** @type {(node: any, hidden: boolean) => void} A property is saved with the workflow, and undone with it. */
function setHidden(node, hidden) {
  changing(() => {
    node.properties[HIDDEN] = hidden
  })
  refreshSoon()
}
