/** What stands in place of an answer: it is loading, it is empty, or it failed. */

import { html, nothing } from "../../lit-html/lit-html.js";

export function loading() {
  return html`<p class="state">Loading…</p>`;
}

/**
 * @param {import("../main.js").State} _state
 * @param {import("../main.js").Actions} _actions
 */
export function empty(_state, _actions) {
  return html`<p class="state">No task matches.</p>`;
}

/**
 * @param {import("../api.js").Problem} problem
 * @param {() => void} retry
 */
export function failed(problem, retry) {
  return html`
    <div class="state" role="alert">
      <p><strong>${problem.title}</strong></p>
      ${problem.detail ? html`<p>${problem.detail}</p>` : nothing}
      <button type="button" @click=${() => retry()}>Try again</button>
    </div>`;
}
