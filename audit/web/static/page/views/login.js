/** Asks for a key. */

import { html } from "../../lit-html/lit-html.js";

/**
 * @param {import("../main.js").State} _state
 * @param {import("../main.js").Actions} _actions
 */
export function login(_state, _actions) {
  return html`<main id="main"><h1>Sign in</h1></main>`;
}
