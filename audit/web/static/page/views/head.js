/** The head of the page, which stays in sight. */

import { html, nothing, svg } from "../../lit-html/lit-html.js";
import { ROOT } from "../api.js";
import { filters } from "./filters.js";
import { icon } from "./parts.js";
import { saved } from "./saved.js";
import { timeMenu, zoneMenu } from "./timemenu.js";

const LOGO = svg`
  <rect width="32" height="32" rx="7" fill="var(--accent)"/>
  <path fill="none" stroke="var(--on-accent)" stroke-width="3.2" stroke-linecap="round" stroke-linejoin="round"
    d="M8 11h16M8 16.5h9M8 22h5M17.5 21.5l3 3 5.5-6.5"/>`;

/**
 * @param {import("../main.js").State} state
 * @param {import("../main.js").Actions} actions
 */
export function head(state, actions) {
  const list = state.view.page === "list";
  return html`
    <header class="head">
      <a class="brand" href="${ROOT}tasks?status=failed&last=7d" title="Recent failures">
        <svg viewBox="0 0 32 32" aria-hidden="true">${LOGO}</svg><span>Tasks</span>
      </a>
      ${list ? filters(state, actions) : nothing}
      <div class="tools">
        ${list ? timeMenu(state, actions) : nothing}
        ${zoneMenu(state, actions)}
        ${saved(state, actions)}
        ${tool("Reload", "reload", actions.reload)}
        ${tool("Light or dark (d)", "theme", actions.cycleTheme)}
        <button type="button" class="tool square" title="Help (?)" aria-label="Help" @click=${() => actions.set({ help: true })}>?</button>
      </div>
    </header>`;
}

/**
 * @param {string} label
 * @param {Parameters<typeof icon>[0]} name
 * @param {() => void} act
 */
function tool(label, name, act) {
  return html`<button type="button" class="tool square" title=${label} aria-label=${label} @click=${act}>${icon(name)}</button>`;
}
