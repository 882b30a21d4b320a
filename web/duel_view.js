/**
 * Preference Duel View gets its picture: two images to choose from. The votes are the text of Preference Duel's own widget; the
 * view adds lines to it and runs the graph. Without the view the votes can be typed there.
 */

import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { numbered, ownersOfWeights, slotsOf, widgetOf } from './pad/adapters.js'
import { origin } from './pad/links.js'
import { keepFresh, retire } from './pad/live.js'
import { theme } from './pad/theme.js'
import { DuelView, MIN_HEIGHT, MIN_WIDTH } from './duel/view.js'
import { withLine, withVote, withoutLast } from './duel/votes.js'
import { say, setLanguage } from './duel/words.js'

const [NODE, DUEL, WEIGHTS] = ['PreferenceDuelView', 'PreferenceDuel', 'PreferenceWeights']
const [SHOWN, MANUAL] = ['diffusion_blend_duel', 'diffusion_blend_duel_manual']
const MOST_REMEMBERED = 100

/** The duel that one view shows: its pairs so far, and whether a run was asked for. */
class Session {
  /** @param {any} node the view's node */
  constructor(node) {
    this.node = node
    /** @type {Map<string, import('./duel/view.js').Duel>} The pairs of this page by the votes before them, for undo. */
    this.pairs = new Map()
    this.running = false
    this.gone = false
    this.note = ''
  }

  get duelNode() {
    const found = origin(this.node, 'duel')
    return found?.comfyClass === DUEL ? found : null
  }

  /** @returns {any} the widget of the votes; null where a link gives them */
  get votes() {
    const owner = this.duelNode
    const linked = owner?.inputs?.find((/** @type {any} */ input) => input.widget?.name === 'votes')?.link != null
    return linked ? null : widgetOf(owner, 'votes')
  }

  /** @returns {import('./duel/view.js').Duel | null} the pair for the votes of now, else the last one */
  get duel() {
    return this.pairs.get(this.votes?.value ?? '') ?? this.node.properties?.[SHOWN] ?? null
  }

  /** @returns {any} the Preference Weights that the best preference is written into */
  get target() {
    const start = origin(this.duelNode, 'start')
    if (start?.comfyClass === WEIGHTS) return start
    const loader = origin(this.duelNode, 'reward_loras')
    return loader ? (ownersOfWeights(loader)[0] ?? null) : null
  }

  /** @returns {import('./duel/view.js').DuelState['phase']} */
  get phase() {
    if (!this.duelNode) return 'unconnected'
    if (!this.votes) return 'linked'
    if (this.running) return 'waiting'
    if (this.gone) return 'gone'
    return this.duel?.votes === this.votes.value ? 'choose' : 'stale'
  }

  /** @returns {import('./duel/view.js').DuelState} */
  get state() {
    return {
      duel: this.duel,
      phase: this.phase,
      canUndo: Boolean(this.votes?.value?.trim()) && !this.running,
      auto: this.node.properties?.[MANUAL] !== true,
      target: this.target?.title ?? '',
      note: this.note,
      theme: theme()
    }
  }

  /** @type {(duel: import('./duel/view.js').Duel) => void} The node ran. */
  made(duel) {
    this.running = this.gone = false
    this.pairs.delete(duel.votes)
    this.pairs.set(duel.votes, duel)
    if (this.pairs.size > MOST_REMEMBERED) this.pairs.delete([...this.pairs.keys()][0])
    this.node.properties[SHOWN] = duel
  }

  /** @type {(text: string) => void} Write the votes as typing them would, as one step of undo. */
  write(text) {
    app.canvas?.emitBeforeChange?.()
    this.votes.value = text
    this.votes.callback?.(text, app.canvas, this.duelNode)
    app.canvas?.emitAfterChange?.()
    this.note = ''
  }

  /** One run, and no vote is taken until it has ended. */
  async run() {
    if (this.running) return
    this.running = true
    const queued = await app.queuePrompt(0).catch(() => false)
    if (queued === false) this.running = false
  }
}

/** @type {(session: Session, refresh: () => void) => import('./duel/view.js').DuelActions} */
function actionsOf(session, refresh) {
  const { node } = session
  const go = () => {
    if (node.properties?.[MANUAL] !== true && session.phase === 'stale') void session.run().then(refresh)
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
      if (duel && target) takeBest(duel, target)
      session.note = target ? say('taken', { title: target.title }) : say('takeNone')
      refresh()
    },
    narrow() {
      const { duel, votes } = session
      if (!duel || !votes || session.running) return
      session.write(withLine(votes.value, duel.narrow))
      go()
    },
    setAuto(on) {
      node.properties[MANUAL] = !on
      refresh()
    },
    picturesGone() {
      session.gone = true
      refresh()
    },
    addressOf: ({ filename, subfolder, type }) => api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
  }
}

/** @type {(duel: import('./duel/view.js').Duel, target: any) => void} The weights of the slots that hold an adapter. */
function takeBest({ best }, target) {
  const slots = slotsOf(target).slots
  const left = [...best.weights]
  app.canvas?.emitBeforeChange?.()
  numbered(target, 'weight').forEach((name, i) => {
    const used = slots ? slots[i]?.used : true
    setWidget(target, name, used ? (left.shift() ?? 0) : 0)
  })
  setWidget(target, 'kl_scale', best.kl_scale)
  app.canvas?.emitAfterChange?.()
  app.canvas?.setDirty(true, true)
}

/** @type {(node: any, name: string, value: number) => void} */
function setWidget(node, name, value) {
  const widget = widgetOf(node, name)
  if (!widget) return
  widget.value = value
  widget.callback?.(value, app.canvas, node)
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
  followRuns(node, session, refresh)
  followLife(node, { node, element: view.element, refresh })
}

/** @type {(node: any, session: Session, refresh: () => void) => void} */
function followRuns(node, session, refresh) {
  const { onExecuted, onRemoved } = node
  node.onExecuted = function (/** @type {any} */ output, /** @type {any[]} */ ...rest) {
    const duel = output?.duel?.[0]
    if (duel) session.made(duel)
    refresh()
    return onExecuted?.call(this, output, ...rest)
  }
  const ended = () => {
    session.running = false
    refresh()
  }
  const events = ['execution_error', 'execution_interrupted', 'execution_success']
  events.forEach((event) => api.addEventListener(event, ended))
  node.onRemoved = function (/** @type {any[]} */ ...args) {
    events.forEach((event) => api.removeEventListener(event, ended))
    return onRemoved?.apply(this, args)
  }
}

/** @type {(node: any, view: import('./pad/live.js').LivePad) => void} */
function followLife(node, view) {
  const { onAdded, onRemoved } = node
  node.onAdded = function (/** @type {any[]} */ ...args) {
    keepFresh(view)
    return onAdded?.apply(this, args)
  }
  node.onRemoved = function (/** @type {any[]} */ ...args) {
    retire(view)
    return onRemoved?.apply(this, args)
  }
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
