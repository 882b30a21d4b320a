/**
 * The pad's keys: arrow keys move (Shift: ten times as far), Home puts the dot in the middle or the KL scale at 1, digits give
 * one adapter everything.
 */

import { pointOf } from './coordinates.js'
import { SCALE_STEP, equal, toScaleStep } from './moves.js'

/** @typedef {import('./coordinates.js').Point} Point */

const WEIGHT_STEP = 0.01 // of the distance between two corners
/** @type {Record<string, Point>} */
const DIRECTIONS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }

/** @type {(pad: import('./view.js').PreferencePad, part: string, event: KeyboardEvent) => void} */
export function onKey(pad, part, event) {
  if (event.key === 'Delete' || event.key === 'Backspace') event.stopPropagation() // the node is not meant
  if (!pad.state || event.ctrlKey || event.metaKey || event.altKey) return
  const done = part === 'kl' ? onScaleKey(pad, event) : onWeightsKey(pad, event)
  if (!done) return
  event.preventDefault()
  event.stopPropagation()
  pad.actions.commit()
}

/** @type {(pad: import('./view.js').PreferencePad, event: KeyboardEvent) => boolean} */
function onScaleKey({ state, actions }, event) {
  const { klScale, klLocked } = /** @type {import('./view.js').PadState} */ (state)
  if (klLocked || klScale === null) return false
  const direction = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key]
  if (direction) actions.setKlScale(toScaleStep(klScale + direction * SCALE_STEP * (event.shiftKey ? 10 : 1)))
  else if (event.key === 'Home') actions.setKlScale(1)
  else return false
  return true
}

/** @type {(pad: import('./view.js').PreferencePad, event: KeyboardEvent) => boolean} */
function onWeightsKey(pad, event) {
  const { slots, weightsLocked } = /** @type {import('./view.js').PadState} */ (pad.state)
  if (weightsLocked || !slots.some(({ used }) => used)) return false
  const only = Number(event.key) - 1
  if (slots[only]?.used) pad.setShares(slots.map((_, i) => (i === only ? 1 : 0)))
  else if (event.key === 'Home') pad.setShares(equal(slots))
  else if (DIRECTIONS[event.key] && slots.length > 1) step(pad, DIRECTIONS[event.key], event.shiftKey ? 10 : 1)
  else return false
  return true
}

/** @type {(pad: import('./view.js').PreferencePad, direction: Point, times: number) => void} */
function step(pad, [across, down], times) {
  const { slots } = /** @type {import('./view.js').PadState} */ (pad.state)
  const corners = pad.corners
  const shares = pad.shares.map((share) => share ?? NaN)
  const [x, y] = /** @type {Point} */ (pointOf(corners, shares) ?? pointOf(corners, equal(slots)))
  const length = Math.hypot(corners[1][0] - corners[0][0], corners[1][1] - corners[0][1]) * WEIGHT_STEP * times
  if (slots.length === 2) pad.moveWeights([x + (across - down) * length, y]) // up is to the right
  else pad.moveWeights([x + across * length, y + down * length])
}
