/** Steps of undo: the front end compares the graph with its last known state when a change ends. */

import { app } from '../../../scripts/app.js'

/**
 * Makes a change of the graph one step of undo. The step also ends when the change throws, because a step that stays open would
 * stop the front end from noting later ones.
 *
 * @template Result
 * @param {() => Result} act
 * @returns {Result}
 */
export function changing(act) {
  app.canvas?.emitBeforeChange?.()
  try {
    return act()
  } finally {
    app.canvas?.emitAfterChange?.()
  }
}

/** Ends a step of undo after the graph has changed. */
export const changed = () => changing(() => {})
