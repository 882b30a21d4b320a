/** The number widgets of a Preference Weights: each gets its adapter's name, and those without an adapter are hidden. */

import { numberOf, numbered, widgetOf } from './adapters.js'

/** @type {WeakMap<object, string | undefined>} The labels that the host gave, in its language. */
const labels = new WeakMap()

/**
 * @param {any} node
 * @param {import('./adapters.js').Slot[]} slots of the pad's corners
 * @returns {boolean} whether anything changed
 */
export function showNames(node, slots) {
  const changes = numbered(node, 'weight').map((name, i) => {
    const widget = widgetOf(node, name)
    const { value, linked, widget: holding } = numberOf(node, name)
    const named = setLabel(widget, slots[i]?.unknown ? '' : slots[i]?.name)
    const promoted = holding && holding !== widget // shown on the subgraph's own node, which takes over what is hidden here
    if (promoted) setHidden(holding, false)
    return setHidden(widget, !slots[i] && !linked && !value && !promoted) || named
  })
  return changes.some(Boolean)
}

/** @type {(widget: any, name: string | undefined) => boolean} The adapter's name, or the host's label without one. */
function setLabel(widget, name) {
  if (!labels.has(widget)) labels.set(widget, widget.label)
  const label = name || labels.get(widget)
  if (widget.label === label) return false
  widget.label = label
  return true
}

/** @type {(widget: any, hidden: boolean) => boolean} Older front ends read the option, newer ones the property. */
export function setHidden(widget, hidden) {
  if (Boolean(widget.hidden) === hidden) return false
  widget.hidden = hidden
  if (widget.options) widget.options.hidden = hidden
  return true
}
