/**
 * The text of the votes, as preference_learning/votes.py reads it. Pure functions on strings.
 *
 * @typedef {'1' | '2' | '0' | 'x'} Key the first is better, the second is, they are equal, both are bad
 */

/** @type {Record<Key, string>} */
const OUTCOMES = { 1: '>', 2: '<', 0: '=', x: 'x' }
const SHORT = /^[120x](\s+[120x])*$/

/** @type {(text: string, line: string) => string} */
export const withLine = (text, line) => (text.trim() ? `${text.trimEnd()}\n${line}` : line)

/** @type {(text: string, options: string[], key: Key) => string} One more vote about two options. */
export const withVote = (text, [first, second], key) => withLine(text, `${first} ${OUTCOMES[key]} ${second}`)

/** @type {(text: string) => string} Without the last entry; comments and empty lines behind it go too. */
export function withoutLast(text) {
  const lines = text.split('\n')
  while (lines.length) {
    const words = (lines.pop() ?? '').split('#')[0].trim()
    if (!words) continue
    if (SHORT.test(words) && words.length > 1) lines.push(words.slice(0, -1).trim())
    break
  }
  return lines.join('\n')
}
