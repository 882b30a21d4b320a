/**
 * Preference Weights gets a pad: a line, triangle, square or polygon between the connected adapters, and the KL scale below.
 * The number widgets hold the values. The pad shows them and writes them; without the pad everything works the same.
 */

import { app } from '../../scripts/app.js'
import { numberOf, numbered, widgetOf } from './pad/adapters.js'
import { followLife, keepFresh, refreshAll, retire } from './pad/live.js'
import { layersVersion } from './pad/layers.js'
import { PAD_WIDGET, tendHost } from './pad/host_pads.js'
import { markLabels, markNumbers } from './pad/marks.js'
import { openMenu, runsOnRelease } from './pad/menu.js'
import { showNames, stuckNumber, writeNumber } from './pad/numbers.js'
import { isNamed, onRemembered } from './pad/remembered.js'
import { watchRuns } from './pad/runs.js'
import { KL_SCALE, readState } from './pad/state.js'
import { takeSeedsBack } from './pad/thumbnails.js'
import { warn } from './pad/toast.js'
import { changed } from './pad/undo.js'
import { MIN_HEIGHT, PreferencePad } from './pad/view.js'
import { say, setLanguage } from './pad/words.js'

const NODE = 'PreferenceWeights'
const MIN_WIDTH = 300
const LINK_COLOURS = { REWARD_LORAS: '#56b4e9', PREFERENCE: '#b39ddb' }

/** @type {(node: any) => Record<string, number>} */
const readNumbers = (node) =>
  Object.fromEntries([...numbered(node, 'weight'), KL_SCALE].map((name) => [name, numberOf(node, name).value ?? 0]))

/** @type {(node: any, pad: () => PreferencePad, refresh: () => void) => import('./pad/view.js').PadActions} */
function actionsOf(node, pad, refresh) {
  const redraw = () => {
    refresh()
    app.canvas?.setDirty(true, true)
  }
  /** @type {(numbers: Record<string, number>) => void} A number that cannot be written here stays, with a message. */
  const write = (numbers) => {
    const stuck = stuckNumber(node, numbers)
    if (stuck) warn(stuck)
    Object.entries(numbers).forEach(([name, value]) => writeNumber(node, name, value))
    redraw()
    actions.commit()
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
      changed()
      if (runsOnRelease(node)) void app.queuePrompt(0)
    },
    openMenu(event) {
      const adapters = adaptersOf(node, pad())
      openMenu(node, event, { reset: () => pad().reset('weights'), adapters, read: () => readNumbers(node), write })
    },
    takeBack(image, weights) {
      const shares = numbered(node, 'weight').map((name, i) => [name, Math.round((weights[i] ?? 0) * 10000) / 10000])
      if (!isNamed(image, pad().state?.slots ?? [])) warn(say('byOrder'))
      takeSeedsBack(image)
      write({ ...Object.fromEntries(shares), [KL_SCALE]: image.klScale })
    }
  }
  return actions
}

/** @type {(node: any, pad: PreferencePad) => { weight: string, name: string }[]} */
const adaptersOf = (node, pad) =>
  numbered(node, 'weight').flatMap((weight, i) => {
    const slot = pad.state?.slots[i]
    return slot?.used ? [{ weight, name: slot.name }] : []
  })

/**
 * @param {any} node the Preference Weights whose numbers the pad shows
 * @param {any} owner the node that the pad stands on: the same, or the subgraph's own node around it
 */
function addPad(node, owner) {
  let corners = 2
  let shown = ''
  let padded = false
  /** @type {PreferencePad} */
  const pad = new PreferencePad(node, actionsOf(node, () => pad, refresh))
  function refresh() {
    if (owner === node) tendHost(node, (host) => addPad(node, host))
    const state = readState(node, corners)
    const text = JSON.stringify(state) + (pad.state ? layersVersion({ ...pad.context, slots: state.slots }) : '')
    if (isNodes2() && owner === node) markLabels(node, state.slots)
    if (text === shown) return
    shown = text
    corners = state.slots.length
    pad.show(state)
    if (owner === node && showNames(node, state.slots) && padded) growToFit(node)
    app.canvas?.setDirty(true, true)
  }
  const widget = owner.addDOMWidget(PAD_WIDGET, 'DIFFUSION_BLEND_PREFERENCE_PAD', pad.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => MIN_HEIGHT
  })
  if (!owner.widgets.includes(widget)) return widget.onRemove?.() // an older front end, on a subgraph's own node
  widget.serialize = false
  widget.label = say('pad')
  refresh()
  padded = true
  growToFit(owner)
  followNumbers(node, refresh)
  if (owner === node) markNumbers(node, () => pad.state?.slots ?? [])
  passToCanvas(pad.element)
  const live = { node: owner, element: pad.element, refresh }
  followLife(owner, live)
  if (owner.graph) keepFresh(live)
  const { onRemove } = widget
  widget.onRemove = function () {
    retire(live)
    onRemove?.call(this)
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
    const { style } = document.documentElement
    if (!style.getPropertyValue(`--color-datatype-${type}`)) style.setProperty(`--color-datatype-${type}`, colour)
  }
}

app.registerExtension({
  name: 'DiffusionBlend.PreferencePad',
  setup() {
    setLanguage(app.extensionManager?.setting?.get('Comfy.Locale'))
    colourLinks()
    onRemembered(refreshAll)
    watchRuns()
  },
  /** @param {any} node */
  nodeCreated(node) {
    const slots = [...(node.inputs ?? []), ...(node.outputs ?? [])]
    if (slots.some((slot) => slot.type in LINK_COLOURS)) colourLinks() // again: a theme that loads later empties the tables
    if (node.comfyClass !== NODE || typeof node.addDOMWidget !== 'function') return
    setLanguage(app.extensionManager?.setting?.get('Comfy.Locale'))
    addPad(node, node)
  }
})
