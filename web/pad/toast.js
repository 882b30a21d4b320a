/** Short messages on the host's page. */

import { app } from '../../../scripts/app.js'

const SHOWN_MS = 8000

/** @type {(message: string) => void} The host's own toast; without it, the console. */
export function warn(message) {
  const toast = app.extensionManager?.toast
  if (toast?.add) toast.add({ severity: 'warn', summary: 'Diffusion Blend', detail: message, life: SHOWN_MS })
  else console.warn(`Diffusion Blend: ${message}`)
}
