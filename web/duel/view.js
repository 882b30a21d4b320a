/**
 * The duel as an element: two pictures, the buttons below them, and what the votes taught. Knows nothing of the graph.
 *
 * @typedef {import('./votes.js').Key} Key
 * @typedef {import('./learned.js').Learned & { votes: string, count: number, options: string[], labels: string[], narrow: string,
 *   files?: string[], sides: { filename: string, subfolder: string, type: string }[][] }} Duel
 *
 * @typedef {object} DuelState
 * @property {Duel | null} duel
 * @property {'choose' | 'waiting' | 'stale' | 'gone' | 'unconnected' | 'linked'} phase
 * @property {boolean} canUndo
 * @property {boolean} auto the next pair is made by itself
 * @property {string} target the title of the node that takes the best preference, or empty
 * @property {boolean} unclear the copies of a subgraph have such a node each
 * @property {string} note a message, or empty
 * @property {import('../pad/theme.js').Theme} theme
 *
 * @typedef {object} DuelActions
 * @property {(key: Key) => void} vote
 * @property {() => void} undo
 * @property {() => void} run makes the pair that is due
 * @property {() => void} take
 * @property {() => void} narrow
 * @property {(on: boolean) => void} setAuto
 * @property {() => void} picturesGone
 * @property {(picture: { filename: string, subfolder: string, type: string }) => string} addressOf
 */

import { svg } from '../pad/drawing.js'
import { FONT_FAMILY } from '../pad/layout.js'
import { button, make } from './elements.js'
import { HEIGHT, WIDTH, drawLearned } from './learned.js'
import { say } from './words.js'

export const [MIN_WIDTH, MIN_HEIGHT] = [520, 480]
export const VIEW_CLASS = 'diffusion-blend-duel'
/** @type {Record<string, Key>} */
const KEYS = { 1: '1', 2: '2', 0: '0', x: 'x', X: 'x' }

/** The element, and the two ways of talking to it: `show` and the actions. */
export class DuelView {
  /** @param {DuelActions} actions */
  constructor(actions) {
    this.actions = actions
    /** @type {DuelState | null} */
    this.state = null
    /** @type {string} The pictures on screen, so that they are not loaded again. */
    this.loaded = ''
    this.build()
    this.listen()
  }

