/**
 * The preference pad as an element: shows weights and KL scale, and reports what a pointer or a key asks for.
 * Knows nothing of the graph.
 *
 * @typedef {import('./coordinates.js').Point} Point
 *
 * @typedef {object} PadState
 * @property {string[]} names one per corner, 1 to 4
 * @property {(number | null)[]} weights one per corner; null: set by a link, unknown
 * @property {boolean} weightsLocked a weight comes from a link
 * @property {number | null} klScale
 * @property {boolean} klLocked it comes from a link
 * @property {string} problem what to put right, or empty
 *
 * @typedef {object} PadActions
 * @property {(weights: number[]) => void} setWeights
 * @property {(klScale: number) => void} setKlScale
 * @property {() => void} commit the end of a drag, or one key
 */

import { clampTo, pointOf, toHundredths, weightsAt } from './coordinates.js'
import { PAD_CLASS } from './live.js'
import { CORNERS, HEIGHT, TRACK, WIDTH, drawShape, drawTrack, svg, trackX } from './drawing.js'

/** The least height of the pad in a node, in the node's own pixels. */
export const MIN_HEIGHT = 200
const [SCALE_SHOWN, SCALE_ALLOWED] = [
  [-1, 3],
  [-5, 5]
]
const WEIGHT_STEP = 0.01
const SCALE_STEP = 0.05

/** @type {(value: number) => number} */
const toScaleStep = (value) => {
  const [least, most] = SCALE_ALLOWED
  return Math.min(most, Math.max(least, Math.round(Math.round(value / SCALE_STEP) * SCALE_STEP * 1000) / 1000))
}

