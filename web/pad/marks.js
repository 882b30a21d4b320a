/** The adapters' colours at the numbers of a Preference Weights, in both renderers. */

import { numbered, widgetOf } from './adapters.js'
import { COLOURS } from './drawing.js'

const RADIUS = 4
const FROM_RIGHT = 8 // between the number's frame and the node's edge
const ROW = 20 // LiteGraph's height of a widget
const LABEL = '[data-testid=widget-layout-field-label]' // in Nodes 2.0

/** @type {WeakMap<object, { key: string, labels: HTMLElement[] }>} The labels that are marked, by node. */
const marked = new WeakMap()

/** @type {(node: any, slotsOf: () => import('./adapters.js').Slot[]) => void} Mark the numbers that have an adapter. */
export function markNumbers(node, slotsOf) {
  const { onDrawForeground } = node
  node.onDrawForeground = function (/** @type {CanvasRenderingContext2D} */ context, /** @type {any[]} */ ...more) {
    onDrawForeground?.call(this, context, ...more)
    if (this.flags?.collapsed) return
    const slots = slotsOf()
    numbered(node, 'weight').forEach((name, i) => {
      const widget = widgetOf(node, name)
      const top = widget?.last_y ?? widget?.y
      if (!widget || widget.hidden || !slots[i]?.used || !(top > 0)) return
      context.save()
      context.fillStyle = COLOURS[i]
      context.beginPath()
      context.arc(node.size[0] - FROM_RIGHT, top + ROW / 2, RADIUS, 0, 2 * Math.PI)
      context.fill()
      context.restore()
    })
  }
}

/** @type {(node: any, slots: import('./adapters.js').Slot[]) => void} The same in Nodes 2.0, whose elements may be new. */
export function markLabels(node, slots) {
  const widgets = numbered(node, 'weight').map((name) => widgetOf(node, name))
  const key = JSON.stringify(slots)
  const before = marked.get(node)
  const isMarked = before?.key === key && before.labels.length === widgets.filter(({ hidden }) => !hidden).length
  if (isMarked && before.labels.every((label) => label.isConnected)) return
  const shown = document.querySelector(`[data-node-id="${CSS.escape(String(node.id))}"]`)
  if (!shown) return
  /** @type {HTMLElement[]} */
  const labels = [...shown.querySelectorAll(LABEL)]
  const found = widgets.flatMap((widget, i) => {
    const label = widget.hidden ? null : labels.find((each) => each.textContent?.trim() === (widget.label ?? widget.name))
    if (!label) return []
    labels.splice(labels.indexOf(label), 1)
    Object.assign(label.style, { borderLeft: `4px solid ${slots[i]?.used ? COLOURS[i] : 'transparent'}`, paddingLeft: '4px' })
    return [label]
  })
  marked.set(node, { key, labels: found })
}
