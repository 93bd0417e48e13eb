import { html } from "../../lit-html/lit-html.js";

/**
 * @param {import("../main.js").State} state
 * @param {import("../main.js").Actions} _actions
 */
export function filters(state, _actions) {
  return html`<div class="filters">${JSON.stringify(state.view.params)}</div>`;
}
