/** One panel of pictures over the page, beside the pad that asks for it. It takes no pointer events. */

import { theme } from './theme.js'

export const FLOATING_CLASS = 'diffusion-blend-pictures'
const GAP = 12 // pixels between the pad and the panel
const FADING = 'opacity 80ms linear'

/** @typedef {{ url: string, opacity: number, caption: string }} Shown */

/** @type {HTMLElement | null} */
let panel = null
let shown = ''

/** @type {(beside: Element, title: string, pictures: Shown[], size: number) => void} */
export function showPictures(beside, title, pictures, size) {
  panel ??= makePanel()
  const look = JSON.stringify([title, pictures, size])
  if (look !== shown) panel.replaceChildren(makeText(title), makeRow(pictures, size))
  shown = look
  const { background, text, line } = theme()
  Object.assign(panel.style, { display: 'block', background, color: text, borderColor: line })
  place(panel, beside.getBoundingClientRect())
}

export function hidePictures() {
  if (panel) panel.style.display = 'none'
}

function makePanel() {
  const made = document.createElement('div')
  made.className = FLOATING_CLASS
  Object.assign(made.style, {
    position: 'fixed',
    zIndex: '9999',
    padding: '8px',
    borderRadius: '8px',
    border: '1px solid',
    font: '12px Inter, Arial, sans-serif',
    pointerEvents: 'none'
  })
  document.body.append(made)
  return made
}

/** @type {(text: string) => HTMLElement} */
function makeText(text) {
  const made = document.createElement('div')
  made.textContent = text
  made.style.marginBottom = '4px'
  return made
}

/** @type {(pictures: Shown[], size: number) => HTMLElement} */
function makeRow(pictures, size) {
  const row = document.createElement('div')
  Object.assign(row.style, { display: 'flex', gap: '6px' })
  row.append(
    ...pictures.map(({ url, opacity, caption }) => {
      const [figure, image] = [document.createElement('figure'), document.createElement('img')]
      Object.assign(figure.style, { margin: '0', width: `${size}px` })
      Object.assign(image.style, { width: '100%', display: 'block', opacity: String(opacity), transition: FADING })
      image.src = url
      figure.append(image, makeText(caption))
      return figure
    })
  )
  return row
}

/** @type {(element: HTMLElement, box: DOMRect) => void} To the right of the box if there is room, else to its left. */
function place(element, box) {
  const { offsetWidth: width, offsetHeight: height } = element
  const right = box.right + GAP
  const left = right + width <= window.innerWidth ? right : Math.max(0, box.left - GAP - width)
  const top = Math.min(Math.max(0, box.top), Math.max(0, window.innerHeight - height))
  Object.assign(element.style, { left: `${left}px`, top: `${top}px` })
}
