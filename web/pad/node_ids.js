/** Names of nodes that stay the same through undo, other tabs and subgraphs: the execution ids of prompts. */

import { app } from '../../../scripts/app.js'
import { hostsOf } from './links.js'
import { openTab } from './tabs.js'

/** @type {() => any} */
const root = () => /** @type {any} */ (app).rootGraph ?? app.graph

/** @type {(node: any) => string} Such as 7, or 3:7 for a node in the subgraph that node 3 shows. */
export function executionId(node) {
  const host = hostsOf(node.graph)[0]
  return host ? `${executionId(host)}:${node.id}` : String(node.id)
}

/** @type {(id: string) => any} The node of the open workflow with this execution id. */
export const nodeOf = (id) =>
  id.split(':').reduce((/** @type {any} */ found, part, i) => {
    const graph = i === 0 ? root() : found?.subgraph
    return graph?.getNodeById?.(part) ?? graph?.getNodeById?.(Number(part))
  }, null)

/** @type {(tab: string, workflow: string, id: string) => string} The key of a node in a tab's workflow. */
export const keyOf = (tab, workflow, id) => `${tab}/${workflow}/${id}`

/** @type {(node: any) => string} The key of a node of the open workflow. */
export const keyOfNode = (node) => keyOf(openTab(), String(root()?.id ?? ''), executionId(node))
