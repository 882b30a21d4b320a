/**
 * The pads of the open page: each is refreshed while its node lives, and its element stays on screen.
 *
 * Nodes 2.0 updates a node's component in place when undo replaces the node. The component then still shows the element of the
 * removed node. So a removed node's element is marked, and the refresh puts the living node's element in its place.
 *
 * @typedef {object} LivePad
 * @property {any} node
 * @property {HTMLElement} element
 * @property {() => void} refresh redraws the pad if something changed
 */

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'

export const PAD_CLASS = 'diffusion-blend-pad'
const REFRESH_MS = 2000 // other extensions change links and numbers without an event
const [SOON_MS, LATER_MS] = [50, 400] // after an event: for most changes, and for undo, which takes longer
const EVENTS = ['pointerup', 'keyup', 'change']
const REMOVED = 'removed'

/** @type {Set<LivePad>} */
const live = new Set()
/** @type {ReturnType<typeof setInterval> | undefined} */
let timer

/** @param {LivePad} pad its node is in a graph, perhaps again */
export function keepFresh(pad) {
  setInert(pad, false)
  live.add(pad)
  if (timer === undefined) listen()
  timer ??= setInterval(refreshAll, REFRESH_MS)
  refreshSoon()
}

let listens = false

/** What a person does ends with one of these, and the front end says when the graph differs. */
function listen() {
  if (listens) return
  listens = true
  for (const name of EVENTS) window.addEventListener(name, refreshSoon, { capture: true, passive: true })
  for (const name of ['graphChanged', 'executed']) api.addEventListener(name, refreshSoon)
}

/** @type {ReturnType<typeof setTimeout> | undefined} */
let soon
/** @type {ReturnType<typeof setTimeout> | undefined} */
let later

/** Refresh a moment later, once for all events until then, and once more. */
export function refreshSoon() {
  if (live.size === 0) return
  soon ??= setTimeout(() => {
    soon = undefined
    refreshAll()
    clearTimeout(later)
    later = setTimeout(refreshAll, LATER_MS)
  }, SOON_MS)
}

/** @param {LivePad} pad a removed node's */
export function retire(pad) {
  live.delete(pad)
  setInert(pad, true)
  if (live.size > 0) return
  clearInterval(timer)
  timer = undefined
}

/**
 * Refreshes a pad as long as its node is in a graph, which it can leave and enter again.
 *
 * @param {any} node
 * @param {LivePad} pad
 * @param {() => void} [added] is called when the node enters a graph
 * @param {() => void} [removed] is called when the node leaves the graph
 */
export function followLife(node, pad, added, removed) {
  const { onAdded, onRemoved } = node
  node.onAdded = function (/** @type {any[]} */ ...args) {
    added?.()
    keepFresh(pad)
    return onAdded?.apply(this, args)
  }
  node.onRemoved = function (/** @type {any[]} */ ...args) {
    removed?.()
    retire(pad)
    return onRemoved?.apply(this, args)
  }
}

/** @type {(pad: LivePad, inert: boolean) => void} */
function setInert({ element }, inert) {
  if (inert) element.dataset.state = REMOVED
  else delete element.dataset.state
  element.inert = inert
  element.style.pointerEvents = inert ? 'none' : ''
}

/** Refresh every pad; the timer calls this. */
export function refreshAll() {
  for (const pad of live) refreshOne(pad)
  const shown = document.querySelectorAll(`[class^=diffusion-blend][data-state=${REMOVED}]`)
  shown.forEach((removed) => replaceRemoved(/** @type {HTMLElement} */ (removed)))
}

/** @type {WeakSet<LivePad>} The pads whose last refresh failed. */
const failing = new WeakSet()

/** @type {(pad: LivePad) => void} A pad that fails says so once, and does not stop the others. */
function refreshOne(pad) {
  try {
    pad.refresh()
    failing.delete(pad)
  } catch (error) {
    if (!failing.has(pad)) console.error('Diffusion Blend: a pad cannot be refreshed.', error)
    failing.add(pad)
  }
}

/** @param {HTMLElement} removed the element of a removed node, on screen */
function replaceRemoved(removed) {
  const shownNode = removed.closest('[data-node-id]')?.getAttribute('data-node-id')
  /** @type {(pad: LivePad) => boolean} */
  const isHeir = ({ node, element }) =>
    String(node.id) === shownNode &&
    node.graph === app.canvas.graph &&
    element.className === removed.className &&
    !element.isConnected
  const heir = [...live].find(isHeir)
  if (heir) removed.replaceWith(heir.element)
}
