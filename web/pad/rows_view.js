/**
 * The rows of Load Reward LoRAs as an element: on or off, colour, picture, name, strength, remove; drag to reorder.
 * Knows nothing of the graph.
 *
 * @typedef {object} Row
 * @property {string} file
 * @property {number} strength
 * @property {boolean} on
 * @property {string} picture address of its preview picture, or empty
 *
 * @typedef {object} RowActions
 * @property {(index: number, event: Event) => void} choose
 * @property {(index: number, change: Partial<Row>) => void} change
 * @property {(from: number, to: number) => void} move
 * @property {(index: number) => void} remove
 * @property {() => void} add
 */

import { NONE, isCross, shortName } from './adapters.js'
import { COLOURS } from './drawing.js'
import { hidePictures, showPictures } from './floating.js'
import { say } from './words.js'

export const ROW_HEIGHT = 30
export const ROWS_CLASS = 'diffusion-blend-rows'

/** @type {(tag: string, style: Partial<CSSStyleDeclaration>, more?: Record<string, unknown>) => any} */
const make = (tag, style, more = {}) => {
  const element = document.createElement(tag)
  Object.assign(element.style, style)
  return Object.assign(element, more)
}

const LARGE = 256 // pixels of a preview picture under the pointer
const FIELD = { border: 'none', borderRadius: '4px', height: '24px', font: '12px Inter, Arial, sans-serif' }

export class RowsView {
  /** @param {RowActions} actions */
  constructor(actions) {
    this.actions = actions
    this.element = make('div', { display: 'flex', flexDirection: 'column', gap: '2px', width: '100%' })
    this.element.className = ROWS_CLASS
    this.dragged = -1
  }

  /** @type {(rows: Row[], room: boolean, theme: import('./theme.js').Theme) => void} */
  show(rows, room, theme) {
    const field = { ...FIELD, background: theme.background, color: theme.text }
    const off = { ...field, color: theme.muted }
    const elements = rows.map((row, i) => this.makeRow(row, i, row.on ? field : off))
    const add = make('button', { ...field, cursor: 'pointer', width: '100%' }, { type: 'button', disabled: !room })
    add.dataset.part = 'add'
    add.textContent = say('addLora')
    add.onclick = () => this.actions.add()
    this.element.replaceChildren(...elements, ...(room ? [add] : []))
  }

  /** @type {(row: Row, index: number, field: object) => HTMLElement} */
  makeRow(row, index, field) {
    const line = make('div', { display: 'flex', gap: '4px', alignItems: 'center', height: `${ROW_HEIGHT - 2}px` })
    line.dataset.part = 'row'
    const parts = [
      this.makeGrip(index, field),
      this.makeSwitch(row, index),
      this.makeColour(index, row),
      ...(row.picture ? [this.makePicture(row)] : []),
      this.makeName(row, index, field),
      this.makeStrength(row, index, field),
      this.makeRemove(index, field)
    ]
    line.append(...parts)
    return line
  }

  /** @type {(index: number, field: object) => HTMLElement} */
  makeGrip(index, field) {
    const grip = make('span', { ...field, cursor: 'grab', lineHeight: '24px', padding: '0 2px', touchAction: 'none' })
    grip.textContent = '\u283f'
    grip.title = say('reorder')
    grip.dataset.part = 'grip'
    grip.onpointerdown = (/** @type {PointerEvent} */ event) => {
      event.stopPropagation()
      this.dragged = index
      grip.setPointerCapture(event.pointerId)
    }
    grip.onpointerup = (/** @type {PointerEvent} */ event) => {
      const from = this.dragged
      this.dragged = -1
      const to = this.rowAt(event.clientY)
      if (from >= 0 && to >= 0 && to !== from) this.actions.move(from, to)
    }
    return grip
  }

  /** @type {(y: number) => number} The row at a height on the page; -1 outside. */
  rowAt(y) {
    const lines = [...this.element.querySelectorAll('[data-part=row]')]
    return lines.findIndex((line) => {
      const { top, bottom } = line.getBoundingClientRect()
      return y >= top && y < bottom
    })
  }

  /** @type {(row: Row, index: number) => HTMLElement} */
  makeSwitch(row, index) {
    const box = make('input', { margin: '0', accentColor: COLOURS[index] }, { type: 'checkbox', checked: row.on })
    box.title = say('switch')
    box.dataset.part = 'on'
    box.onchange = () => this.actions.change(index, { on: box.checked })
    return box
  }

  /** @type {(row: Row) => HTMLElement} */
  makePicture({ picture, file }) {
    const image = make('img', { width: '24px', height: '24px', borderRadius: '4px', objectFit: 'cover', flex: 'none' })
    Object.assign(image, { src: picture, alt: '', title: shortName(file) })
    image.dataset.part = 'picture'
    image.onpointerenter = () => showPictures(image, shortName(file), [{ url: picture, opacity: 1, caption: '' }], LARGE)
    image.onpointerleave = hidePictures
    return image
  }

  /** @type {(index: number, row: Row) => HTMLElement} The colour of the adapter's corner in the pad. */
  makeColour(index, { file, on }) {
    const colour = make('span', { width: '14px', height: '14px', borderRadius: '7px', flex: 'none' })
    colour.dataset.part = 'colour'
    if (isCross(file)) {
      // It has no corner: its gate follows from the weights of its two adapters.
      Object.assign(colour.style, { lineHeight: '14px', textAlign: 'center' })
      colour.textContent = '\u00d7'
      colour.title = say('cross')
      return colour
    }
    Object.assign(colour.style, { background: on ? COLOURS[index] : 'none', border: `2px solid ${COLOURS[index]}` })
    colour.style.boxSizing = 'border-box'
    return colour
  }

  /** @type {(row: Row, index: number, field: object) => HTMLElement} */
  makeName(row, index, field) {
    const look = { flex: '1', minWidth: '0', textAlign: 'left', cursor: 'pointer' }
    const clipped = { overflow: 'hidden', textOverflow: 'ellipsis', whiteSpace: 'nowrap' }
    const name = make('button', { ...field, ...look, ...clipped }, { type: 'button' })
    name.textContent = row.file === NONE ? say('chooseLora') : shortName(row.file)
    name.title = row.file === NONE ? say('chooseLora') : row.file
    name.dataset.part = 'name'
    name.onclick = (/** @type {MouseEvent} */ event) => this.actions.choose(index, event)
    return name
  }

  /** @type {(row: Row, index: number, field: object) => HTMLElement} */
  makeStrength(row, index, field) {
    const number = make('input', { ...field, width: '52px' }, { type: 'number', step: '0.05', min: '-20', max: '20' })
    number.value = String(row.strength)
    number.title = say('strength')
    number.dataset.part = 'strength'
    number.onkeydown = (/** @type {KeyboardEvent} */ event) => event.stopPropagation()
    number.onchange = () => {
      const typed = number.valueAsNumber // NaN for an empty field and for text that is no number
      const strength = Number.isNaN(typed) ? row.strength : Math.min(20, Math.max(-20, typed))
      number.value = String(strength)
      if (strength !== row.strength) this.actions.change(index, { strength })
    }
    return number
  }

  /** @type {(index: number, field: object) => HTMLElement} */
  makeRemove(index, field) {
    const remove = make('button', { ...field, width: '22px', cursor: 'pointer' }, { type: 'button' })
    remove.textContent = '\u00d7'
    remove.title = say('remove')
    remove.dataset.part = 'remove'
    remove.onclick = () => this.actions.remove(index)
    return remove
  }
}
