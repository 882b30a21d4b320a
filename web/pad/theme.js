/**
 * The pad's colours, taken from the host's theme and moved away from the background until they can be read.
 *
 * @typedef {[number, number, number]} Colour red, green, blue, 0 to 255
 *
 * @typedef {object} Theme
 * @property {string} background
 * @property {string} text
 * @property {string} muted
 * @property {string} warning
 * @property {string} line
 */

export const READABLE = 4.5 // WCAG 2.2, success criterion 1.4.3 (text)
const VISIBLE = 3 // 1.4.11 (lines and marks)

/** @type {(colour: Colour) => number} Relative luminance, WCAG 2.2. */
function luminance(colour) {
  const [red, green, blue] = colour.map((part) => {
    const share = part / 255
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4
  })
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue
}

/** @type {(a: Colour, b: Colour) => number} The contrast ratio of two colours, 1 to 21. */
export function contrast(a, b) {
  const [light, dark] = [luminance(a), luminance(b)].sort((x, y) => y - x)
  return (light + 0.05) / (dark + 0.05)
}

/**
 * @param {Colour} colour
 * @param {Colour} background
 * @param {number} ratio
 * @returns {Colour} the colour, mixed with black or white as little as the ratio needs
 */
export function readable(colour, background, ratio = READABLE) {
  /** @type {Colour[]} */
  const ends = [
    [0, 0, 0],
    [255, 255, 255]
  ]
  const end = contrast(ends[0], background) > contrast(ends[1], background) ? ends[0] : ends[1]
  for (let share = 0; share < 1; share += 0.05) {
    const mixed = /** @type {Colour} */ (colour.map((part, i) => Math.round(part + share * (end[i] - part))))
    if (contrast(mixed, background) >= ratio) return mixed
  }
  return end
}

/** @type {CanvasRenderingContext2D | null} */
let painter = null

/** @type {(css: string, fallback: string) => Colour} Any colour that CSS knows. */
function parse(css, fallback) {
  painter ??= Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d', {
    willReadFrequently: true
  })
  if (!painter) return [128, 128, 128]
  painter.fillStyle = fallback
  painter.fillStyle = css
  painter.fillRect(0, 0, 1, 1)
  const [red, green, blue] = painter.getImageData(0, 0, 1, 1).data
  return [red, green, blue]
}

/** @type {Theme | null} */
let current = null

/** @returns {Theme} the colours of now; the same object until the host's theme changes */
export function theme() {
  if (current) return current
  watch()
  const style = getComputedStyle(document.documentElement)
  const read = (/** @type {string} */ name, /** @type {string} */ fallback) =>
    parse(style.getPropertyValue(name).trim(), fallback)
  const background = read('--comfy-input-bg', '#222')
  const css = (/** @type {Colour} */ colour, ratio = READABLE) => `rgb(${readable(colour, background, ratio).join(' ')})`
  const muted = read('--descrip-text', '#999')
  current = {
    background: `rgb(${background.join(' ')})`,
    text: css(read('--input-text', '#ddd')),
    muted: css(muted),
    warning: css([255, 138, 128]),
    line: css(muted, VISIBLE)
  }
  return current
}

/** @type {MutationObserver | undefined} */
let watching

function watch() {
  watching ??= new MutationObserver(() => (current = null))
  for (const element of [document.documentElement, document.body]) {
    watching.observe(element, { attributes: true, attributeFilter: ['class', 'style'] })
  }
}
