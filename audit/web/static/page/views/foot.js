/** The end of the list: which tasks are shown, and the way to the others. */

import { html, nothing } from "../../lit-html/lit-html.js";
import { minute } from "../time.js";
import { one } from "../url.js";
import { count } from "./parts.js";

/** @typedef {import("../main.js").State} State */
/** @typedef {import("../main.js").Actions} Actions */

const LIMITS = ["50", "100", "200", "500"];

/**
 * @param {State} state
 * @param {Actions} actions
 * @param {import("../api.js").Page} page
 */
export function foot(state, actions, page) {
  const { first, previous } = actions.place();
  const shown = page.tasks.length;
  const later = one(state.view, "cursor") !== null || one(state.view, "offset") !== null;
  return html`
    <nav class="foot" aria-label="Pages">
      ${later ? html`<a class="button" rel="first" href=${actions.href({ cursor: null, offset: null })}>‹‹ First</a>` : nothing}
      ${previous !== null ? html`<a class="button" rel="prev" href=${actions.href(previous)}>‹ Newer</a>` : nothing}
      <p>${first === null ? `${count(shown)} tasks` : `${count(first)}–${count(first + shown - 1)}`} of ${count(page.total)}</p>
      ${
        page.next_cursor
          ? html`<a class="button" rel="next" href=${actions.href({ cursor: page.next_cursor, offset: null })}>Older ›</a>`
          : nothing
      }
      <span class="space"></span>
      ${page.total > page.limit ? jump(page, actions) : nothing}
      <label class="small select">Rows
        <select @change=${(/** @type {Event} */ event) =>
          actions.go({ limit: /** @type {HTMLSelectElement} */ (event.target).value })}>
          ${[...new Set([...LIMITS, `${page.limit}`])].map(
            (limit) => html`<option ?selected=${+limit === page.limit}>${limit}</option>`,
          )}
        </select>
      </label>
    </nav>
    <p class="printed">${count(page.total)} tasks, as of ${minute(state.parts.list.at ?? new Date(), "UTC")} UTC<br>${location.href}</p>`;
}

/**
 * @param {import("../api.js").Page} page
 * @param {Actions} actions
 */
function jump(page, actions) {
  return html`
    <form class="jump" @submit=${(/** @type {Event} */ event) => {
      event.preventDefault();
      const form = /** @type {HTMLFormElement} */ (event.target);
      const input = /** @type {HTMLInputElement} */ (form.elements.namedItem("number"));
      if (input.value) actions.go({ offset: `${+input.value - 1}`, cursor: null });
    }}>
      <label>Go to task no. <input name="number" type="number" min="1" max=${page.total} inputmode="numeric"></label>
    </form>`;
}
