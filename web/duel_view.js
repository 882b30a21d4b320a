/**
 * Preference Duel View gets its picture: two images to choose from. The votes are the text of Preference Duel's own widget; the
 * view adds lines to it and runs the graph. Without the view the votes can be typed there.
 */

import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { numbered } from './pad/adapters.js'
import { instancesOf } from './pad/links.js'
import { followLife } from './pad/live.js'
import { stuckNumber, writeNumber } from './pad/numbers.js'
import { slotsOf } from './pad/places.js'
import { KL_SCALE } from './pad/state.js'
import { changing } from './pad/undo.js'
import { matched } from './duel/matching.js'
import { Session, sessions } from './duel/session.js'
import './duel/shading.js'
import { DuelView, MIN_HEIGHT, MIN_WIDTH } from './duel/view.js'
import { withLine, withVote, withoutLast } from './duel/votes.js'
import { say, setLanguage } from './duel/words.js'

const NODE = 'PreferenceDuelView'
const ENDS = ['execution_error', 'execution_interrupted', 'execution_success']
const QUEUE = ['status', 'reconnected'] // a run that is deleted from the queue has no end of its own

/** @type {(session: Session, refresh: () => void) => import('./duel/view.js').DuelActions} */
function actionsOf(session, refresh) {
  const { node } = session
  const go = () => {
    if (session.auto && session.phase === 'stale') void session.run().then(refresh)
    refresh()
  }
  return {
    vote(key) {
      const { duel } = session
      if (session.phase !== 'choose' || !duel) return
      session.write(withVote(session.votes.value, duel.options, key))
      go()
    },
    undo() {
      if (!session.state.canUndo) return
      session.gone = false
      session.write(withoutLast(session.votes.value))
      go()
    },
    run: () => void session.run().then(refresh),
    take() {
      const { duel, target } = session
      session.note = duel && target ? takeBest(duel, target) : say(session.targetIsUnclear ? 'takeUnclear' : 'takeNone')
      refresh()
    },
    narrow() {
      const { duel, votes } = session
      if (!duel || !votes || session.running) return
      session.write(withLine(votes.value, duel.narrow))
      go()
    },
    setAuto(on) {
      session.auto = on
      refresh()
    },
    picturesGone() {
      session.gone = true
      refresh()
    },
    addressOf: ({ filename, subfolder, type }) => api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
  }
}

/**
 * Writes the best preference where a run reads the numbers. Nothing is written where a link sets one of them.
 *
 * @type {(duel: import('./duel/view.js').Duel, target: any) => string} what to tell the artist
 */
function takeBest(duel, target) {
  const slots = slotsOf(target).slots
  const { shareOf, byOrder } = matched(duel, slots)
  const wanted = numbered(target, 'weight').map((name, i) => ({ name, value: shareOf(i), used: slots ? Boolean(slots[i]?.used) : true }))
  wanted.push({ name: KL_SCALE, value: duel.best.kl_scale, used: true })
  const stuck = stuckNumber(target, Object.fromEntries(wanted.flatMap(({ name, value, used }) => (used ? [[name, value]] : []))))
  if (stuck) return stuck
  changing(() => wanted.forEach(({ name, value }) => writeNumber(target, name, value)))
  app.canvas?.setDirty(true, true)
  const copies = instancesOf(target.graph)
  return say(byOrder ? 'takenByOrder' : copies > 1 ? 'takenShared' : 'taken', { title: target.title, number: copies })
}

/** @param {any} node */
function addView(node) {
  const session = new Session(node)
  let shown = ''
  /** @type {DuelView} */
  const view = new DuelView(actionsOf(session, () => refresh()))
  function refresh() {
    const state = session.state
    const text = JSON.stringify(state)
    if (text === shown) return
    shown = text
    view.show(state)
    app.canvas?.setDirty(true, true)
  }
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => MIN_HEIGHT }
  const widget = node.addDOMWidget('preference_duel', 'DIFFUSION_BLEND_PREFERENCE_DUEL', view.element, options)
  widget.serialize = false
  widget.label = say('label')
  refresh()
  const [width, height] = node.computeSize()
  node.setSize([Math.max(node.size[0], width, MIN_WIDTH), Math.max(node.size[1], height)])
  showPairs(node, session, refresh)
  followSession(node, session, { node, element: view.element, refresh })
}

/** @type {(node: any, session: Session, refresh: () => void) => void} */
function showPairs(node, session, refresh) {
  const { onExecuted } = node
  node.onExecuted = function (/** @type {any} */ output, /** @type {any[]} */ ...rest) {
    const duel = output?.duel?.[0]
    if (duel) session.made(duel)
    refresh()
    return onExecuted?.call(this, output, ...rest)
  }
}

/** @type {(node: any, session: Session, view: import('./pad/live.js').LivePad) => void} Follow the runs while the node is in a graph. */
function followSession(node, session, view) {
  const ended = (/** @type {any} */ { detail }) => {
    session.ended(detail?.prompt_id)
    view.refresh()
  }
  const queueChanged = () => void session.checkQueue().then(view.refresh)
  const added = () => {
    sessions.add(session)
    ENDS.forEach((event) => api.addEventListener(event, ended))
    QUEUE.forEach((event) => api.addEventListener(event, queueChanged))
  }
  const removed = () => {
    sessions.delete(session)
    ENDS.forEach((event) => api.removeEventListener(event, ended))
    QUEUE.forEach((event) => api.removeEventListener(event, queueChanged))
    session.running = false // the end of the run is not heard
  }
  followLife(node, view, added, removed)
}

app.registerExtension({
  name: 'DiffusionBlend.PreferenceDuel',
  /** @param {any} node */
  nodeCreated(node) {
    if (node.comfyClass !== NODE || typeof node.addDOMWidget !== 'function') return
    setLanguage(app.extensionManager?.setting?.get('Comfy.Locale'))
    addView(node)
  }
})
