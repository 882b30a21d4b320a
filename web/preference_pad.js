/**
 * Preference Weights gets a pad: a line, triangle or square between the connected adapters, and the KL scale below it.
 * The number widgets stay the truth. The pad shows what they say and writes into them; without it everything works the same.
 */

import { app } from '../../scripts/app.js'
import { adapterNames, numberOf, widgetOf } from './pad/adapters.js'
import { keepFresh, retire } from './pad/live.js'
import { MIN_HEIGHT, PreferencePad } from './pad/view.js'

const NODE = 'PreferenceWeights'
const WEIGHTS = ['weight_1', 'weight_2', 'weight_3', 'weight_4']
const KL_SCALE = 'kl_scale'

/**
 * @param {any} node
 * @param {number} atLeast corners to keep while the adapters are unknown, so that the shape does not change under the hand
 * @returns {import('./pad/view.js').PadState}
 */
function readState(node, atLeast) {
  const numbers = WEIGHTS.map((name) => numberOf(node, name))
  const used = numbers.findLastIndex(({ value, linked }) => linked || (value ?? 0) > 0) + 1
  const known = adapterNames(node)
  const corners = known?.length ? Math.min(4, known.length) : Math.max(2, used, atLeast)
  const names = Array.from({ length: corners }, (_, i) => known?.[i] ?? `adapter ${i + 1}`)
  const own = numbers.slice(0, corners)
  const kl = numberOf(node, KL_SCALE)
  return {
    names,
    weights: own.map(({ value }) => value),
    weightsLocked: own.some(({ linked }) => linked),
    klScale: kl.value,
    klLocked: kl.linked,
    problem: problemOf(numbers, corners, known)
  }
}

/**
 * @param {{ value: number | null, linked: boolean }[]} numbers
 * @param {number} corners
 * @param {string[] | null} known
 * @returns {string}
 */
function problemOf(numbers, corners, known) {
  const linked = numbers.findIndex((number, i) => i < corners && number.linked)
  if (linked >= 0) return `${WEIGHTS[linked]} is set by its link`
  const beyond = numbers.findIndex(({ value }, i) => i >= corners && (value ?? 0) > 0)
  if (known?.length && beyond >= 0) return `${WEIGHTS[beyond]} is above 0, but there is no adapter ${beyond + 1}`
  if (numbers.slice(0, corners).every(({ value }) => value === 0)) return 'all weights are 0: click in the pad'
  return ''
}

/** @type {(node: any, name: string, value: number) => void} Write a number as a hand in the widget would. */
function write(node, name, value) {
  const widget = widgetOf(node, name)
  const linked = numberOf(node, name).linked
  if (!widget || linked || widget.value === value) return
  widget.value = value
  widget.callback?.(value, app.canvas, node)
}

/** @param {any} node */
function addPad(node) {
  let corners = 2
  let shown = ''
  const pad = new PreferencePad({
    setWeights(weights) {
      WEIGHTS.forEach((name, i) => write(node, name, weights[i] ?? 0))
      refresh()
      app.canvas?.setDirty(true, true)
    },
    setKlScale(scale) {
      write(node, KL_SCALE, scale)
      refresh()
      app.canvas?.setDirty(true, true)
    },
    commit() {
      // One step of undo: the front end looks at the graph when a change ends.
      app.canvas?.emitBeforeChange?.()
      app.canvas?.emitAfterChange?.()
    }
  })
  function refresh() {
    const state = readState(node, corners)
    const text = JSON.stringify(state)
    if (text === shown) return
    shown = text
    corners = state.names.length
    pad.show(state)
  }
  const widget = node.addDOMWidget('preference_pad', 'DIFFUSION_BLEND_PREFERENCE_PAD', pad.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => MIN_HEIGHT
  })
  widget.serialize = false
  growToFit(node)
  followNumbers(node, refresh)
  passToCanvas(pad.element)
  refresh()
  followLife(node, { node, element: pad.element, refresh })
}

/** @type {(node: any, pad: import('./pad/live.js').LivePad) => void} Refresh the pad as long as its node is in a graph. */
function followLife(node, pad) {
  const { onAdded, onRemoved } = node
  node.onAdded = function (/** @type {any[]} */ ...args) {
    keepFresh(pad)
    return onAdded?.apply(this, args)
  }
  node.onRemoved = function (/** @type {any[]} */ ...args) {
    retire(pad)
    return onRemoved?.apply(this, args)
  }
}

/**
 * The size a saved graph gets when it is opened: left smaller, the restored node differs from what undo knows,
 * and the front end may take the difference for a change of its own and forget what it could redo.
 * @param {any} node
 */
function growToFit(node) {
  const [width, height] = node.computeSize()
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)])
}

/** @type {(node: any, refresh: () => void) => void} Redraw at once when a number is changed by hand. */
function followNumbers(node, refresh) {
  for (const name of [...WEIGHTS, KL_SCALE]) {
    const widget = widgetOf(node, name)
    if (!widget) continue
    const callback = widget.callback
    widget.callback = function (/** @type {any[]} */ ...args) {
      const result = callback?.apply(this, args)
      refresh()
      return result
    }
  }
}

/** @param {HTMLElement} element Zoom and pan of the classic canvas go on over the pad. */
function passToCanvas(element) {
  element.addEventListener('wheel', (event) => {
    if (/** @type {any} */ (window).LiteGraph?.vueNodesMode) return // there the node hands them on
    event.preventDefault()
    app.canvas.processMouseWheel(event)
  })
}

app.registerExtension({
  name: 'DiffusionBlend.PreferencePad',
  /** @param {any} node */
  nodeCreated(node) {
    if (node.comfyClass === NODE && typeof node.addDOMWidget === 'function') addPad(node)
  }
})
