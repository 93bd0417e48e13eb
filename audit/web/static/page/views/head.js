/** The head of the page, which stays in sight. */

import { html, nothing } from "../../lit-html/lit-html.js";
import { ROOT } from "../api.js";
import { filters } from "./filters.js";
import { saved } from "./saved.js";
import { timeMenu, zoneMenu } from "./timemenu.js";

/**
 * @param {import("../main.js").State} state
 * @param {import("../main.js").Actions} actions
 */
export function head(state, actions) {
  const list = state.view.page === "list";
  return html`
    <header class="head">
      <a class="brand" href=${`${ROOT}tasks?status=failed&last=7d`}>Tasks</a>
      ${list ? filters(state, actions) : nothing}
      <div class="tools">
        ${list ? timeMenu(state, actions) : nothing}
        ${zoneMenu(state, actions)}
        ${saved(state, actions)}
        <button type="button" class="tool" title="Help (?)" aria-label="Help" @click=${() => actions.set({ help: true })}>?</button>
      </div>
    </header>`;
}
