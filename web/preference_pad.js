/**
 * Preference Weights gets a pad: a line, triangle, square or polygon between the connected adapters, and the KL scale below.
 * The number widgets hold the values. The pad shows them and writes them; without the pad everything works the same.
 */

import { app } from '../../scripts/app.js'
import { numberOf, numbered, slotsOf, widgetOf, withoutEmptyEnd } from './pad/adapters.js'
import { CORNERS } from './pad/layout.js'
import { keepFresh, retire } from './pad/live.js'
import { openMenu, runsOnRelease } from './pad/menu.js'
import { showNames } from './pad/numbers.js'
import { theme } from './pad/theme.js'
import { MIN_HEIGHT, PreferencePad } from './pad/view.js'
import { say, setLanguage } from './pad/words.js'

const NODE = 'PreferenceWeights'
const KL_SCALE = 'kl_scale'
const MIN_WIDTH = 300
const LINK_COLOURS = { REWARD_LORAS: '#56b4e9', PREFERENCE: '#b39ddb' }
const MOST_CORNERS = Object.keys(CORNERS).length

/**
 * @param {any} node
 * @param {number} atLeast corners to keep while the adapters are unknown, so that the shape does not change under the hand
 * @returns {import('./pad/view.js').PadState}
 */
function readState(node, atLeast) {
  const names = numbered(node, 'weight')
  const numbers = names.map((name) => numberOf(node, name))
  const { slots, muted } = slotsOf(node)
  const known = slots?.some(({ used }) => used) ? withoutEmptyEnd(slots) : null
  const weighted = numbers.findLastIndex(({ value, linked }) => linked || (value ?? 0) > 0) + 1
  const corners = Math.min(MOST_CORNERS, known ? known.length : Math.max(2, weighted, atLeast))
  const own = numbers.slice(0, corners)
  const kl = numberOf(node, KL_SCALE)
  return {
    slots: Array.from({ length: corners }, (_, i) => known?.[i] ?? unknownSlot(i + 1)),
    weights: own.map(({ value }) => value),
    weightsLocked: own.some(({ linked }) => linked),
    klScale: kl.value,
    klLocked: kl.linked,
    ...messageOf(names, numbers, known, slots, muted),
    theme: theme()
  }
}

/** @type {(number: number) => import('./pad/adapters.js').Slot} */
const unknownSlot = (number) => ({ name: say('adapter', { number }), used: true, unknown: true })

/**
 * @param {string[]} names of the weights
 * @param {import('./pad/adapters.js').Numbered[]} numbers
 * @param {import('./pad/adapters.js').Slot[] | null} known the slots up to the last adapter
 * @param {import('./pad/adapters.js').Slot[] | null} slots
 * @param {string} muted the title of a muted loader, or empty
 * @returns {{ message: string, isProblem: boolean }}
 */
function messageOf(names, numbers, known, slots, muted) {
  const problem = (/** @type {string} */ message) => ({ message, isProblem: true })
  const note = (/** @type {string} */ message) => ({ message, isProblem: false })
  if (muted) return problem(say('muted', { title: muted }))
  if (slots?.length && !known) return problem(say('noLora'))
  const counted = numbers.filter((_, i) => known?.[i]?.used ?? !known)
  if (counted.every(({ value }) => value === 0)) return problem(say('allZero'))
  const linked = numbers.findIndex((number, i) => number.linked && (known?.[i]?.used ?? !known))
  if (linked >= 0) return note(say('linked', { weight: names[linked] }))
  const ignored = numbers.findIndex(({ value }, i) => known && !known[i]?.used && (value ?? 0) > 0)
  const name = known?.[ignored]?.name
  if (name) return note(say('switchedOff', { weight: names[ignored], name }))
  if (ignored >= 0) return note(say('emptySlot', { weight: names[ignored], number: ignored + 1 }))
  return note('')
}

/** @type {(node: any, name: string, value: number) => void} Write a number as typing it into the widget would. */
function writeNumber(node, name, value) {
  const { widget, owner } = numberOf(node, name)
  if (!widget || widget.value === value) return
  widget.value = value
  widget.callback?.(value, app.canvas, owner)
}

/** @type {(node: any) => Record<string, number>} */
const readNumbers = (node) =>
  Object.fromEntries([...numbered(node, 'weight'), KL_SCALE].map((name) => [name, numberOf(node, name).value ?? 0]))

