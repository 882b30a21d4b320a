/** Which weight of a duel's best preference belongs to which slot. Pure. */

import { shortName } from '../pad/adapters.js'

/**
 * The weights go by the names of the LoRAs where the slots hold these LoRAs, because rows may have moved since the pair was made.
 * Otherwise they go to the used slots in order.
 *
 * @param {{ best: { weights: number[] }, files?: unknown }} duel
 * @param {import('../pad/adapters.js').Slot[] | null} slots null where the graph does not tell
 * @returns {{ shareOf: (slot: number) => number, byOrder: boolean }} `byOrder`: the names are known and differ from the slots'
 */
export function matched({ best, files }, slots) {
  const { weights } = best
  if (!slots) return { shareOf: (slot) => weights[slot] ?? 0, byOrder: false }
  const places = slots.flatMap(({ used }, i) => (used ? [i] : []))
  const here = places.map((i) => slots[i].name)
  const names = Array.isArray(files) ? files.map((file) => shortName(String(file))) : []
  const found = names.map((name) => here.indexOf(name))
  const isUnique = new Set(here).size === here.length && new Set(names).size === names.length
  const byName = names.length === weights.length && isUnique && !found.includes(-1)
  const order = byName ? found : weights.map((_, i) => i)
  const shares = new Map(order.map((place, i) => [places[place], weights[i]]))
  const differ = names.length > 0 && JSON.stringify(names) !== JSON.stringify(here)
  return { shareOf: (slot) => shares.get(slot) ?? 0, byOrder: !byName && differ }
}
