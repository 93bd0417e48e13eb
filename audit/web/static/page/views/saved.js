/** Views to begin with, and those that the person has saved in this browser. */

import { html, nothing } from "../../lit-html/lit-html.js";
import { ROOT } from "../api.js";
import { day, instant } from "../time.js";
import { icon } from "./parts.js";

/** @typedef {import("../main.js").State} State */
/** @typedef {import("../main.js").Actions} Actions */

const HOUR_MS = 3_600_000;

/**
 * @param {State} state
 * @returns {[string, import("../url.js").Change][]}
 */
function builtIn({ zone }) {
  const now = new Date();
  const today = day(now, zone);
  const since = (/** @type {string} */ date) =>
    (instant(`${date}T00:00:00`, zone) ?? now).toISOString();
  const hourAgo = new Date(now.getTime() - HOUR_MS).toISOString();
  return [
    ["Failures of the last 7 days", { status: "failed", last: "7d" }],
    ["Failures of the last hour", { status: "failed", last: "1h" }],
    ["Running for more than an hour", { status: "executing", until: hourAgo }],
    ["Rejected this month", { status: "rejected", since: since(`${today.slice(0, 8)}01`) }],
    ["Changes in production today", { since: since(today), outcome: '{"environment":"prod"}' }],
    ["Everything", {}],
  ];
}

/**
 * @param {State} state
 * @param {Actions} actions
 */
export function saved(state, actions) {
  const open = state.ui.menu === "views";
  return html`
    <div class="menu-holder" data-menu>
      <button type="button" class="tool" aria-expanded=${open} title="Views (v)" @click=${() => actions.toggleMenu("views")}>
        ${icon("bookmark")}<span class="label">Views</span>${icon("chevron")}
      </button>
      ${open ? menu(state, actions) : nothing}
    </div>`;
}

/**
 * @param {State} state
 * @param {Actions} actions
 */
function menu(state, actions) {
  const own = actions.savedViews();
  /** @param {Event} event */
  const save = (event) => {
    event.preventDefault();
    const form = /** @type {HTMLFormElement} */ (event.target);
    const input = /** @type {HTMLInputElement} */ (form.elements.namedItem("name"));
    actions.saveView(input.value.trim());
    form.reset();
  };
  return html`
    <div class="menu views-menu" role="dialog" aria-label="Views">
      ${builtIn(state).map(([name, change]) => html`<a class="item" href=${actions.freshHref(change)}>${name}</a>`)}
      ${own.length > 0 ? html`<h2>Saved in this browser</h2>` : nothing}
      ${own.map(
        ({ name, query }) => html`
          <div class="own">
            <a class="item" href="${ROOT}tasks?${query}">${name}</a>
            <button type="button" class="tool" aria-label="Remove ${name}" title="Remove" @click=${() => actions.removeView(name)}>${icon("close")}</button>
          </div>`,
      )}
      ${
        state.view.page === "list"
          ? html`
            <form class="save" @submit=${save}>
              <label>Save this view as <input name="name" required maxlength="60" pattern=".*\\S.*" autocomplete="off"></label>
              <button type="submit">Save</button>
            </form>`
          : nothing
      }
    </div>`;
}