  build() {
    const { vote, undo, take, narrow, run, setAuto } = this.actions
    this.heading = make('div', { fontWeight: 'bold' })
    this.heading.setAttribute('aria-live', 'polite')
    this.sides = [this.makeSide('1'), this.makeSide('2')]
    this.again = button('run', run)
    const pictures = make('div', { display: 'flex', gap: '8px', flex: '1 1 220px', minHeight: '0' }, ...this.sides)
    this.equal = button('equal', () => vote('0'))
    this.bad = button('bad', () => vote('x'))
    this.undo = button('undo', undo)
    this.auto = make('input', {})
    Object.assign(this.auto, { type: 'checkbox' })
    this.auto.dataset.part = 'auto'
    this.auto.addEventListener('change', () => setAuto(this.auto.checked))
    this.autoLabel = make('span', {})
    const row = { display: 'flex', gap: '8px', alignItems: 'center', flexWrap: 'wrap' }
    const auto = make('label', { marginLeft: 'auto', display: 'flex', gap: '4px', alignItems: 'center' }, this.auto, this.autoLabel)
    this.picture = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, 'data-part': 'learned' })
    Object.assign(this.picture.style, { width: `${WIDTH}px`, flex: 'none', fontFamily: FONT_FAMILY })
    this.best = make('div', {})
    this.best.dataset.part = 'best-text'
    this.legend = make('div', { fontSize: '11px' })
    this.take = button('take', take)
    this.narrow = button('narrow', narrow)
    const words = make('div', { display: 'flex', flexDirection: 'column', gap: '6px', flex: '1 1 180px', minWidth: '0' }, this.best, this.legend, make('div', row, this.take, this.narrow))
    this.learned = make('div', { display: 'flex', flexWrap: 'wrap', gap: '10px', alignItems: 'center' }, this.picture, words)
    const style = { display: 'flex', flexDirection: 'column', gap: '8px', padding: '10px', borderRadius: '8px', width: '100%', height: '100%', minHeight: `${MIN_HEIGHT}px`, boxSizing: 'border-box', font: `13px ${FONT_FAMILY}`, outline: 'none' }
    this.element = make('div', /** @type {any} */ (style), make('div', row, this.heading, this.again), pictures, make('div', row, this.equal, this.bad, this.undo, auto), this.learned)
    this.element.className = VIEW_CLASS
    this.element.tabIndex = 0
  }

  /** @type {(key: '1' | '2') => HTMLButtonElement} */
  makeSide(key) {
    const side = button(`side-${key}`, () => this.actions.vote(key))
    Object.assign(side.style, { flex: '1 1 0', minWidth: '0', padding: '0', display: 'flex', flexWrap: 'wrap', overflow: 'hidden', background: 'transparent' })
    return side
  }

  listen() {
    this.element.addEventListener('pointerdown', (/** @type {PointerEvent} */ event) => {
      if (event.button === 0) event.stopPropagation() // Nodes 2.0 would drag the node
    })
    this.element.addEventListener('click', () => this.element.focus({ preventScroll: true }))
    this.element.addEventListener('keydown', (/** @type {KeyboardEvent} */ event) => this.onKey(event))
  }

  /** @type {(event: KeyboardEvent) => void} */
  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return
    const key = KEYS[event.key]
    if (key) this.actions.vote(key)
    else if (event.key === 'Backspace') this.actions.undo()
    else if (event.key !== 'Delete') return // Delete would remove the node
    event.preventDefault()
    event.stopPropagation()
  }

  /** @param {DuelState} state */
  show(state) {
    this.state = state
    const { duel, phase, theme } = state
    const choosing = phase === 'choose'
    this.element.dataset.phase = phase
    Object.assign(this.element.style, { background: theme.background, color: theme.text })
    const number = duel ? ` \u00b7 ${say('votes', { number: duel.count + 1 })}` : ''
    this.heading.textContent = choosing ? say('ask') + number : phase === 'stale' || phase === 'gone' ? '' : say(phase)
    this.again.textContent = say(phase === 'gone' ? 'gone' : 'stale')
    this.again.style.display = phase === 'stale' || phase === 'gone' ? '' : 'none'
    this.showPictures(duel, choosing)
    for (const part of [this.equal, this.bad]) part.disabled = !choosing
    this.equal.textContent = say('equal')
    this.bad.textContent = say('bad')
    this.undo.textContent = say('undo')
    this.undo.title = say('undoHelp')
    this.undo.disabled = !state.canUndo
    this.auto.checked = state.auto
    this.autoLabel.textContent = say('auto')
    this.showLearned(state)
    for (const part of this.element.querySelectorAll('button')) {
      Object.assign(part.style, { color: theme.text, borderColor: theme.line, opacity: part.disabled ? '0.5' : '1' })
      if (!part.dataset.part?.startsWith('side')) part.style.background = 'transparent'
    }
  }

  /** @type {(duel: Duel | null, choosing: boolean) => void} */
  showPictures(duel, choosing) {
    this.sides.forEach((side, i) => {
      side.disabled = !choosing
      side.title = side.ariaLabel = say(i ? 'second' : 'first')
    })
    const pictures = duel?.sides ?? [[], []]
    const wanted = JSON.stringify(pictures)
    if (wanted === this.loaded) return
    this.loaded = wanted
    this.sides.forEach((side, i) => side.replaceChildren(...pictures[i].map((picture) => this.image(picture, pictures[i].length))))
  }

  /** @type {(picture: { filename: string, subfolder: string, type: string }, count: number) => HTMLImageElement} */
  image(picture, count) {
    const columns = Math.ceil(Math.sqrt(count))
    const share = `${100 / columns}%`
    const image = make('img', { width: share, height: `${100 / Math.ceil(count / columns)}%`, objectFit: 'contain', imageRendering: 'auto', pointerEvents: 'none' })
    image.addEventListener('error', () => this.actions.picturesGone())
    image.addEventListener('load', () => {
      if (image.naturalWidth < 128) image.style.imageRendering = 'pixelated'
    })
    image.src = this.actions.addressOf(picture)
    return image
  }

  /** @type {(state: DuelState) => void} */
  showLearned({ duel, target, unclear, note, theme }) {
    const known = duel !== null && duel.count > 0
    this.learned.style.visibility = known ? 'visible' : 'hidden'
    if (!known) return
    const shares = duel.names.map((name, i) => `${name} ${duel.best.weights[i].toFixed(2)}`)
    this.best.textContent = `${say('best')}: ${shares.join(', ')}, ${say('kl', { value: duel.best.kl_scale })}`
    this.legend.textContent = note || say(duel.names.length <= 3 ? 'legend' : 'spread')
    this.picture.replaceChildren(...drawLearned(duel, theme))
    this.take.textContent = say('take')
    this.take.disabled = !target
    this.take.title = target ? say('takeHelp', { title: target }) : say(unclear ? 'takeUnclear' : 'takeNone')
    this.narrow.textContent = say('narrow')
    this.narrow.title = say('narrowHelp')
  }
}
