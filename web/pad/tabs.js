/**
 * The tabs of the page. Two tabs can hold a workflow with the same id: a template that is opened twice, or a copy. A tab is the
 * front end's own object for an open workflow, which stays the same when the workflow is saved or renamed.
 */

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'

/** @type {WeakMap<object, string>} */
const names = new WeakMap()
let count = 0
let newest = ''
let attempts = 0

/** @type {Map<string, string>} The tab of each run, by the run's id. */
const runs = new Map()

/** @returns {string} the name of the open tab on this page; empty where the front end has no tabs */
export function openTab() {
  const proxied = /** @type {any} */ (app).extensionManager?.workflow?.activeWorkflow
  const workflow = proxied?.__v_raw ?? proxied // Vue's proxies of an object differ from the object
  if (!workflow) return ''
  if (!names.has(workflow)) names.set(workflow, `tab ${(count += 1)}`)
  return names.get(workflow) ?? ''
}

/** Note the tab of every run that this page queues: when the run ends, another tab may be open. */
export function watchQueue() {
  const queuePrompt = api.queuePrompt
  api.queuePrompt = async function (/** @type {any[]} */ ...args) {
    const tab = openTab()
    attempts += 1
    const queued = await queuePrompt.apply(this, /** @type {any} */ (args))
    if (queued?.prompt_id) runs.set((newest = queued.prompt_id), tab)
    return queued
  }
}

/** @type {() => string} The id of the run that this page queued last; empty before the first. */
export const newestRun = () => newest

/** @type {() => number} How often this page has asked the host to queue a run, refused ones too. */
export const attemptsToQueue = () => attempts

/** @type {() => Promise<string[]>} The ids of the runs that are running or waiting on the host. */
export async function runsInQueue() {
  const { queue_running: running, queue_pending: waiting } = await (await api.fetchApi('/queue')).json()
  return [...running, ...waiting].map(([, id]) => id)
}

/** @type {(run: string) => string} The tab of a run that has ended; the open one where another page queued the run. */
export function takeTab(run) {
  const tab = runs.get(run) ?? openTab()
  runs.delete(run)
  return tab
}