/** The element, and the two ways of talking to it: `show` and the actions. */
export class PreferencePad {
  /** @param {PadActions} actions */
  constructor(actions) {
    this.actions = actions
    /** @type {PadState | null} */
    this.state = null
    /** @type {'weights' | 'kl' | null} What the pointer holds. */
    this.held = null
    /** @type {number[] | null} The track's range while its handle is held: it must not change under the hand. */
    this.heldRange = null
    this.element = document.createElement('div')
    this.element.className = PAD_CLASS
    Object.assign(this.element.style, { position: 'relative', minHeight: `${MIN_HEIGHT}px`, width: '100%' })
    this.svg = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'group', 'aria-label': 'Preference pad' })
    Object.assign(this.svg.style, {
      position: 'absolute',
      inset: '0',
      width: '100%',
      height: '100%',
      touchAction: 'none',
      userSelect: 'none',
      font: '11px sans-serif'
    })
    this.shape = svg('g')
    this.track = svg('g')
    this.problem = svg('text', {
      x: WIDTH / 2,
      y: 153,
      'text-anchor': 'middle',
      fill: '#ff8a80',
      'data-part': 'problem'
    })
    this.handle = this.makeHandle('weights', 9, '#7e57c2')
    this.klHandle = this.makeHandle('kl', 7, '#d84315')
    this.klHandle.setAttribute('aria-label', 'KL scale')
    this.klHandle.setAttribute('aria-valuemin', String(SCALE_ALLOWED[0]))
    this.klHandle.setAttribute('aria-valuemax', String(SCALE_ALLOWED[1]))
    this.svg.append(this.shape, this.track, this.problem, this.handle, this.klHandle)
    this.element.append(this.svg)
    this.listen()
  }

  /** @type {(part: string, radius: number, colour: string) => any} */
  makeHandle(part, radius, colour) {
    const handle = svg('g', { role: 'slider', tabindex: 0, 'data-part': part, 'data-colour': colour })
    handle.style.outline = 'none'
    handle.append(svg('circle', { r: radius, 'stroke-width': 2.5, stroke: '#fff' }))
    handle.addEventListener('focus', () => handle.firstChild.setAttribute('stroke', '#ffd54f'))
    handle.addEventListener('blur', () => handle.firstChild.setAttribute('stroke', '#fff'))
    handle.addEventListener('keydown', (/** @type {KeyboardEvent} */ event) => this.onKey(part, event))
    return handle
  }

  /** @returns {Point[]} */
  get corners() {
    return CORNERS[this.state?.names.length ?? 2]
  }

  /** @returns {number[]} The KL scales on the track: the useful ones, or all that are allowed when the value lies outside. */
  get range() {
    const scale = this.state?.klScale ?? 1
    return this.heldRange ?? (scale < SCALE_SHOWN[0] || scale > SCALE_SHOWN[1] ? SCALE_ALLOWED : SCALE_SHOWN)
  }

  /**
   * Draw a state.
   *
   * @param {PadState} state
   */
  show(state) {
    this.state = state
    const { names, weights, weightsLocked, klScale, klLocked } = state
    const scale = Number.isFinite(klScale) ? /** @type {number} */ (klScale) : null
    this.shape.replaceChildren(...drawShape(names, weights))
    this.track.replaceChildren(...drawTrack(this.range, `KL ${scale === null ? '?' : Number(scale.toFixed(3))}`))
    this.problem.textContent = state.problem
    const point = pointOf(this.corners, /** @type {number[]} */ (weights.map((weight) => weight ?? NaN)))
    this.place(this.handle, point, weightsLocked)
    this.handle.setAttribute('aria-label', `Weights of ${names.join(', ')}`)
    this.handle.setAttribute('aria-valuetext', names.map((name, i) => `${name} ${weights[i] ?? '?'}`).join(', '))
    this.place(this.klHandle, scale === null ? null : [trackX(this.range, scale), TRACK.y], klLocked)
    this.klHandle.setAttribute('aria-valuenow', String(scale))
  }

  /** @type {(handle: any, point: Point | null, locked: boolean) => void} No point: not shown. */
  place(handle, point, locked) {
    handle.style.display = point ? '' : 'none'
    handle.style.cursor = locked ? 'not-allowed' : 'grab'
    handle.setAttribute('aria-disabled', String(locked))
    handle.firstChild.setAttribute('fill', locked ? '#777' : handle.dataset.colour)
    if (point) handle.setAttribute('transform', `translate(${point[0]} ${point[1]})`)
  }

  listen() {
    this.svg.addEventListener('pointerdown', (/** @type {PointerEvent} */ event) => {
      if (event.button !== 0 || !this.state) return
      const [x, y] = this.positionOf(event)
      const part = y > TRACK.y - 16 ? 'kl' : 'weights'
      if (part === 'kl' ? this.state.klLocked : this.state.weightsLocked) return
      event.stopPropagation()
      this.held = part
      this.heldRange = part === 'kl' ? this.range : null
      this.svg.setPointerCapture(event.pointerId)
      const handle = part === 'kl' ? this.klHandle : this.handle
      handle.focus({ preventScroll: true })
      this.moveTo([x, y])
    })
    this.svg.addEventListener('pointermove', (/** @type {PointerEvent} */ event) => {
      if (!this.held) return
      event.stopPropagation()
      this.moveTo(this.positionOf(event))
    })
    const release = () => {
      if (!this.held) return
      this.held = this.heldRange = null
      if (this.state) this.show(this.state)
      this.actions.commit()
    }
    for (const name of ['pointerup', 'pointercancel', 'lostpointercapture']) this.svg.addEventListener(name, release)
  }

  /** @type {(event: PointerEvent) => Point} The pointer in the picture's own units, at any zoom. */
  positionOf(event) {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.svg.getScreenCTM().inverse())
    return [point.x, point.y]
  }

  /** @param {Point} point */
  moveTo(point) {
    if (this.held === 'kl') {
      const [least, most] = this.range
      const share = Math.min(1, Math.max(0, (point[0] - TRACK.from) / (TRACK.to - TRACK.from)))
      this.actions.setKlScale(toScaleStep(least + share * (most - least)))
    } else {
      this.actions.setWeights(toHundredths(weightsAt(this.corners, clampTo(this.corners, point))))
    }
  }

  /**
   * Arrow keys move (Shift: ten times as far), Home puts the handle in the middle or the KL scale at 1, digits 1 to 4 give one
   * adapter everything.
   *
   * @type {(part: string, event: KeyboardEvent) => void}
   */
  onKey(part, event) {
    if (!this.state || event.ctrlKey || event.metaKey || event.altKey) return
    const done = part === 'kl' ? this.onScaleKey(event) : this.onWeightsKey(event)
    if (!done) return
    event.preventDefault()
    event.stopPropagation()
    this.actions.commit()
  }

  /** @type {(event: KeyboardEvent) => boolean} */
  onScaleKey(event) {
    const { klScale, klLocked } = /** @type {PadState} */ (this.state)
    if (klLocked || klScale === null) return false
    const direction = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key]
    if (direction) this.actions.setKlScale(toScaleStep(klScale + direction * SCALE_STEP * (event.shiftKey ? 10 : 1)))
    else if (event.key === 'Home') this.actions.setKlScale(1)
    else return false
    return true
  }

  /** @type {(event: KeyboardEvent) => boolean} */
  onWeightsKey(event) {
    const { names, weights, weightsLocked } = /** @type {PadState} */ (this.state)
    if (weightsLocked) return false
    const corners = this.corners
    const only = Number(event.key) - 1
    if (only >= 0 && only < names.length) {
      this.actions.setWeights(names.map((_, i) => (i === only ? 1 : 0)))
      return true
    }
    const equal = names.map(() => 1 / names.length)
    if (event.key === 'Home') {
      this.actions.setWeights(toHundredths(equal))
      return true
    }
    /** @type {Record<string, Point>} */
    const directions = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }
    const direction = directions[event.key]
    if (!direction || names.length < 2) return false
    const from = pointOf(corners, /** @type {number[]} */ (weights)) ?? /** @type {Point} */ (pointOf(corners, equal))
    const side = Math.hypot(corners[1][0] - corners[0][0], corners[1][1] - corners[0][1])
    const step = side * WEIGHT_STEP * (event.shiftKey ? 10 : 1) * (names.length === 2 && direction[1] ? -1 : 1)
    const along = names.length === 2 ? [direction[0] + direction[1], 0] : direction
    const to = clampTo(corners, [from[0] + along[0] * step, from[1] + along[1] * step])
    this.actions.setWeights(toHundredths(weightsAt(corners, to)))
    return true
  }
}
