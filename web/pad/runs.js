/**
 * Fills the store of remembered images: after each run, the images that come from a pad, with their preference and seeds.
 *
 * The run's own prompt, from the host's history, says which images come from which pad, and the numbers of then. A sweep's
 * preferences stand in the images' files.
 *
 * @typedef {{ class_type: string, inputs: Record<string, any> }} Item
 * @typedef {Record<string, Item>} Prompt
 * @typedef {{ filename: string, subfolder: string, type: string }} Saved
 * @typedef {{ names: string[] | null, weights: number[], klScale: number }} Place
 */

import { api } from '../../../scripts/api.js'
import { shortName } from './adapters.js'
import { keyOf } from './node_ids.js'
import { copiesOf } from './picture_copies.js'
import { textsOf } from './png_text.js'
import { MOST, remember } from './remembered.js'
import { takeTab, watchQueue } from './tabs.js'

const [PAD, SWEEP] = ['PreferenceWeights', 'PreferenceSweep']
/** Outputs that show no image of a preference, by class; true: all of them. */
/** @type {Record<string, true | number[]>} */
const FIGURES = { PreferenceGrid: true, BlendProbe: [0, 1, 2] }
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
    const { images, from, sweep } = imagesOf(prompt, entry.outputs, pad)
    if (images.length) remember(keyOf(tab, workflow, pad), await read(prompt, pad, images, from, sweep))
  }
}

/** @type {(value: any) => boolean} */
const isLink = (value) => Array.isArray(value) && value.length === 2 && typeof value[0] === 'string'

/** @type {(prompt: Prompt, start: string) => Set<string>} A node and all that its images go through. */
export function downstream(prompt, start) {
  const found = new Set([start])
  for (const source of found) {
    const figures = FIGURES[prompt[source].class_type]
    for (const [id, { inputs }] of Object.entries(prompt)) {
      const follows = Object.values(inputs).some(
        (value) => isLink(value) && value[0] === source && figures !== true && !figures?.includes(value[1])
      )
      if (follows) found.add(id)
    }
  }
  return found
}

/** @type {(prompt: Prompt, end: string) => Set<string>} A node and all before it. */
export function upstream(prompt, end) {
  const found = new Set([end])
  for (const id of found) {
    for (const value of Object.values(prompt[id]?.inputs ?? {})) if (isLink(value) && prompt[value[0]]) found.add(value[0])
  }
  return found
}

/**
 * The images of the first node that shows any, behind the pad or behind a sweep of the pad's adapters.
 *
 * @type {(prompt: Prompt, outputs: Record<string, any>, pad: string) => { images: Saved[], from: string, sweep: boolean }}
 */
function imagesOf(prompt, outputs, pad) {
  const adapters = JSON.stringify(prompt[pad].inputs.reward_loras)
  const sweeps = Object.keys(prompt).filter(
    (id) => prompt[id].class_type === SWEEP && JSON.stringify(prompt[id].inputs.reward_loras) === adapters
  )
  const behind = new Set([pad, ...(adapters ? sweeps : [])].flatMap((start) => [...downstream(prompt, start)]))
  const from = Object.keys(outputs).find((id) => behind.has(id) && outputs[id].images?.length) ?? ''
  const before = from ? [...upstream(prompt, from)] : []
  return { images: outputs[from]?.images ?? [], from, sweep: before.some((id) => prompt[id].class_type === SWEEP) }
}

/** @type {(prompt: Prompt, pad: string, images: Saved[], from: string, sweep: boolean) => Promise<any[]>} */
async function read(prompt, pad, images, from, sweep) {
  const before = upstream(prompt, from)
  const seeds = seedsOf(prompt, before)
  const first = await load(images[0])
  if (!first) return []
  const records = recordsOf(first.texts, before)
  const places = sweep ? records : [ownPlace(prompt, pad, records)]
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

/** @type {(saved: Saved) => Promise<{ blob: Blob, texts: Record<string, string> } | null>} */
async function load({ filename, subfolder = '', type }) {
  const response = await api.fetchApi(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
  if (!response.ok) return null
  const blob = await response.blob()
  return { blob, texts: textsOf(await blob.arrayBuffer()) }
}

/** @type {(texts: Record<string, string>, before: Set<string>) => Place[]} The blends that a file's images were made with. */
function recordsOf(texts, before) {
  const nodes = /** @type {Record<string, any[]>} */ (JSON.parse(texts.diffusion_blend ?? '{}'))
  const records = Object.entries(nodes).find(([id, list]) => before.has(id) && list.length)?.[1] ?? []
  return records
    .filter(({ kl_scale: scale }) => scale !== undefined) // a preference over time or space is no point
    .map(({ adapters, kl_scale: klScale }) => ({
      names: adapters.map((/** @type {any} */ adapter) => shortName(adapter.file)),
      weights: adapters.map((/** @type {any} */ adapter) => adapter.weight),
      klScale
    }))
}

/** @type {(prompt: Prompt, pad: string, records: Place[]) => Place} The pad's numbers, by name where the file has the names. */
function ownPlace(prompt, pad, records) {
  const { inputs } = prompt[pad]
  const isContinued = Object.values(prompt).some((item) => item.class_type === PAD && item.inputs.preference?.[0] === pad)
  const isAlone = !isLink(inputs.preference) && !isContinued
  const numbers = Array.from({ length: 8 }, (_, i) => Number(inputs[`weight_${i + 1}`] ?? 0))
  const own = { names: null, weights: numbers, klScale: Number(inputs.kl_scale) }
  return records.length === 1 && isAlone ? records[0] : own
}

/** @type {(prompt: Prompt, nodes: Set<string>) => import('./remembered.js').Seed[]} */
const seedsOf = (prompt, nodes) =>
  [...nodes].flatMap((node) =>
    SEEDS.filter((name) => typeof prompt[node].inputs[name] === 'number').map((name) => ({
      node,
      name,
      value: prompt[node].inputs[name]
    }))
  )
