import { html } from "../../lit-html/lit-html.js";

/**
 * @param {import("../main.js").State} state
 * @param {import("../main.js").Actions} _actions
 */
export function timeMenu(state, _actions) {
  return html`<span>${state.view.params.last}</span>`;
}

/**
 * @param {import("../main.js").State} state
 * @param {import("../main.js").Actions} _actions
 */
export function zoneMenu(state, _actions) {
  return html`<span>${state.zone}</span>`;
}
