/** A panel to vote on any two pictures that a pad remembers. The vote goes into the duel's votes. */

import { toHundredths } from '../pad/coordinates.js'
import { FONT_FAMILY } from '../pad/layout.js'
import { refreshSoon } from '../pad/live.js'
import { keyOfNode } from '../pad/node_ids.js'
import { slotsOf } from '../pad/places.js'
import { rememberedOf, weightsFor } from '../pad/remembered.js'
import { theme } from '../pad/theme.js'
import { button, make } from './elements.js'
import { withVote } from './votes.js'
import { say } from './words.js'

/** @typedef {import('./session.js').Session} Session */
/** @typedef {{ image: import('../pad/remembered.js').Remembered, option: string }} Choice */

export const COMPARE_CLASS = 'diffusion-blend-compare'
/** @type {Record<string, import('./votes.js').Key>} */
const KEYS = { 1: '1', 2: '2', 0: '0', x: 'x', X: 'x' }

/** @type {(session: Session) => Choice[]} The remembered pictures that the duel's adapters made, the newest first. */
function choicesOf({ target, duel }) {
  if (!target || !duel) return []
  const slots = slotsOf(target).slots ?? duel.names.map((name) => ({ name, used: true }))
  const own = slots.flatMap(({ used }, i) => (used ? [i] : [])) // a duel is about the adapters that are switched on
  if (own.length !== duel.names.length) return []
  const found = rememberedOf(keyOfNode(target)).flatMap((image) => {
    const weights = weightsFor(image, slots)
    return weights ? [{ image, option: `${toHundredths(own.map((i) => weights[i])).join(' ')} kl ${image.klScale}` }] : []
  })
  return found.reverse()
}

/** @type {(session: Session) => boolean} */
export const canCompare = (session) => Boolean(session.votes) && choicesOf(session).length >= 2

/** @type {(session: Session) => void} */
export function openCompare(session) {
  document.querySelector(`.${COMPARE_CLASS}`)?.remove()
  const panel = new ComparePanel(session, choicesOf(session))
  document.body.append(panel.element)
  panel.element.focus()
}

class ComparePanel {
  /** @type {(session: Session, choices: Choice[]) => void} */
  constructor(session, choices) {
    this.session = session
    /** @type {Choice[]} At most two. */
    this.picked = []
    const { background, text, line } = theme()
    this.heading = make('div', { fontWeight: 'bold' }, say('pick'))
    this.heading.setAttribute('aria-live', 'polite')
    this.sides = /** @type {const} */ (['1', '2']).map((key) => this.makeSide(key, line))
    this.equal = button('compare-equal', () => this.vote('0'))
    this.bad = button('compare-bad', () => this.vote('x'))
    const close = button('compare-close', () => this.element.remove())
    Object.assign(this.equal, { textContent: say('equal') })
    Object.assign(this.bad, { textContent: say('bad') })
    Object.assign(close, { textContent: say('close') })
    for (const part of [this.equal, this.bad, close]) Object.assign(part.style, { color: text, borderColor: line, background: 'transparent' })
    this.pictures = choices.map((choice) => this.makePicture(choice, line))
    const row = { display: 'flex', gap: '8px', flexWrap: 'wrap' }
    const large = make('div', { display: 'flex', gap: '8px' }, ...this.sides)
    const gallery = make('div', { ...row, maxHeight: '30vh', overflowY: 'auto' }, ...this.pictures)
    const style = { position: 'fixed', inset: '0', margin: 'auto', width: 'min(90vw, 640px)', height: 'fit-content', maxHeight: '94vh', overflowY: 'auto', zIndex: '9999', padding: '14px', borderRadius: '8px', border: `1px solid ${line}`, background, color: text, font: `13px ${FONT_FAMILY}`, display: 'flex', flexDirection: 'column', gap: '10px', outline: 'none' }
    this.element = make('div', /** @type {any} */ (style), this.heading, large, make('div', row, this.equal, this.bad, close), gallery)
    Object.assign(this.element, { className: COMPARE_CLASS, tabIndex: -1, role: 'dialog', ariaLabel: say('compare') })
    this.element.addEventListener('keydown', (/** @type {KeyboardEvent} */ event) => this.onKey(event))
    this.show()
  }

  /** @type {(key: '1' | '2', line: string) => HTMLButtonElement} */
  makeSide(key, line) {
    const side = button(`compare-${key}`, () => this.vote(key))
    Object.assign(side.style, { flex: '1', height: 'min(45vh, 300px)', padding: '0', borderColor: line, background: 'transparent', overflow: 'hidden' })
    side.title = side.ariaLabel = say(key === '1' ? 'first' : 'second')
    return side
  }

  /** @type {(choice: Choice, line: string) => HTMLButtonElement} */
  makePicture(choice, line) {
    const picture = button('compare-picture', () => this.pick(choice))
    Object.assign(picture.style, { padding: '2px', borderColor: line, background: 'transparent' })
    picture.title = picture.ariaLabel = choice.option
    picture.append(pictureOf(choice.image.thumbnail, '56px'))
    return picture
  }

  /** @type {(choice: Choice) => void} A second click takes a picture back; a third picture replaces the second. */
  pick(choice) {
    if (this.picked.includes(choice)) this.picked = this.picked.filter((each) => each !== choice)
    else this.picked = [...this.picked.slice(0, 1), choice]
    this.show()
  }

  /** @type {(key: import('./votes.js').Key) => void} */
  vote(key) {
    const [first, second] = this.picked
    const { votes } = this.session
    if (!first || !second || !votes || this.session.running) return
    this.session.write(withVote(votes.value, [first.option, second.option], key))
    this.heading.textContent = say('written', { number: votes.value.split('\n').filter((/** @type {string} */ line) => line.trim()).length })
    this.picked = []
    this.show()
    refreshSoon()
  }

  /** @type {(event: KeyboardEvent) => void} */
  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return
    const key = KEYS[event.key]
    if (key) this.vote(key)
    else if (event.key === 'Escape') this.element.remove()
    else if (!['Backspace', 'Delete'].includes(event.key)) return // these would remove the node behind the panel
    event.preventDefault()
    event.stopPropagation()
  }

  show() {
    const ready = this.picked.length === 2
    this.sides.forEach((side, i) => {
      side.disabled = !ready
      side.replaceChildren(...(this.picked[i] ? [pictureOf(this.picked[i].image.picture, '100%')] : []))
    })
    for (const part of [this.equal, this.bad]) Object.assign(part, { disabled: !ready }).style.opacity = ready ? '1' : '0.5'
    for (const picture of this.pictures) picture.style.outline = this.picked.some(({ option }) => option === picture.title) ? '2px solid #ffd54f' : ''
    if (!this.element.contains(document.activeElement)) this.element.focus({ preventScroll: true })
  }
}

/** @type {(url: string, size: string) => HTMLImageElement} */
function pictureOf(url, size) {
  const image = make('img', { width: size, height: size, objectFit: 'contain', display: 'block', pointerEvents: 'none' })
  image.addEventListener('load', () => {
    if (image.naturalWidth < 128) image.style.imageRendering = 'pixelated'
  })
  image.src = url
  return image
}
