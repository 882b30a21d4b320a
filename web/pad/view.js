/**
 * The preference pad as an element: shows weights and KL scale, and reports what a pointer or a key asks for.
 * Knows nothing of the graph.
 *
 * @typedef {import('./coordinates.js').Point} Point
 *
 * @typedef {object} PadState
 * @property {import('./adapters.js').Slot[]} slots one per corner, 1 to 8
 * @property {(number | null)[]} weights one per corner; null: set by a link, unknown
 * @property {boolean} weightsLocked a weight comes from a link
 * @property {number | null} klScale
 * @property {boolean} klLocked it comes from a link
 * @property {string} message to the artist, or empty
 * @property {boolean} isProblem the message says what stops a run
 * @property {import('./theme.js').Theme} theme
 *
 * @typedef {object} PadActions
 * @property {(weights: number[]) => void} setWeights
 * @property {(klScale: number) => void} setKlScale
 * @property {() => void} commit the end of a drag, or one key
 * @property {(event: MouseEvent) => void} openMenu
 */

import { clampTo, pointOf, snap, toHundredths, weightsAt } from './coordinates.js'
import { VIOLET, drawMessage, drawShape, drawTrack, svg, trackX } from './drawing.js'
import { CORNERS, FONT_FAMILY, HEIGHT, TRACK, WIDTH } from './layout.js'
import { PAD_CLASS } from './live.js'
import { say } from './words.js'

