/**
 * Load Reward LoRAs gets a row per adapter instead of three widgets per slot.
 * The widgets hold the values. The rows show and write them; without the rows everything works the same.
 */

import { app } from '../../scripts/app.js'
import { LOADER, NONE, numbered, widgetOf } from './pad/adapters.js'
import { reorderWithNumbers } from './pad/carry.js'
import { openNames } from './pad/context_menu.js'
import { followLife } from './pad/live.js'
import { previewOf, refreshPreviews } from './pad/previews.js'
import { ROW_HEIGHT, RowsView } from './pad/rows_view.js'
import { setHidden, showHolder } from './pad/numbers.js'
import { theme } from './pad/theme.js'
import { warn } from './pad/toast.js'
import { changed } from './pad/undo.js'
import { say } from './pad/words.js'

/** @type {(node: any) => number} */
const slotCount = (node) => numbered(node, 'lora').length

/** @type {(node: any, index: number) => import('./pad/rows_view.js').Row} */
const readRow = (node, index) => ({
  picture: previewOf(widgetOf(node, `lora_${index + 1}`)?.value ?? NONE),
  file: widgetOf(node, `lora_${index + 1}`)?.value ?? NONE,
  strength: Number(widgetOf(node, `strength_${index + 1}`)?.value ?? 1),
  on: widgetOf(node, `on_${index + 1}`)?.value !== false
})

/** @type {(node: any) => import('./pad/rows_view.js').Row[]} */
const readRows = (node) => Array.from({ length: slotCount(node) }, (_, i) => readRow(node, i))

/** @type {(node: any, name: string, value: unknown) => void} */
function write(node, name, value) {
  const widget = widgetOf(node, name)
  if (!widget || widget.value === value) return
  widget.value = value
  widget.callback?.(value, app.canvas, node)
}

/** @type {(node: any, index: number, row: Partial<import('./pad/rows_view.js').Row>) => void} */
function writeRow(node, index, row) {
  const names = { file: 'lora', strength: 'strength', on: 'on' }
  for (const [key, name] of Object.entries(names)) {
    if (key in row) write(node, `${name}_${index + 1}`, /** @type {any} */ (row)[key])
  }
}

function commit() {
  changed()
  app.canvas?.setDirty(true, true)
}

/**
 * Put the slots in another order. The weights and noise scales that belong to them go with their adapters.
 *
 * @param {any} node
 * @param {(number | null)[]} order for every slot, the slot that comes there; null: an empty one
 * @returns {boolean} false where a link sets a number that would have to go along: then nothing is changed
 */
function reorder(node, order) {
  const rows = readRows(node)
  const empty = { file: NONE, strength: 1, on: true }
  const asNow = rows.map((_, i) => i)
  const writeRows = (/** @type {(number | null)[] | null} */ wanted) =>
    (wanted ?? asNow).forEach((from, to) => writeRow(node, to, from === null ? empty : rows[from]))
  const stuck = reorderWithNumbers(node, order, writeRows)
  if (stuck) warn(say('stuck', stuck))
  return !stuck
}

/** @type {(node: any) => number} The last slot with a value from a link, counted from 1: then the widgets must stay in sight. */
const lastLinked = (node) =>
  Math.max(
    0,
    ...(node.inputs ?? []).map((/** @type {any} */ { widget, link, name }) => {
      const [, number] = /^(?:lora|strength|on)_(\d+)$/.exec(name) ?? []
      return widget && link != null && number ? Number(number) : 0
    })
  )

/** @type {(node: any, index: number, event: Event, done: (file: string) => void) => void} The host's list, with its search. */
function openList(node, index, event, done) {
  const values = widgetOf(node, `lora_${index + 1}`)?.options?.values ?? []
  const list = typeof values === 'function' ? values() : values
  const canvas = /** @type {any} */ (app.canvas)
  canvas.constructor.active_canvas ??= canvas // the search looks there for the node whose list this is
  canvas.current_node = node
  openNames(list, event, done)
}

/** @param {any} node */
function addRows(node) {
  let shown = ''
  let asked = 1 // rows that the artist asked for, also while they are empty
  const last = () => readRows(node).findLastIndex(({ file }) => file !== NONE) + 1
  const count = () => Math.min(slotCount(node), Math.max(last(), asked))
  const change = (/** @type {() => boolean | void} */ act) => {
    const done = act() !== false
    refresh()
    if (done) commit()
    return done
  }
  const view = new RowsView({
    choose: (index, event) => openList(node, index, event, (file) => change(() => writeRow(node, index, { file }))),
    change: (index, part) => change(() => writeRow(node, index, part)),
    move: (from, to) => change(() => reorder(node, moved(slotCount(node), from, to))),
    remove(index) {
      const left = Math.max(1, count() - 1)
      if (!change(() => reorder(node, removed(slotCount(node), index)))) return
      asked = left
      refresh()
    },
    add() {
      asked = count() + 1
      refresh()
    }
  })
  function refresh() {
    const rows = readRows(node).slice(0, count())
    const linked = lastLinked(node)
    const text = JSON.stringify([rows, linked, theme(), slotCount(node)])
    showPromoted(node)
    if (text === shown) return
    shown = text
    hideWidgets(node, linked && Math.max(linked, last()) + 1)
    view.show(linked ? [] : rows, !linked && rows.length < slotCount(node), theme())
    const [width, height] = node.computeSize()
    if (height > node.size[1]) node.setSize([Math.max(width, node.size[0]), height])
    app.canvas?.setDirty(true, true)
  }
  const widget = node.addDOMWidget('lora_rows', 'DIFFUSION_BLEND_LORA_ROWS', view.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => ROW_HEIGHT * (lastLinked(node) ? 0 : Math.min(slotCount(node), count() + 1))
  })
  widget.serialize = false
  widget.label = say('rows')
  refresh()
  node.setSize([Math.max(node.size[0], 300), node.computeSize()[1]])
  followLife(node, { node, element: view.element, refresh })
}

/** @type {(length: number, from: number, to: number) => number[]} */
function moved(length, from, to) {
  const order = Array.from({ length }, (_, i) => i)
  order.splice(to, 0, ...order.splice(from, 1))
  return order
}

/** @type {(length: number, index: number) => (number | null)[]} */
const removed = (length, index) => [...Array.from({ length }, (_, i) => i).filter((i) => i !== index), null]

const KINDS = ['lora', 'strength', 'on']

/** @type {(node: any, shown: number) => void} Show the widgets of the first slots only. */
function hideWidgets(node, shown) {
  for (const kind of KINDS) numbered(node, kind).forEach((name, i) => setHidden(widgetOf(node, name), i >= shown))
}

/** @type {(node: any) => void} A value that a subgraph's own node holds is chosen there. */
function showPromoted(node) {
  for (const name of KINDS.flatMap((kind) => numbered(node, kind))) showHolder(node, name)
}

app.registerExtension({
  name: 'DiffusionBlend.LoRARows',
  refreshComboInNodes: refreshPreviews, // the key R, which reads the lists of files again
  /** @param {any} node */
  nodeCreated(node) {
    if (node.comfyClass === LOADER && typeof node.addDOMWidget === 'function') addRows(node)
  }
})
