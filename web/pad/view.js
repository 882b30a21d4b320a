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

const [WIDTH, HEIGHT] = [300, 200]
/** The least height of the pad in a node, in the node's own pixels. */
export const MIN_HEIGHT = 200

/** @type {Record<number, Point[]>} */
const CORNERS = {
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
const COLOURS = ['#56b4e9', '#e69f00', '#009e73', '#cc79a7'] // Okabe and Ito's, told apart by colour-blind eyes too
const LONGEST_NAME = 15
const TRACK = { y: 170, from: 30, to: 270 }
const [SCALE_SHOWN, SCALE_ALLOWED] = [
  [-1, 3],
  [-5, 5]
]
const WEIGHT_STEP = 0.01
const SCALE_STEP = 0.05

/**
 * @param {string} tag
 * @param {Record<string, string | number>} [attributes]
 * @param {string} [text]
 * @returns {any}
 */
function svg(tag, attributes = {}, text) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value))
  if (text !== undefined) element.textContent = text
  return element
}

/** @type {(name: string) => string} */
const shortened = (name) => (name.length > LONGEST_NAME ? `${name.slice(0, LONGEST_NAME - 1)}\u2026` : name)

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
    this.element = document.createElement('div')
    this.element.className = 'diffusion-blend-pad'
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
    this.problem = svg('text', { x: WIDTH / 2, y: 153, 'text-anchor': 'middle', fill: '#ff8a80', 'data-part': 'problem' })
    this.handle = this.makeHandle('weights', 9)
    this.klHandle = this.makeHandle('kl', 7)
    this.klHandle.setAttribute('aria-label', 'KL scale')
    this.svg.append(this.shape, this.track, this.problem, this.handle, this.klHandle)
    this.element.append(this.svg)
    this.listen()
  }

  /** @type {(part: string, radius: number) => any} */
  makeHandle(part, radius) {
    const handle = svg('g', { role: 'slider', tabindex: 0, 'data-part': part })
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

  /** @returns {number[]} The range of KL scales on the track: the useful one, the whole one when the value lies outside. */
  get range() {
    const scale = this.state?.klScale ?? 1
    return scale < SCALE_SHOWN[0] || scale > SCALE_SHOWN[1] ? SCALE_ALLOWED : SCALE_SHOWN
  }

  /**
   * Draw a state.
   *
   * @param {PadState} state
   */
  show(state) {
    this.state = state
    this.drawShape(state)
    this.drawTrack(state)
    this.problem.textContent = state.problem
  }

  /** @param {PadState} state */
  drawShape({ names, weights, weightsLocked }) {
    const total = weights.reduce((/** @type {number} */ sum, weight) => sum + (weight ?? NaN), 0)
    const outline = svg('polygon', {
      points: this.corners.map((corner) => corner.join(',')).join(' '),
      fill: 'var(--comfy-input-bg, #222)',
      stroke: 'var(--descrip-text, #999)',
      'stroke-width': 2,
      'stroke-linejoin': 'round'
    })
    const labels = names.flatMap((name, i) => {
      const [corner, [dx, dy, anchor]] = [this.corners[i], LABELS[names.length][i]]
      const share = total > 0 ? ` ${((weights[i] ?? 0) / total).toFixed(2)}` : ''
      const at = { x: corner[0] + dx, y: corner[1] + dy, 'text-anchor': anchor, fill: 'var(--input-text, #ddd)' }
      const label = svg('text', { ...at, 'data-part': 'label' }, shortened(name))
      label.append(svg('tspan', { 'font-weight': 'bold' }, share), svg('title', {}, name))
      return [svg('circle', { cx: corner[0], cy: corner[1], r: 5, fill: COLOURS[i] }), label]
    })
    this.shape.replaceChildren(outline, ...labels)
    const point = pointOf(this.corners, /** @type {number[]} */ (weights.map((weight) => weight ?? NaN)))
    this.handle.style.display = point ? '' : 'none'
    this.handle.style.cursor = weightsLocked ? 'not-allowed' : 'grab'
    if (point) this.handle.setAttribute('transform', `translate(${point[0]} ${point[1]})`)
    this.handle.firstChild.setAttribute('fill', weightsLocked ? '#777' : '#7e57c2')
    this.handle.setAttribute('aria-disabled', String(weightsLocked))
    this.handle.setAttribute('aria-label', `Weights of ${names.join(', ')}`)
    this.handle.setAttribute('aria-valuetext', names.map((name, i) => `${name} ${weights[i] ?? '?'}`).join(', '))
  }

  /** @param {PadState} state */
  drawTrack({ klScale, klLocked }) {
    const { y, from, to } = TRACK
    const [least, most] = this.range
    const line = (/** @type {number} */ a, /** @type {number} */ b, /** @type {object} */ more) =>
      svg('line', { x1: this.trackX(a), x2: this.trackX(b), y1: y, y2: y, stroke: 'var(--descrip-text, #999)', ...more })
    const tick = (/** @type {number} */ value, /** @type {string} */ text) => [
      svg('line', { x1: this.trackX(value), x2: this.trackX(value), y1: y - 5, y2: y + 5, stroke: 'currentColor' }),
      svg('text', { x: this.trackX(value), y: y + 19, 'text-anchor': 'middle', fill: 'var(--descrip-text, #999)' }, text)
    ]
    this.track.replaceChildren(
      line(least, 0, { 'stroke-width': 2, 'stroke-dasharray': '2 4' }),
      line(0, 1, { 'stroke-width': 5, stroke: '#7e57c2' }),
      line(1, most, { 'stroke-width': 2, 'stroke-dasharray': '2 4' }),
      ...tick(0, '0 base'),
      ...tick(1, '1 blend'),
      svg('text', { x: to, y: y - 10, 'text-anchor': 'end', fill: 'var(--descrip-text, #999)' }, 'exaggerated'),
      svg('text', { x: from, y: y - 10, fill: 'var(--descrip-text, #999)' }, 'opposite'),
      svg('text', { x: to, y: y + 19, 'text-anchor': 'end', fill: 'var(--input-text, #ddd)', 'data-part': 'kl-text' },
        `KL ${klScale === null || Number.isNaN(klScale) ? '?' : Number(klScale.toFixed(3))}`)
    ) // prettier-ignore
    const known = klScale !== null && Number.isFinite(klScale)
    this.klHandle.style.display = known ? '' : 'none'
    this.klHandle.style.cursor = klLocked ? 'not-allowed' : 'ew-resize'
    if (known) this.klHandle.setAttribute('transform', `translate(${this.trackX(klScale)} ${y})`)
    this.klHandle.firstChild.setAttribute('fill', klLocked ? '#777' : '#d84315')
    this.klHandle.setAttribute('aria-disabled', String(klLocked))
    this.klHandle.setAttribute('aria-valuenow', String(klScale))
    this.klHandle.setAttribute('aria-valuemin', String(SCALE_ALLOWED[0]))
    this.klHandle.setAttribute('aria-valuemax', String(SCALE_ALLOWED[1]))
  }

  /** @type {(scale: number) => number} */
  trackX(scale) {
    const [least, most] = this.range
    const share = (Math.min(most, Math.max(least, scale)) - least) / (most - least)
    return TRACK.from + share * (TRACK.to - TRACK.from)
  }

  listen() {
    this.svg.addEventListener('pointerdown', (/** @type {PointerEvent} */ event) => {
      if (event.button !== 0 || !this.state) return
      const [x, y] = this.positionOf(event)
      const part = y > TRACK.y - 16 ? 'kl' : 'weights'
      if (part === 'kl' ? this.state.klLocked : this.state.weightsLocked) return
      event.stopPropagation()
      this.held = part
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
      this.held = null
      this.actions.commit()
    }
    for (const name of ['pointerup', 'pointercancel', 'lostpointercapture']) this.svg.addEventListener(name, release)
  }

  /** @type {(event: PointerEvent) => Point} The pointer in the picture's own units, whatever the zoom. */
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
    const from = pointOf(corners, /** @type {number[]} */ (weights)) ?? pointOf(corners, equal)
    const side = Math.hypot(corners[1][0] - corners[0][0], corners[1][1] - corners[0][1])
    const step = side * WEIGHT_STEP * (event.shiftKey ? 10 : 1) * (names.length === 2 && direction[1] ? -1 : 1)
    const along = names.length === 2 ? [direction[0] + direction[1], 0] : direction
    const to = clampTo(corners, [from[0] + along[0] * step, from[1] + along[1] * step])
    this.actions.setWeights(toHundredths(weightsAt(corners, to)))
    return true
  }
}
