/** The history of one task. */

import { html } from "../../lit-html/lit-html.js";

/**
 * @param {import("../main.js").State} state
 * @param {import("../main.js").Actions} _actions
 */
export function timeline(state, _actions) {
  const { data } = state.parts.history;
  return html`<pre>${data ? JSON.stringify(data, null, 2) : ""}</pre>`;
}
