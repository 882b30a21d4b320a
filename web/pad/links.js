/**
 * Follows links through reroutes and into and out of subgraphs, in both directions. Only reads the graph.
 *
 * The copies of a subgraph share its nodes, and a value that enters the subgraph may differ from copy to copy. The graph alone
 * does not tell which copy is meant, so such a value has no single source.
 *
 * @typedef {{ node: any, input?: any, several?: boolean }} Source where a value comes from: a node; with `input`, an input without
 *   a link of a subgraph's own node, which then holds the value in its widget; with `several`, no node, because the copies of a
 *   subgraph differ
 * @typedef {{ node: any, index: number }} Slot an input of a node
 */

const LONGEST_CHAIN = 100 // a graph with a loop must not hang the page
const [SUBGRAPH_INPUT, SUBGRAPH_OUTPUT] = [-10, -20] // LiteGraph's ids of a subgraph's two ends

/** @type {(graph: any, id: any) => any} */
const linkOf = (graph, id) => graph?.getLink?.(id) ?? graph?.links?.[id]

/** @type {(graph: any) => any[]} The outermost graph and all its subgraphs. */
export function graphsOf(graph) {
  const root = graph?.rootGraph ?? graph
  return root ? [root, ...(root.subgraphs?.values() ?? [])] : []
}

/** @type {(graph: any) => any[]} The nodes that show this subgraph; none for the outermost graph. */
export function hostsOf(graph) {
  const root = graph?.rootGraph
  if (!root || root === graph) return []
  return graphsOf(graph).flatMap((each) => each.nodes.filter((/** @type {any} */ node) => node.subgraph === graph))
}

/** @type {(graph: any) => number} How many copies of a graph a run has; 1 for the outermost graph. */
export function instancesOf(graph) {
  const root = graph?.rootGraph
  if (!root || root === graph) return 1
  return hostsOf(graph).reduce((sum, host) => sum + instancesOf(host.graph), 0)
}

/** @type {(graph: any, link: any, depth: number) => (Slot | { node: any })[]} Inputs to follow further, one for each copy; or a node. */
function originsOf(graph, link, depth = 0) {
  if (!link || depth > LONGEST_CHAIN) return []
  if (Number(link.origin_id) === SUBGRAPH_INPUT) {
    const name = graph.inputs[link.origin_slot]?.name
    return hostsOf(graph).flatMap((host) => {
      const index = host.inputs.findIndex((/** @type {any} */ input) => input.name === name)
      return index < 0 ? [] : [{ node: host, index }]
    })
  }
  const node = graph.getNodeById(link.origin_id)
  if (!node?.subgraph) return node ? [{ node }] : []
  const inner = node.subgraph.outputs[link.origin_slot]?.linkIds?.[0]
  return originsOf(node.subgraph, linkOf(node.subgraph, inner), depth + 1)
}

/**
 * @param {any} node
 * @param {number} index of an input
 * @param {number} depth steps before this one
 * @returns {Source | null} null without a link
 */
export function sourceOf(node, index, depth = 0) {
  /** @type {Slot} */
  let at = { node, index }
  for (let step = depth; step < LONGEST_CHAIN; step++) {
    const input = at.node.inputs?.[at.index]
    if (input?.link == null) return step > 0 && input && at.node.subgraph ? { node: at.node, input } : null
    const origins = originsOf(at.node.graph, linkOf(at.node.graph, input.link))
    if (origins.length > 1) return agreedSource(/** @type {Slot[]} */ (origins).map((each) => sourceOf(each.node, each.index, step + 1)))
    const [found] = origins
    if (!found) return null
    if ('index' in found) at = found
    else if (found.node.type === 'Reroute') at = { node: found.node, index: 0 }
    else return found
  }
  return null
}

/** @type {(sources: (Source | null)[]) => Source | null} The source that all copies share. */
function agreedSource(sources) {
  const [first] = sources
  const same = sources.every((source) => source?.node === first?.node)
  return same && !first?.input ? first : { node: null, several: true }
}

/** @type {(node: any, name: string) => any} The node that an input's value comes from; null without one, or without a node. */
export function origin(node, name) {
  if (!node) return null
  const source = sourceOf(node, node.inputs?.findIndex((/** @type {any} */ input) => input.name === name) ?? -1)
  return source && !source.input ? source.node : null
}

/** @type {(graph: any, link: any, depth: number) => Slot[]} */
function endsOf(graph, link, depth) {
  if (!link || depth > LONGEST_CHAIN) return []
  if (Number(link.target_id) === SUBGRAPH_OUTPUT) {
    return hostsOf(graph).flatMap((host) => targetsOf(host, link.target_slot, depth + 1))
  }
  const node = graph.getNodeById(link.target_id)
  if (node?.type === 'Reroute') return targetsOf(node, 0, depth + 1)
  if (!node?.subgraph) return node ? [{ node, index: link.target_slot }] : []
  const name = node.inputs[link.target_slot]?.name
  const ids = node.subgraph.inputs.find((/** @type {any} */ input) => input.name === name)?.linkIds ?? []
  return ids.flatMap((/** @type {any} */ id) => endsOf(node.subgraph, linkOf(node.subgraph, id), depth + 1))
}

/** @type {(node: any, output: number, depth?: number) => Slot[]} Every input that an output goes to. */
export function targetsOf(node, output, depth = 0) {
  const ids = node.outputs?.[output]?.links ?? []
  return [...ids].flatMap((id) => endsOf(node.graph, linkOf(node.graph, id), depth))
}