/** The least height of the pad in a node, in the node's own pixels. */
export const MIN_HEIGHT = 250
const [SCALE_SHOWN, SCALE_ALLOWED] = [
  [-1, 3],
  [-5, 5]
]
const SNAP = 6 // in the picture's units
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
    Object.assign(this.element.style, {
      position: 'relative',
      minHeight: `${MIN_HEIGHT}px`,
      width: '100%',
      borderRadius: '8px'
    })
    this.svg = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'group' })
    Object.assign(this.svg.style, {
      position: 'absolute',
      inset: '0',
      width: '100%',
      height: '100%',
      touchAction: 'none',
      userSelect: 'none',
      fontFamily: FONT_FAMILY
    })
    this.shape = svg('g')
    this.track = svg('g')
    this.message = svg('g', { 'data-part': 'message' })
    this.handle = this.makeHandle('weights', 9, VIOLET)
    this.klHandle = this.makeHandle('kl', 7, '#d84315')
    this.klHandle.setAttribute('aria-valuemin', String(SCALE_ALLOWED[0]))
    this.klHandle.setAttribute('aria-valuemax', String(SCALE_ALLOWED[1]))
    this.svg.append(this.shape, this.track, this.message, this.handle, this.klHandle)
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
    return CORNERS[this.state?.slots.length ?? 2]
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
    const { slots, weightsLocked, klScale, klLocked, theme } = state
    const scale = Number.isFinite(klScale) ? /** @type {number} */ (klScale) : null
    const shares = this.shares
    this.element.style.background = theme.background
    this.shape.replaceChildren(...drawShape(slots, shares, theme))
    const value = say('kl', { value: scale === null ? '?' : Number(scale.toFixed(3)) })
    this.track.replaceChildren(...drawTrack(this.range, value, theme))
    this.message.replaceChildren(...drawMessage(state.message, state.isProblem ? theme.warning : theme.muted))
    this.message.dataset.problem = String(state.isProblem)
    this.place(this.handle, pointOf(this.corners, shares.map((share) => share ?? NaN)), weightsLocked)
    this.place(this.klHandle, scale === null ? null : [trackX(this.range, scale), TRACK.y], klLocked)
    this.describe(shares, scale)
  }

  /** @type {(shares: (number | null)[], scale: number | null) => void} For screen readers. */
  describe(shares, scale) {
    const names = (this.state?.slots ?? []).map(({ name }) => name || say('empty'))
    this.svg.setAttribute('aria-label', say('pad'))
    this.handle.setAttribute('aria-label', say('weightsOf', { names: names.join(', ') }))
    const spoken = names.map((name, i) => `${name} ${shares[i]?.toFixed(2) ?? '?'}`)
    this.handle.setAttribute('aria-valuetext', spoken.join(', '))
    this.klHandle.setAttribute('aria-label', say('klScale'))
    this.klHandle.setAttribute('aria-valuenow', String(scale))
  }

  /** @returns {(number | null)[]} What counts: the weights of the adapters that are there, with sum 1; null where unknown. */
  get shares() {
    const { slots, weights } = /** @type {PadState} */ (this.state)
    const counted = weights.map((weight, i) => (slots[i].used ? weight : 0))
    const total = counted.reduce((/** @type {number} */ sum, weight) => sum + (weight ?? NaN), 0)
    return counted.map((weight) => (total > 0 ? (weight ?? 0) / total : null))
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
      const part = this.partAt([x, y])
      if (part === 'kl' ? this.state.klLocked : this.state.weightsLocked) return
      event.stopPropagation()
      this.held = part
      this.heldRange = part === 'kl' ? this.range : null
      this.svg.setPointerCapture(event.pointerId)
      const handle = part === 'kl' ? this.klHandle : this.handle
      handle.focus({ preventScroll: true })
      this.moveTo([x, y], event.altKey)
    })
    this.svg.addEventListener('pointermove', (/** @type {PointerEvent} */ event) => {
      if (!this.held) return
      event.stopPropagation()
      this.moveTo(this.positionOf(event), event.altKey)
    })
    const release = () => {
      if (!this.held) return
      this.held = this.heldRange = null
      if (this.state) this.show(this.state)
      this.actions.commit()
    }
    this.svg.addEventListener('dblclick', (/** @type {MouseEvent} */ event) => {
      event.stopPropagation()
      if (this.state) this.reset(this.partAt(this.positionOf(event)))
    })
    this.svg.addEventListener('contextmenu', (/** @type {MouseEvent} */ event) => {
      event.preventDefault()
      event.stopPropagation()
      this.actions.openMenu(event)
    })
    for (const name of ['pointerup', 'pointercancel', 'lostpointercapture']) this.svg.addEventListener(name, release)
  }

  /** @type {(point: Point) => 'weights' | 'kl'} */
  partAt(point) {
    return point[1] > TRACK.y - 16 ? 'kl' : 'weights'
  }

  /** @type {(event: MouseEvent) => Point} The pointer in the picture's own units, at any zoom. */
  positionOf(event) {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.svg.getScreenCTM().inverse())
    return [point.x, point.y]
  }

  /** @type {(point: Point, freely: boolean) => void} With the Alt key the dot moves freely, without snapping. */
  moveTo(point, freely) {
    if (this.held === 'kl') {
      const [least, most] = this.range
      const share = Math.min(1, Math.max(0, (point[0] - TRACK.from) / (TRACK.to - TRACK.from)))
      this.actions.setKlScale(toScaleStep(least + share * (most - least)))
    } else {
      const inside = clampTo(this.corners, point)
      this.moveWeights(freely ? inside : snap(this.corners, inside, SNAP))
    }
  }

  /** Equal weights, or KL scale 1. */
  reset(/** @type {'weights' | 'kl'} */ part) {
    const { slots, klLocked, weightsLocked } = /** @type {PadState} */ (this.state)
    const used = slots.filter((slot) => slot.used).length
    if (part === 'kl' && !klLocked) this.actions.setKlScale(1)
    if (part === 'weights' && !weightsLocked && used) {
      this.actions.setWeights(toHundredths(slots.map((slot) => (slot.used ? 1 / used : 0))))
    }
    this.actions.commit()
  }

  /** @param {Point} point where the weights shall be; an empty slot's share goes to the adapters in proportion */
  moveWeights(point) {
    const { slots } = /** @type {PadState} */ (this.state)
    const all = weightsAt(this.corners, clampTo(this.corners, point)).map((weight, i) => (slots[i].used ? weight : 0))
    const total = all.reduce((sum, weight) => sum + weight, 0)
    if (total > 1e-9) this.actions.setWeights(toHundredths(all.map((weight) => weight / total)))
  }

  /**
   * Arrow keys move (Shift: ten times as far), Home puts the handle in the middle or the KL scale at 1, digits give one
   * adapter everything.
   *
   * @type {(part: string, event: KeyboardEvent) => void}
   */
  onKey(part, event) {
    if (event.key === 'Delete' || event.key === 'Backspace') event.stopPropagation() // the node is not meant
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
    const { slots, weightsLocked } = /** @type {PadState} */ (this.state)
    const used = slots.filter((slot) => slot.used).length
    if (weightsLocked || used === 0) return false
    const corners = this.corners
    const only = Number(event.key) - 1
    if (slots[only]?.used) {
      this.actions.setWeights(slots.map((_, i) => (i === only ? 1 : 0)))
      return true
    }
    const equal = slots.map((slot) => (slot.used ? 1 / used : 0))
    if (event.key === 'Home') {
      this.actions.setWeights(toHundredths(equal))
      return true
    }
    /** @type {Record<string, Point>} */
    const directions = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }
    const direction = directions[event.key]
    if (!direction || slots.length < 2) return false
    const shares = this.shares.map((share) => share ?? NaN)
    const from = pointOf(corners, shares) ?? /** @type {Point} */ (pointOf(corners, equal))
    const side = Math.hypot(corners[1][0] - corners[0][0], corners[1][1] - corners[0][1])
    const step = side * WEIGHT_STEP * (event.shiftKey ? 10 : 1) * (slots.length === 2 && direction[1] ? -1 : 1)
    const along = slots.length === 2 ? [direction[0] + direction[1], 0] : direction
    this.moveWeights([from[0] + along[0] * step, from[1] + along[1] * step])
    return true
  }
}
