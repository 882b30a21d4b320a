/**
 * Load Reward LoRAs gets a row per adapter instead of three widgets per slot.
 * The widgets hold the values. The rows show and write them; without the rows everything works the same.
 */

import { app } from '../../scripts/app.js'
import { LOADER, NONE, numbered, ownersOfWeights, widgetOf } from './pad/adapters.js'
import { keepFresh, retire } from './pad/live.js'
import { previewOf, refreshPreviews } from './pad/previews.js'
import { ROW_HEIGHT, RowsView } from './pad/rows_view.js'
import { theme } from './pad/theme.js'
import { say } from './pad/words.js'
import { setHidden } from './pad/numbers.js'

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

/** One step of undo: the front end looks at the graph when a change ends. */
function commit() {
  app.canvas?.emitBeforeChange?.()
  app.canvas?.emitAfterChange?.()
  app.canvas?.setDirty(true, true)
}

/**
 * Put the slots in another order. The weights of the Preference Weights that belong to this loader go with their adapters.
 *
 * @param {any} node
 * @param {(number | null)[]} order for every slot, the slot that comes there; null: an empty one
 */
function reorder(node, order) {
  const rows = readRows(node)
  const empty = { file: NONE, strength: 1, on: true }
  for (const owner of ownersOfWeights(node)) {
    const weights = numbered(owner, 'weight').map((name) => widgetOf(owner, name).value)
    order.forEach((from, to) => write(owner, `weight_${to + 1}`, from === null ? 0 : weights[from]))
  }
  order.forEach((from, to) => writeRow(node, to, from === null ? empty : rows[from]))
}

/** @type {(node: any) => boolean} Whether a link gives a value of this slot: then its widgets must stay in sight. */
const isLinked = (node) =>
  node.inputs?.some((/** @type {any} */ input) => input.widget && input.link != null && /^(lora|strength|on)_/.test(input.name))

/** @type {(node: any, index: number, event: Event, done: (file: string) => void) => void} The host's list, with its search. */
function openList(node, index, event, done) {
  const values = widgetOf(node, `lora_${index + 1}`)?.options?.values ?? []
  const list = typeof values === 'function' ? values() : values
  const { LiteGraph } = /** @type {any} */ (window)
  const canvas = /** @type {any} */ (app.canvas)
  canvas.constructor.active_canvas ??= canvas // the search looks there for the node whose list this is
  canvas.current_node = node
  new LiteGraph.ContextMenu(list, { event, className: 'dark', callback: done })
}

/** @param {any} node */
function addRows(node) {
  let shown = ''
  let asked = 1 // rows that the artist asked for, also while they are empty
  const last = () => readRows(node).findLastIndex(({ file }) => file !== NONE) + 1
  const count = () => Math.min(slotCount(node), Math.max(last(), asked))
  const change = (/** @type {() => void} */ act) => {
    act()
    refresh()
    commit()
  }
  const view = new RowsView({
    choose: (index, event) => openList(node, index, event, (file) => change(() => writeRow(node, index, { file }))),
    change: (index, part) => change(() => writeRow(node, index, part)),
    move: (from, to) => change(() => reorder(node, moved(slotCount(node), from, to))),
    remove(index) {
      asked = Math.max(1, count() - 1)
      change(() => reorder(node, removed(slotCount(node), index)))
    },
    add() {
      asked = count() + 1
      refresh()
    }
  })
  function refresh() {
    const rows = readRows(node).slice(0, count())
    const linked = isLinked(node)
    const text = JSON.stringify([rows, linked, theme(), slotCount(node)])
    if (text === shown) return
    shown = text
    hideWidgets(node, !linked)
    view.show(linked ? [] : rows, !linked && rows.length < slotCount(node), theme())
    const [width, height] = node.computeSize()
    if (height > node.size[1]) node.setSize([Math.max(width, node.size[0]), height])
    app.canvas?.setDirty(true, true)
  }
  const widget = node.addDOMWidget('lora_rows', 'DIFFUSION_BLEND_LORA_ROWS', view.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => ROW_HEIGHT * (isLinked(node) ? 0 : Math.min(slotCount(node), count() + 1))
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

/** @type {(node: any, hidden: boolean) => void} */
function hideWidgets(node, hidden) {
  for (const kind of ['lora', 'strength', 'on']) {
    numbered(node, kind).forEach((name) => setHidden(widgetOf(node, name), hidden))
  }
}

/** @type {(node: any, live: import('./pad/live.js').LivePad) => void} */
function followLife(node, live) {
  const { onAdded, onRemoved } = node
  node.onAdded = function (/** @type {any[]} */ ...args) {
    keepFresh(live)
    return onAdded?.apply(this, args)
  }
  node.onRemoved = function (/** @type {any[]} */ ...args) {
    retire(live)
    return onRemoved?.apply(this, args)
  }
}

app.registerExtension({
  name: 'DiffusionBlend.LoRARows',
  refreshComboInNodes: refreshPreviews, // the key R, which reads the lists of files again
  /** @param {any} node */
  nodeCreated(node) {
    if (node.comfyClass === LOADER && typeof node.addDOMWidget === 'function') addRows(node)
  }
})
