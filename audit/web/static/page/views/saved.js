/** Saved views. */

import { nothing } from "../../lit-html/lit-html.js";

/**
 * @param {import("../main.js").State} _state
 * @param {import("../main.js").Actions} _actions
 */
export function saved(_state, _actions) {
  return nothing;
}
