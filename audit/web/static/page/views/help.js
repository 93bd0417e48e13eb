/** The shortcuts. */

import { html } from "../../lit-html/lit-html.js";

/**
 * @param {import("../main.js").State} _state
 * @param {import("../main.js").Actions} actions
 */
export function help(_state, actions) {
  return html`<dialog open><button type="button" @click=${() => actions.set({ help: false })}>Close</button></dialog>`;
}
