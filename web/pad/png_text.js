/** The text chunks of a PNG (PNG specification, third edition, 11.3.3), where the host writes prompt and blend. */

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10]

/**
 * @param {ArrayBuffer} data of any file
 * @returns {Record<string, string>} by keyword; empty if it is no PNG
 */
export function textsOf(data) {
  const bytes = new Uint8Array(data)
  /** @type {Record<string, string>} */
  const texts = {}
  if (!SIGNATURE.every((byte, i) => bytes[i] === byte)) return texts
  const view = new DataView(data)
  for (let at = SIGNATURE.length; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at)
    const type = latin1(bytes.subarray(at + 4, at + 8))
    if (type === 'IDAT') break // texts stand before the pixels in the host's files
    if (type === 'tEXt') {
      const chunk = bytes.subarray(at + 8, at + 8 + length)
      const end = chunk.indexOf(0)
      texts[latin1(chunk.subarray(0, end))] = latin1(chunk.subarray(end + 1))
    }
    at += 12 + length
  }
  return texts
}

const latin1 = (/** @type {Uint8Array} */ bytes) => new TextDecoder('latin1').decode(bytes)
