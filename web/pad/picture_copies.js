/** Small copies of pictures, so that the page holds little memory and keeps pictures whose files are gone. */

const [THUMBNAIL, PICTURE] = [96, 512] // pixels of the longer side

/** @type {(blob: Blob) => Promise<{ thumbnail: string, picture: string }>} */
export async function copiesOf(blob) {
  const bitmap = await createImageBitmap(blob)
  const [thumbnail, picture] = await Promise.all([THUMBNAIL, PICTURE].map((size) => copy(bitmap, size)))
  bitmap.close()
  return { thumbnail, picture }
}

/** @type {(bitmap: ImageBitmap, size: number) => Promise<string>} */
async function copy(bitmap, size) {
  const scale = Math.min(1, size / Math.max(bitmap.width, bitmap.height))
  const canvas = document.createElement('canvas')
  canvas.width = Math.max(1, Math.round(bitmap.width * scale))
  canvas.height = Math.max(1, Math.round(bitmap.height * scale))
  canvas.getContext('2d')?.drawImage(bitmap, 0, 0, canvas.width, canvas.height)
  /** @type {Blob | null} */
  const made = await new Promise((done) => canvas.toBlob(done, 'image/webp', 0.9))
  if (!made) throw new Error('The browser cannot make a copy of the picture.')
  return URL.createObjectURL(made)
}
