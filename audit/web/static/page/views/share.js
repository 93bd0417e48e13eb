/** Ways to hand on what is shown: a link, a request for curl, a command. */

import { html, nothing } from "../../lit-html/lit-html.js";
import { icon } from "./parts.js";

/**
 * @param {import("../main.js").State} state
 * @param {import("../main.js").Actions} actions
 */
export function share(state, actions) {
  const open = state.ui.menu === "copy";
  return html`
    <div class="share menu-holder" data-menu>
      <div class="joined">
        <button type="button" title="Copy a link to exactly these tasks (c)" @click=${() => actions.copyLink()}>${icon("link")}Copy link</button>
        <button type="button" aria-label="More to copy" aria-expanded=${open} @click=${() => actions.toggleMenu("copy")}>${icon("chevron")}</button>
      </div>
      ${
        open
          ? html`
            <div class="menu copy-menu" role="dialog" aria-label="Copy">
              ${item("Link", "these tasks, also tomorrow", () => actions.copyLink())}
              ${item("Link that moves", "the time goes on", () => actions.copyLink({ moving: true }))}
              ${item("curl command", "as JSON", () => actions.copyCurl())}
              ${item("audit command", "in a terminal", () => actions.copyCommand())}
            </div>`
          : nothing
      }
    </div>`;
}

/**
 * @param {string} label
 * @param {string} note
 * @param {() => void} copy
 */
function item(label, note, copy) {
  return html`<button type="button" class="item" @click=${copy}>${label} <span class="muted">${note}</span></button>`;
}
