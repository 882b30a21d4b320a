/**
 * Layers of the pad's picture: other modules add shading or marks below or above the shape between the adapters.
 *
 * @typedef {import('./coordinates.js').Point} Point
 *
 * @typedef {object} LayerContext the pad that is drawn
 * @property {any} node its Preference Weights
 * @property {import('./adapters.js').Slot[]} slots one per corner
 * @property {Point[]} corners in the picture's units
 * @property {import('./theme.js').Theme} theme
 * @property {(point: Point) => number[]} weightsAt the weights of a point in the shape, one per corner, sum 1
 * @property {(weights: number[]) => Point | null} pointOf the point of weights; null if all are 0
 *
 * @typedef {object} Layer
 * @property {string} name another layer of this name is replaced
 * @property {boolean} above the shape; else below it
 * @property {(context: LayerContext) => string} version the layer is drawn again when this changes; it is asked for often
 * @property {(context: LayerContext) => any[]} draw SVG elements, in the picture's units (web/pad/layout.js)
 */

import { svg } from './drawing.js'

/** @type {Map<string, Layer>} */
const layers = new Map()

/** @param {Layer} layer */
export function addLayer(layer) {
  layers.set(layer.name, layer)
}

/** @type {(context: LayerContext) => string} Changes when any layer has to be drawn again. */
export const layersVersion = (context) => [...layers.values()].map((layer) => layer.version(context)).join('\n')

/** The layers as one pad has drawn them. A layer is drawn again only when its version changes. */
export class DrawnLayers {
  constructor() {
    this.below = svg('g')
    this.above = svg('g')
    /** @type {Map<string, { element: any, version: string }>} */
    this.drawn = new Map()
  }

  /** @param {LayerContext} context */
  draw(context) {
    for (const layer of layers.values()) {
      const version = layer.version(context)
      const before = this.drawn.get(layer.name)
      if (before?.version === version) continue
      const element = svg('g', { 'data-layer': layer.name })
      element.append(...layer.draw(context))
      if (before) before.element.replaceWith(element)
      else (layer.above ? this.above : this.below).append(element)
      this.drawn.set(layer.name, { element, version })
    }
  }
}
