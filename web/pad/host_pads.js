/** A pad on the subgraph's own node, once the weights of the Preference Weights inside are numbers of that node. */

import { numberOf, numbered, widgetOf } from './adapters.js'
import { hostsOf } from './links.js'

export const PAD_WIDGET = 'preference_pad'

/** @type {(node: any) => any} The subgraph's own node that holds the weights; null without one, or with several. */
function hostOf(node) {
  const hosts = hostsOf(node.graph)
  if (hosts.length !== 1) return null // each has numbers of its own, and the nodes inside are the same
  const promoted = numbered(node, 'weight').filter((name) => numberOf(node, name).owner === hosts[0])
  return promoted.length > 1 ? hosts[0] : null
}

/**
 * The pads on subgraphs' own nodes, by the node inside. No widget: the front end takes none on such a node (before 1.49).
 *
 * @type {WeakMap<object, { host: any, widget: any }>}
 */
const pads = new WeakMap()

/** @type {(node: any, add: (host: any) => void) => void} Add the pad, or take it away, as the graph is now. */
export function tendHost(node, add) {
  const host = hostOf(node)
  const known = pads.get(node)
  if (known && known.host !== host) {
    pads.delete(node)
    if (known.widget && known.host.widgets?.includes(known.widget)) known.host.removeWidget(known.widget)
  }
  if (!host || pads.has(node)) return
  pads.set(node, { host, widget: null }) // before it is added, because adding refreshes
  add(host)
  pads.set(node, { host, widget: widgetOf(host, PAD_WIDGET) })
}
