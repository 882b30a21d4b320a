/**
 * What the graph says about a Preference Weights node: which adapters its weights belong to, and which of its numbers come
 * from a link instead of the widget. Only reads the graph.
 */

const LOADER = 'LoadRewardLoRAs'
const PREFERENCE = 'PreferenceWeights'
const NONE = 'None'
const LONGEST_CHAIN = 100 // a graph with a loop must not hang the page
const [NEVER, BYPASS] = [2, 4] // LiteGraph's node modes

/**
 * @param {any} node
 * @param {string} name
 * @returns {any} the node at the other end of an input's link, behind reroutes; null without one
 */
export function origin(node, name) {
  let slot = node.inputs?.findIndex((/** @type {any} */ input) => input.name === name) ?? -1
  for (let step = 0; step < LONGEST_CHAIN && slot >= 0; step++) {
    const source = node.inputs[slot]?.link == null ? null : node.getInputNode(slot)
    if (!source || source.type !== 'Reroute') return source ?? null
    ;[node, slot] = [source, 0]
  }
  return null
}

/** @type {(node: any, name: string) => any} The node's widget of a name. */
export const widgetOf = (node, name) => node?.widgets?.find((/** @type {any} */ widget) => widget.name === name)

/**
 * The names of the adapters a node's weights belong to, in order.
 *
 * @param {any} node a Preference Weights
 * @returns {string[] | null} null when the graph does not tell
 */
export function adapterNames(node) {
  const loader = origin(node, 'reward_loras') ?? loaderBeyond(node)
  if (!loader) return null
  const names = namesFrom(loader)
  return names && names.slice(4 * chained(node))
}

/** @type {(loader: any) => string[] | null} Every adapter of a loader, those of a chained one first. */
function namesFrom(loader) {
  /** @type {string[]} */
  let names = []
  for (let step = 0; loader && step < LONGEST_CHAIN; step++) {
    if (loader.comfyClass !== LOADER || loader.mode === NEVER) return null
    const files = [1, 2, 3, 4].map((number) => widgetOf(loader, `lora_${number}`)?.value)
    const own = files.filter((file) => typeof file === 'string' && file !== NONE).map(shortName)
    if (loader.mode !== BYPASS) names = [...own, ...names]
    loader = origin(loader, 'reward_loras')
  }
  return names
}

/** @type {(file: string) => string} A file's name without folders and ending. */
const shortName = (file) =>
  file
    .split(/[\\/]/)
    .pop()
    ?.replace(/\.safetensors$/i, '') ?? file

/** @type {(node: any) => any} The loader of a node that this preference goes to. */
function loaderBeyond(node) {
  for (const id of node.outputs?.[0]?.links ?? []) {
    const link = node.graph?.getLink?.(id) ?? node.graph?.links?.[id]
    const target = link && node.graph.getNodeById(link.target_id)
    const loader = target && origin(target, 'reward_loras')
    if (loader) return loader
  }
  return null
}

/** @type {(node: any) => number} How many Preference Weights come before this one. */
function chained(node) {
  let count = 0
  for (
    let before = origin(node, 'preference');
    before && count < LONGEST_CHAIN;
    before = origin(before, 'preference')
  ) {
    if (before.comfyClass === PREFERENCE) count += 1
  }
  return count
}

/**
 * A number of the node as a run would see it.
 *
 * @param {any} node
 * @param {string} name the input's name
 * @returns {{ value: number | null, linked: boolean }} value is null when only the run can tell
 */
export function numberOf(node, name) {
  const input = node.inputs?.find((/** @type {any} */ candidate) => candidate.widget?.name === name)
  if (input?.link == null) return { value: Number(widgetOf(node, name)?.value), linked: false }
  const value = widgetOf(origin(node, input.name), 'value')?.value
  return { value: typeof value === 'number' ? value : null, linked: true }
}
