/**
 * Fills the store of remembered images: after each run, the images that come from a pad, with their preference and seeds.
 *
 * The run's own prompt, from the host's history, says which images come from which pad, and the numbers of then. The preferences
 * of a sweep or a duel stand in the images' files.
 *
 * @typedef {import('./prompts.js').Prompt} Prompt
 * @typedef {{ filename: string, subfolder: string, type: string }} Saved
 * @typedef {{ names: string[] | null, weights: number[], klScale: number }} Place
 */

import { api } from '../../../scripts/api.js'
import { shortName } from './adapters.js'
import { keyOf } from './node_ids.js'
import { copiesOf } from './picture_copies.js'
import { textsOf } from './png_text.js'
import { PAD, blendsOf, chainOf, downstream, isLink, makesLists, namesOf, numbersOf, startsOf, upstream } from './prompts.js'
import { MOST, remember } from './remembered.js'
import { takeTab, watchQueue } from './tabs.js'

const SEEDS = ['seed', 'noise_seed']
const [TRIES, WAIT_MS] = [20, 250] // the host writes its history a moment after it says that the run has ended

/** Listen to the host's runs. */
export function watchRuns() {
  watchQueue()
  api.addEventListener('execution_success', (/** @type {any} */ { detail }) => {
    rememberRun(detail.prompt_id).catch((error) => console.warn('Diffusion Blend: a run is not remembered.', error))
  })
}

/** @type {(id: string) => Promise<any>} */
async function historyOf(id) {
  for (let attempt = 0; attempt < TRIES; attempt++) {
    const found = (await (await api.fetchApi(`/history/${id}`)).json())[id]
    if (found) return found
    await new Promise((done) => setTimeout(done, WAIT_MS))
  }
  return null
}

/** @type {(id: string) => Promise<void>} */
async function rememberRun(id) {
  const tab = takeTab(id)
  const entry = await historyOf(id)
  const [, , prompt, extra] = entry?.prompt ?? []
  const workflow = extra?.extra_pnginfo?.workflow?.id
  if (!prompt || !workflow) return
  const pads = Object.keys(prompt).filter((node) => prompt[node].class_type === PAD)
  for (const pad of pads) {
    const { images, from } = imagesOf(prompt, entry.outputs, pad)
    if (images.length) remember(keyOf(tab, workflow, pad), await read(prompt, pad, images, from))
  }
}

/**
 * The images of the first node that shows any, behind the pad or behind a sweep or a duel of the pad's adapters.
 *
 * @type {(prompt: Prompt, outputs: Record<string, any>, pad: string) => { images: Saved[], from: string }}
 */
function imagesOf(prompt, outputs, pad) {
  const behind = new Set(startsOf(prompt, pad).flatMap((start) => [...downstream(prompt, start)]))
  const from = Object.keys(outputs).find((id) => behind.has(id) && outputs[id].images?.length) ?? ''
  return { images: outputs[from]?.images ?? [], from }
}

/** @type {(prompt: Prompt, pad: string, images: Saved[], from: string) => Promise<any[]>} */
async function read(prompt, pad, images, from) {
  const before = upstream(prompt, from)
  const seeds = seedsOf(prompt, before)
  const first = await load(images[0])
  if (!first) return []
  const places = placesOf(prompt, pad, before, first.texts)
  const each = images.length / places.length
  if (!Number.isInteger(each)) return [] // a sheet, or a part of the images
  const shown = places.map((place, i) => ({ place, image: images[i * each] })).slice(-MOST)
  const made = []
  for (const { place, image } of shown) {
    const file = image === images[0] ? first : await load(image)
    if (file) made.push({ ...(await copiesOf(file.blob)), ...place, seeds })
  }
  return made
}

/**
 * The preferences of the images: those of the node that blends by this pad's preference, not those of another pass.
 *
 * @type {(prompt: Prompt, pad: string, before: Set<string>, texts: Record<string, string>) => Place[]}
 */
function placesOf(prompt, pad, before, texts) {
  const { blends, through } = blendsOf(prompt, startsOf(prompt, pad))
  const records = /** @type {Record<string, any[]>} */ (JSON.parse(texts.diffusion_blend ?? '{}'))
  const near = blends.filter((id) => before.has(id))
  const blend = near.find((id) => records[id]?.length) ?? near[0]
  const found = placesOfRecords(records[blend] ?? [])
  const way = blend ? [...upstream(prompt, blend)].filter((id) => through.has(id)) : []
  return makesLists(prompt, way) ? found : [ownPlace(prompt, pad, blend, found)]
}

/** @type {(saved: Saved) => Promise<{ blob: Blob, texts: Record<string, string> } | null>} */
async function load({ filename, subfolder = '', type }) {
  const response = await api.fetchApi(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
  if (!response.ok) return null
  const blob = await response.blob()
  return { blob, texts: textsOf(await blob.arrayBuffer()) }
}

/** @type {(records: any[]) => Place[]} The blends that images were made with. */
const placesOfRecords = (records) =>
  records
    .filter(({ kl_scale: scale }) => scale !== undefined) // a preference over time or space is no point
    .map(({ adapters, kl_scale: klScale }) => ({
      names: adapters.map((/** @type {any} */ adapter) => shortName(adapter.file)),
      weights: adapters.map((/** @type {any} */ adapter) => adapter.weight),
      klScale
    }))

/**
 * The record of the blend where it is of the pad alone, else the pad's own numbers, by name where the prompt has the names.
 *
 * @type {(prompt: Prompt, pad: string, blend: string | undefined, records: Place[]) => Place}
 */
function ownPlace(prompt, pad, blend, records) {
  if (records.length === 1 && chainOf(prompt, pad).length === 1 && !isLink(prompt[pad].inputs.preference)) return records[0]
  const names = namesOf(prompt, pad, blend)
  const weights = numbersOf(prompt, pad).map((weight, i) => (names && !names[i] ? 0 : weight)) // as the run counts them
  return { names, weights, klScale: Number(prompt[pad].inputs.kl_scale) }
}

/** @type {(prompt: Prompt, nodes: Set<string>) => import('./remembered.js').Seed[]} Also those that a node with a number gives. */
const seedsOf = (prompt, nodes) =>
  [...nodes].flatMap((node) =>
    SEEDS.flatMap((name) => {
      const value = prompt[node].inputs[name]
      const seed = isLink(value) ? { node: value[0], name: 'value', value: prompt[value[0]]?.inputs.value } : { node, name, value }
      return typeof seed.value === 'number' ? [seed] : []
    })
  )
