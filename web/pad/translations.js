/** Words in the host's language; English where there is no translation. */

/**
 * @template {Record<string, string>} Words
 * @param {Record<string, Words> & { en: Words }} words language -> key -> text, with {values} in braces
 * @returns {{ setLanguage: (locale: unknown) => void, say: (key: keyof Words, values?: Record<string, string | number>) => string }}
 */
export function translations(words) {
  /** @type {Words} */
  let chosen = words.en
  return {
    setLanguage(locale) {
      chosen = words[String(locale ?? 'en')] ?? words.en
    },
    say: (key, values = {}) => chosen[key].replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ''))
  }
}