/** @type {(node: any, pad: () => PreferencePad, refresh: () => void) => import('./pad/view.js').PadActions} */
function actionsOf(node, pad, refresh) {
  const redraw = () => {
    refresh()
    app.canvas?.setDirty(true, true)
  }
  /** @type {import('./pad/view.js').PadActions} */
  const actions = {
    setWeights(weights) {
      numbered(node, 'weight').forEach((name, i) => writeNumber(node, name, weights[i] ?? 0))
      redraw()
    },
    setKlScale(scale) {
      writeNumber(node, KL_SCALE, scale)
      redraw()
    },
    commit() {
      // One step of undo: the front end looks at the graph when a change ends.
      app.canvas?.emitBeforeChange?.()
      app.canvas?.emitAfterChange?.()
      if (runsOnRelease(node)) void app.queuePrompt(0)
    },
    openMenu(event) {
      const write = (/** @type {Record<string, number>} */ numbers) => {
        Object.entries(numbers).forEach(([name, value]) => writeNumber(node, name, value))
        redraw()
        actions.commit()
      }
      openMenu(node, event, { reset: () => pad().reset('weights'), read: () => readNumbers(node), write })
    }
  }
  return actions
}

/** @param {any} node */
function addPad(node) {
  let corners = 2
  let shown = ''
  let padded = false
  /** @type {PreferencePad} */
  const pad = new PreferencePad(actionsOf(node, () => pad, refresh))
  function refresh() {
    const state = readState(node, corners)
    const text = JSON.stringify(state)
    if (text === shown) return
    shown = text
    corners = state.slots.length
    pad.show(state)
    if (showNames(node, state.slots) && padded) growToFit(node)
    app.canvas?.setDirty(true, true)
  }
  const widget = node.addDOMWidget('preference_pad', 'DIFFUSION_BLEND_PREFERENCE_PAD', pad.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => MIN_HEIGHT
  })
  widget.serialize = false
  widget.label = say('pad')
  refresh()
  padded = true
  growToFit(node)
  followNumbers(node, refresh)
  passToCanvas(pad.element)
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
  const [wide, high] = [Math.max(node.size[0], width, MIN_WIDTH), Math.max(node.size[1], height)]
  if (wide !== node.size[0] || high !== node.size[1]) node.setSize([wide, high])
}

/** @type {(node: any, refresh: () => void) => void} Redraw at once when a number is changed by hand. */
function followNumbers(node, refresh) {
  for (const name of [...numbered(node, 'weight'), KL_SCALE]) {
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

/** @type {() => boolean} Whether the front end's own components draw the nodes, and pass events on themselves. */
const isNodes2 = () => Boolean(/** @type {any} */ (window).LiteGraph?.vueNodesMode)

/** @param {HTMLElement} element Zooming and panning of the classic canvas also work over the pad. */
function passToCanvas(element) {
  element.addEventListener('wheel', (event) => {
    if (isNodes2()) return
    event.preventDefault()
    app.canvas.processMouseWheel(event)
  })
  element.addEventListener(
    'pointerdown',
    (event) => {
      const pans = event.button === 1 || (event.button === 0 && app.canvas.read_only) // read_only: the space bar is held
      if (isNodes2() || !pans) return
      event.preventDefault()
      event.stopPropagation()
      app.canvas.processMouseDown(event)
    },
    { capture: true }
  )
}

/** Links of our types have colours of their own: in the classic canvas by tables, in Nodes 2.0 by CSS variables. */
function colourLinks() {
  const canvas = /** @type {any} */ (app.canvas)
  for (const [type, colour] of Object.entries(LINK_COLOURS)) {
    for (const table of [canvas.default_connection_color_byType, canvas.constructor.link_type_colors]) {
      if (table) table[type] ||= colour
    }
    document.documentElement.style.setProperty(`--color-datatype-${type}`, colour)
  }
}

app.registerExtension({
  name: 'DiffusionBlend.PreferencePad',
  setup() {
    setLanguage(app.extensionManager?.setting?.get('Comfy.Locale'))
    colourLinks()
  },
  /** @param {any} node */
  nodeCreated(node) {
    if (node.comfyClass !== NODE || typeof node.addDOMWidget !== 'function') return
    setLanguage(app.extensionManager?.setting?.get('Comfy.Locale'))
    addPad(node)
  }
})
