/** Preview pictures of LoRAs: image files of the same name beside them. The host's server says which LoRAs have one. */

import { api } from '../../../scripts/api.js'

/** @type {Set<string>} */
let known = new Set()
let asked = false

/** @type {() => Promise<void>} Ask the server again, because files come and go. */
export async function refreshPreviews() {
  asked = true
  const response = await api.fetchApi('/diffusion_blend/previews')
  if (response.ok) known = new Set(await response.json())
}

/** @type {(file: string) => string} The address of a LoRA's picture, or empty. */
export function previewOf(file) {
  if (!asked) void refreshPreviews()
  return known.has(file) ? api.apiURL(`/diffusion_blend/preview?${new URLSearchParams({ file })}`) : ''
}
