/** HTML elements with their style. */

/** @type {(tag: string, style: Partial<CSSStyleDeclaration>, ...children: any[]) => any} */
export function make(tag, style, ...children) {
  const element = document.createElement(tag)
  Object.assign(element.style, style)
  element.append(...children)
  return element
}

/** @type {(part: string, action: () => void) => HTMLButtonElement} */
export function button(part, action) {
  const element = make('button', { font: 'inherit', padding: '5px 12px', borderRadius: '6px', cursor: 'pointer', border: '1px solid' })
  element.type = 'button'
  element.dataset.part = part
  element.addEventListener('click', action)
  return element
}
