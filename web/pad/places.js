/**
 * Which slot of which loader each weight of a Preference Weights belongs to in a run. Only reads the graph.
 *
 * @typedef {{ loader: any, index: number } & import('./slot_rule.js').RuleSlot} Place
 *
 * @typedef {object} Supply what a node's input reward_loras gets in a run
 * @property {any[]} loaders in order; none where the graph does not tell, or there is nothing
 * @property {any} last the node that it comes from
 * @property {boolean} foreign another node than Load Reward LoRAs has a part in it
 * @property {string} muted the title of a muted node that it comes from, or empty
 *
 * @typedef {object} Found
 * @property {Place[] | null} places of the weights, in order; null when the graph does not tell
 * @property {import('./slot_rule.js').Left} left no loader is left for this node
 * @property {string} muted the title of a muted loader, or empty
 * @property {boolean} other the run uses other adapters than the node is connected to
 */

import { LOADER, fileOf, numbered, slotAt } from './adapters.js'
import { origin, targetsOf } from './links.js'
import { slotsOfNode, upToLastFile } from './slot_rule.js'

export const PREFERENCE = 'PreferenceWeights'
const LONGEST_CHAIN = 100 // a graph with a loop must not hang the page
const [NEVER, BYPASS] = [2, 4] // LiteGraph's node modes
const PASSED = ['PREFERENCE', '*'] // types of outputs

/** @type {(node: any) => { slots: import('./adapters.js').Slot[] | null } & Omit<Found, 'places'>} */
export function slotsOf(node) {
  const { places, ...more } = placesOf(node)
  return { slots: places && places.map(({ loader, index }) => slotAt(loader, index)), ...more }
}

/** @type {(node: any) => Found} */
export function placesOf(node) {
  const { used, other } = usedBy(node)
  if (!used.loaders.length) return { places: null, left: '', muted: used.muted, other: false }
  const chain = chainOfWeights(node)
  const sizes = chain.map((each) => numbered(each, 'weight').length)
  const links = chain.map((each) => supplyOf(each).loaders).map((own) => (own.length ? own.map(placesIn) : null))
  const { slots, left } = slotsOfNode(chain.indexOf(node), sizes, used.loaders.map(placesIn), links)
  return { places: slots, left, muted: '', other }
}

/** @type {(node: any, count: number) => Place[] | null} Of numbers that go through the slots of all loaders in order. */
export function placesInOrder(node, count) {
  const { loaders } = supplyOf(node)
  return loaders.length ? slotsOfNode(0, [count], loaders.map(placesIn), [null]).slots : null
}

/** @type {(loader: any) => Place[]} */
const placesIn = (loader) =>
  numbered(loader, 'lora').map((_, index) => {
    const { name, used } = slotAt(loader, index)
    return { loader, index, name: used ? name : '', file: fileOf(loader, index) !== '' }
  })

/** @type {(node: any) => { title: string, bypassed: boolean } | null} The loader that a node is connected to, if it takes no part. */
export function idleLoader(node) {
  const loader = origin(node, 'reward_loras')
  return [NEVER, BYPASS].includes(loader?.mode) ? { title: loader.title, bypassed: loader.mode === BYPASS } : null
}

/** @type {(node: any) => Place[]} The slots of the loader that a node is connected to, while that one takes no part in a run. */
export function idlePlaces(node) {
  const loader = origin(node, 'reward_loras')
  return idleLoader(node) && loader.comfyClass === LOADER ? placesIn(loader) : []
}

/** @type {(node: any) => { used: Supply, other: boolean }} The adapters of the nodes that use a preference come first. */
function usedBy(node) {
  const own = supplyOf(node)
  const runs = usersOf(node).map(supplyOf)
  const telling = runs.filter(({ loaders, foreign }) => loaders.length || foreign)
  const wanted = telling.find(({ last }) => last === own.last) ?? telling[0]
  const used = wanted ?? (own.last ? own : (runs[0] ?? own))
  const isPart = !own.loaders.length || !used.loaders.length || used.loaders.includes(own.last)
  return { used, other: !isPart }
}

/** @type {(node: any) => any[]} The nodes with adapters that this preference goes to, the nearest first; of the running ones if there are any. */
function usersOf(node) {
  const found = []
  const waiting = [{ at: node, runs: true }]
  const seen = new Set()
  for (const { at, runs } of waiting) {
    if (seen.has(at)) continue
    seen.add(at)
    for (const user of followersOf(at)) {
      const passes = runs && user.mode !== NEVER
      if (!hasAdapters(user)) waiting.push({ at: user, runs: passes })
      else found.push({ user, runs: passes && user.mode !== BYPASS })
    }
  }
  const running = found.filter(({ runs }) => runs)
  return (running.length ? running : found).map(({ user }) => user)
}

/** @type {(node: any) => boolean} Whether it blends, or makes preferences of its own for its adapters. */
const hasAdapters = (node) =>
  node.comfyClass !== PREFERENCE && (node.inputs ?? []).some((/** @type {any} */ { name }) => name === 'reward_loras')

/** @type {(node: any) => any[]} */
const followersOf = (node) =>
  (node.outputs ?? []).flatMap((/** @type {any} */ { type }, /** @type {number} */ index) =>
    PASSED.includes(type) ? targetsOf(node, index).map((end) => end.node) : []
  )

/** @type {(node: any) => Supply} */
function supplyOf(node) {
  const last = notBypassed(origin(node, 'reward_loras'))
  const loaders = []
  let at = last
  while (at?.comfyClass === LOADER && at.mode !== NEVER && loaders.length < LONGEST_CHAIN) {
    loaders.unshift(at)
    at = notBypassed(origin(at, 'reward_loras'))
  }
  const foreign = Boolean(at) && at.mode !== NEVER && at.comfyClass !== LOADER // the run alone knows its adapters
  return { loaders: foreign ? [] : loaders, last, foreign, muted: last?.mode === NEVER ? last.title : '' }
}

/** @type {(node: any) => any} The node whose adapters a run gets from here: a bypassed one hands on what comes before. */
function notBypassed(node) {
  let at = node
  for (let step = 0; at?.mode === BYPASS && step < LONGEST_CHAIN; step++) at = origin(at, 'reward_loras')
  return at
}

/** @type {(node: any) => any[]} The Preference Weights of a chain, the first one first; a run does without muted and bypassed ones. */
function chainOfWeights(node) {
  const chain = [node]
  for (let at = origin(node, 'preference'); takesPart(at, chain); at = origin(at, 'preference')) {
    if (at.mode !== BYPASS) chain.unshift(at)
  }
  const next = (/** @type {any} */ at) =>
    targetsOf(at, 0).find((end) => end.node.comfyClass === PREFERENCE && end.node.inputs[end.index]?.name === 'preference')?.node
  for (let at = next(node); takesPart(at, chain); at = next(at)) if (at.mode !== BYPASS) chain.push(at)
  return chain
}

/** @type {(node: any, chain: any[]) => boolean} */
const takesPart = (node, chain) => node?.comfyClass === PREFERENCE && node.mode !== NEVER && !chain.includes(node)

/** @type {(loader: any) => any[]} The Preference Weights connected to this loader whose weight i belongs to its slot i. */
export function ownersOfWeights(loader) {
  const known = (/** @type {Place[]} */ places) => JSON.stringify(upToLastFile(places).map(({ name }) => name))
  const mine = known(placesIn(loader))
  return targetsOf(loader, 0)
    .map(({ node }) => node)
    .filter((node) => node.comfyClass === PREFERENCE && mine === known(placesOf(node).places ?? []))
}
