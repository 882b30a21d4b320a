/**
 * Opens the host's context menus. Their text can come from a workflow or from a file's name, and older front ends read the text as
 * HTML (before ComfyUI_frontend pull request 8887).
 *
 * @typedef {{ content: string, callback: () => void }} Entry
 */

/** @type {Record<string, string>} */
const LOOKALIKES = { '<': '\u2039', '>': '\u203a' }

/** @type {(text: string) => string} The text without the characters that begin and end an HTML tag: every front end shows the same. */
export const plain = (text) => text.replace(/[<>]/g, (character) => LOOKALIKES[character])

/** @type {(entries: Entry[], event: Event) => void} */
export function openEntries(entries, event) {
  open(entries.map((entry) => ({ ...entry, content: plain(entry.content) })), { event })
}

/** @type {(names: string[], event: Event, choose: (name: string) => void) => void} The host's list with its search. */
export function openNames(names, event, choose) {
  // A name stays a string where possible, because the search finds the widget by its list of strings.
  const entries = names.map((name) => (plain(name) === name ? name : { content: plain(name), name }))
  const callback = (/** @type {any} */ chosen) => choose(typeof chosen === 'string' ? chosen : chosen.name)
  open(entries, { event, className: 'dark', callback })
}

/** @type {(entries: any[], options: object) => void} */
function open(entries, options) {
  const { LiteGraph } = /** @type {any} */ (window)
  new LiteGraph.ContextMenu(entries, options)
}
