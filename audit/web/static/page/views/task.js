/** One task, in the side panel and on a page of its own. */

import { html } from "../../lit-html/lit-html.js";
import { timeline } from "./timeline.js";

/**
 * @param {import("../main.js").State} state
 * @param {import("../main.js").Actions} actions
 */
export function task(state, actions) {
  const { data } = state.parts.task;
  return html`
    <button type="button" @click=${() => actions.close()}>Close</button>
    <pre>${data ? JSON.stringify(data, null, 2) : ""}</pre>
    ${timeline(state, actions)}`;
}
