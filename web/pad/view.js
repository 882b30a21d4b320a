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
 * @property {number} locked the corner whose weight stays as it is; -1: none
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
 * @property {(image: import('./remembered.js').Remembered, weights: number[]) => void} takeBack
 */

import { clampTo, pointOf, snap, weightsAt } from './coordinates.js'
import { VIOLET, drawLabels, drawMessage, drawShape, drawTrack, svg, trackX } from './drawing.js'
import { onKey } from './keys.js'
import { DrawnLayers } from './layers.js'
import { CORNERS, FONT_FAMILY, HEIGHT, TRACK, WIDTH } from './layout.js'
import { PAD_CLASS } from './live.js'
import { SCALE_ALLOWED, equal, moved, toScaleStep } from './moves.js'
import { hidePictures, imageAt, showHovered, showNearest } from './thumbnails.js'
import { say } from './words.js'

/** The least height of the pad in a node, in the node's own pixels. */
export const MIN_HEIGHT = 250
const SCALE_SHOWN = [-1, 3]
const SNAP = 6 // in the picture's units
const DRAG_FROM = 4 // pixels: a press on an image that moves less is a click
const HANDLE = 9

/** The element, and the two ways of talking to it: `show` and the actions. */
export class PreferencePad {
  /**
   * @param {any} node handed on to the layers
   * @param {PadActions} actions
   */
  constructor(node, actions) {
    this.node = node
    this.actions = actions
    /** @type {PadState | null} */
    this.state = null
    /** @type {'weights' | 'kl' | null} What the pointer holds. */
    this.held = null
    /** @type {number[] | null} The track's range while its handle is held: it must not change under the hand. */
    this.heldRange = null
    /** @type {{ found: import('./thumbnails.js').Placed, x: number, y: number } | null} The image that is pressed. */
    this.pressed = null
    this.layers = new DrawnLayers()
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
    this.labels = svg('g')
    this.track = svg('g')
    this.message = svg('g', { 'data-part': 'message' })
    this.handle = this.makeHandle('weights', HANDLE, VIOLET)
    this.klHandle = this.makeHandle('kl', 7, '#d84315')
    this.klHandle.setAttribute('aria-valuemin', String(SCALE_ALLOWED[0]))
    this.klHandle.setAttribute('aria-valuemax', String(SCALE_ALLOWED[1]))
    this.svg.append(this.layers.below, this.shape, this.layers.above, this.labels, this.track, this.message)
    this.svg.append(this.handle, this.klHandle)
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
    handle.addEventListener('keydown', (/** @type {KeyboardEvent} */ event) => onKey(this, part, event))
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
    this.shape.replaceChildren(...drawShape(slots, state.locked, theme))
    this.labels.replaceChildren(...drawLabels(slots, shares, theme))
    this.layers.draw(this.context)
    const value = say('kl', { value: scale === null ? '?' : Number(scale.toFixed(3)) })
    this.track.replaceChildren(...drawTrack(this.range, value, theme))
    this.message.replaceChildren(...drawMessage(state.message, state.isProblem ? theme.warning : theme.muted))
    this.message.dataset.problem = String(state.isProblem)
    this.place(this.handle, pointOf(this.corners, shares.map((share) => share ?? NaN)), weightsLocked)
    this.place(this.klHandle, scale === null ? null : [trackX(this.range, scale), TRACK.y], klLocked)
    this.describe(shares, scale)
  }

  /** @returns {import('./layers.js').LayerContext} */
  get context() {
    const { slots, theme } = /** @type {PadState} */ (this.state)
    const corners = this.corners
    return {
      node: this.node,
      slots,
      corners,
      theme,
      weightsAt: (point) => weightsAt(corners, clampTo(corners, point)),
      pointOf: (weights) => pointOf(corners, weights)
    }
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
    /** @type {(name: string, act: (event: any) => void) => void} */
    const on = (name, act) => this.svg.addEventListener(name, act)
    on('pointerdown', (event) => this.onPress(event))
    on('pointermove', (event) => this.onMove(event))
    on('pointerleave', () => this.held || hidePictures())
    for (const name of ['pointerup', 'pointercancel', 'lostpointercapture']) on(name, () => this.onRelease())
    on('dblclick', (event) => {
      event.stopPropagation()
      if (this.state) this.reset(this.partAt(this.positionOf(event)))
    })
    on('contextmenu', (event) => {
      event.preventDefault()
      event.stopPropagation()
      hidePictures()
      this.actions.openMenu(event)
    })
  }

  /** @param {PointerEvent} event */
  onPress(event) {
    if (event.button !== 0 || !this.state) return
    const point = this.positionOf(event)
    const part = this.partAt(point)
    if (part === 'kl' ? this.state.klLocked : this.state.weightsLocked) return
    event.stopPropagation()
    this.svg.setPointerCapture(event.pointerId)
    const found = part === 'weights' && !this.isOnHandle(point) ? imageAt(this.context, point) : null
    if (found) this.pressed = { found, x: event.clientX, y: event.clientY }
    else this.hold(part, point, event)
  }

  /** @type {(part: 'weights' | 'kl', point: Point, event: PointerEvent) => void} */
  hold(part, point, event) {
    this.held = part
    this.heldRange = part === 'kl' ? this.range : null
    const handle = part === 'kl' ? this.klHandle : this.handle
    handle.focus({ preventScroll: true })
    hidePictures()
    this.moveTo(point, event.altKey)
  }

  /** @param {PointerEvent} event */
  onMove(event) {
    if (!this.state) return
    const point = this.positionOf(event)
    if (this.pressed) {
      event.stopPropagation()
      const { x, y } = this.pressed
      if (Math.hypot(event.clientX - x, event.clientY - y) < DRAG_FROM) return
      this.pressed = null
      this.hold('weights', point, event)
    } else if (this.held) {
      event.stopPropagation()
      this.moveTo(point, event.altKey)
      if (this.held === 'weights') showNearest(this.svg, this.context, clampTo(this.corners, point))
    } else if (!event.buttons) showHovered(this.svg, this.context, point)
  }

  onRelease() {
    const pressed = this.pressed
    this.pressed = null
    if (pressed) this.actions.takeBack(pressed.found.image, pressed.found.weights)
    if (!this.held) return
    this.held = this.heldRange = null
    hidePictures()
    if (this.state) this.show(this.state)
    this.actions.commit()
  }

  /** @type {(point: Point) => boolean} */
  isOnHandle(point) {
    const at = pointOf(this.corners, this.shares.map((share) => share ?? NaN))
    return at !== null && Math.hypot(at[0] - point[0], at[1] - point[1]) <= HANDLE
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
    if (part === 'kl' && !klLocked) this.actions.setKlScale(1)
    if (part === 'weights' && !weightsLocked) this.setShares(equal(slots))
    this.actions.commit()
  }

  /** @param {Point} point where the weights shall be; an empty slot's share goes to the adapters in proportion */
  moveWeights(point) {
    this.setShares(weightsAt(this.corners, clampTo(this.corners, point)))
  }

  /** @param {number[]} wanted one per corner */
  setShares(wanted) {
    const { slots, locked } = /** @type {PadState} */ (this.state)
    const weights = moved(wanted, slots, locked, this.shares)
    if (weights) this.actions.setWeights(weights)
  }
}
