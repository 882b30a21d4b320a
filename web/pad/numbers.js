/** The number widgets of a Preference Weights: each gets its adapter's name, and those without an adapter are hidden. */

import { app } from '../../../scripts/app.js'
import { holderOf, numberOf, numbered, widgetOf } from './adapters.js'
import { plain } from './context_menu.js'
import { say } from './words.js'

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
    const { value, linked } = numberOf(node, name)
    const named = setLabel(widget, slots[i]?.unknown ? '' : slots[i]?.name)
    const promoted = showHolder(node, name)
    return setHidden(widget, !slots[i] && !linked && !value && !promoted) || named
  })
  return changes.some(Boolean)
}

/**
 * A subgraph's own node takes over that the widget inside is hidden. There it is shown.
 *
 * @type {(node: any, name: string) => boolean} whether a subgraph's own node holds the value
 */
export function showHolder(node, name) {
  const holder = holderOf(node, name)
  if (!holder || holder.owner === node) return false
  setHidden(holder.widget, false)
  return true
}

/** @type {(node: any, numbers: Record<string, number>) => string} What to say of a number that has another value and cannot be written. */
export function stuckNumber(node, numbers) {
  const stuck = Object.keys(numbers).find((name) => {
    const { linked, value } = numberOf(node, name)
    return linked && value !== numbers[name]
  })
  return stuck ? say(numberOf(node, stuck).several ? 'several' : 'linked', { weight: stuck }) : ''
}

/** @type {(node: any, name: string, value: number) => void} Write a number as typing it into the widget would. */
export function writeNumber(node, name, value) {
  const { widget, owner } = numberOf(node, name)
  if (!widget || widget.value === value) return
  widget.value = value
  widget.callback?.(value, app.canvas, owner)
}

/**
 * Sets the adapter's name as the label, or the host's label without one. The host's menus show labels, too.
 *
 * @type {(widget: any, name: string | undefined) => boolean} whether the label is new
 */
function setLabel(widget, name) {
  if (!labels.has(widget)) labels.set(widget, widget.label)
  const label = name ? plain(name) : labels.get(widget)
  if (widget.label === label) return false
  widget.label = label
  return true
}

/** @type {(widget: any, hidden: boolean) => boolean} Some front ends read the option, others the property; on a subgraph's own node only the option. */
export function setHidden(widget, hidden) {
  const now = () => [widget.hidden, widget.options?.hidden].map(Boolean)
  const before = now()
  if (before.every((each) => each === hidden)) return false
  widget.hidden = hidden
  if (!widget.options) return true
  widget.options.hidden = hidden
  // On a subgraph's own node front end 1.58 reads the option when the options are set; 1.49 and 1.50 do not let them be set.
  Reflect.set(widget, 'options', widget.options)
  return now().join() !== before.join()
}
