/** The duel that one view shows: its pairs so far, the widget of its votes, and whether a run was asked for. */

import { app } from '../../../scripts/app.js'
import { widgetOf } from '../pad/adapters.js'
import { instancesOf, origin } from '../pad/links.js'
import { ownersOfWeights } from '../pad/places.js'
import { attemptsToQueue, newestRun, runsInQueue } from '../pad/tabs.js'
import { theme } from '../pad/theme.js'
import { changing } from '../pad/undo.js'
import { duelOf } from './saved.js'

const [DUEL, WEIGHTS] = ['PreferenceDuel', 'PreferenceWeights']
const [SHOWN, MANUAL] = ['diffusion_blend_duel', 'diffusion_blend_duel_manual']
const MOST_REMEMBERED = 100

/** @type {Set<Session>} Those whose view is in a graph. */
export const sessions = new Set()

/** @type {(node: any) => Session | null} The duel whose best preference goes into a Preference Weights. */
export const sessionOf = (node) => [...sessions].find((session) => session.target === node) ?? null

export class Session {
  /** @param {any} node the view's node */
  constructor(node) {
    this.node = node
    /** @type {Map<string, import('./view.js').Duel>} The pairs of this page by the votes before them, for undo. */
    this.pairs = new Map()
    this.running = false
    /** @type {string} The id of the run that was asked for; empty while it is not known. */
    this.runId = ''
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

  /** @returns {import('./view.js').Duel | null} the pair for the votes of now, else the last one */
  get duel() {
    return this.pairs.get(this.votes?.value ?? '') ?? duelOf(this.node.properties?.[SHOWN])
  }

  /** @returns {any} the Preference Weights that the best preference is written into */
  get target() {
    const start = origin(this.duelNode, 'start')
    if (start?.comfyClass === WEIGHTS) return start
    return this.targetIsUnclear ? null : (this.owners[0] ?? null)
  }

  /** @returns {any[]} the Preference Weights that are connected to the duel's loader */
  get owners() {
    const loader = origin(this.duelNode, 'reward_loras')
    return loader ? [...new Set(ownersOfWeights(loader))] : []
  }

  /** @returns {boolean} whether the copies of the loader's subgraph have a Preference Weights each */
  get targetIsUnclear() {
    return this.owners.length > 1 && instancesOf(origin(this.duelNode, 'reward_loras').graph) > 1
  }

  /** @returns {import('./view.js').DuelState['phase']} */
  get phase() {
    if (!this.duelNode) return 'unconnected'
    if (!this.votes) return 'linked'
    if (this.running) return 'waiting'
    if (this.gone) return 'gone'
    return this.duel?.votes === this.votes.value ? 'choose' : 'stale'
  }

  /** Whether the next pair is made by itself. */
  get auto() {
    return this.node.properties?.[MANUAL] !== true
  }

  set auto(on) {
    this.node.properties[MANUAL] = !on
  }

  /** @returns {import('./view.js').DuelState} */
  get state() {
    return {
      duel: this.duel,
      phase: this.phase,
      canUndo: Boolean(this.votes?.value?.trim()) && !this.running,
      auto: this.auto,
      target: this.target?.title ?? '',
      unclear: this.targetIsUnclear,
      note: this.note,
      theme: theme()
    }
  }

  /** @type {(duel: import('./view.js').Duel) => void} The node ran. */
  made(duel) {
    this.running = this.gone = false
    this.pairs.delete(duel.votes)
    this.pairs.set(duel.votes, duel)
    if (this.pairs.size > MOST_REMEMBERED) this.pairs.delete([...this.pairs.keys()][0])
    this.node.properties[SHOWN] = duel
  }

  /** @type {(text: string) => void} Write the votes as typing them would, as one step of undo. */
  write(text) {
    changing(() => {
      this.votes.value = text
      this.votes.callback?.(text, app.canvas, this.duelNode)
    })
    this.note = ''
  }

  /** One run, and no vote is taken until it has ended. */
  async run() {
    if (this.running) return
    this.running = true
    this.runId = ''
    const [attempts, before] = [attemptsToQueue(), newestRun()]
    const queued = await app.queuePrompt(0).catch(() => false)
    const id = newestRun()
    const isRefused = queued === false || (id === before && attemptsToQueue() > attempts)
    if (isRefused) this.running = false
    else if (id !== before) this.runId = id // otherwise an extension has queued it in a way of its own
    await this.checkQueue()
  }

  /** @type {(id: unknown) => void} A run has ended, perhaps another one than this session's. */
  ended(id) {
    if (!this.runId || !id || id === this.runId) this.running = false
  }

  /** Do not wait for a run that is no longer in the queue: it was deleted there, or it ended while the page was offline. */
  async checkQueue() {
    const id = this.runId
    if (!this.running || !id) return
    const queued = await runsInQueue().catch(() => null)
    if (queued && id === this.runId && !queued.includes(id)) this.running = false
  }
}
