/** The shortcuts, and a short account of the page. */

import { Directive, directive } from "../../lit-html/directive.js";
import { html, noChange, nothing } from "../../lit-html/lit-html.js";
import { GROUPS } from "../actions.js";
import { ROOT } from "../api.js";
import { signOut } from "./login.js";
import { icon } from "./parts.js";

/** Opens a dialog as a modal one when it is first rendered. */
class Modal extends Directive {
  render() {
    return noChange;
  }

  /** @param {import("../../lit-html/directive.js").ElementPart} part */
  update({ element }) {
    const dialog = /** @type {HTMLDialogElement} */ (element);
    queueMicrotask(() => dialog.isConnected && !dialog.open && dialog.showModal());
    return noChange;
  }
}
const modal = directive(Modal);

/**
 * @param {State} state
 * @param {Actions} actions
 */
export function help(state, actions) {
  const { who } = state.session;
  /** @param {Event} event */
  const close = (event) => {
    /** @type {HTMLElement} */ (event.currentTarget).closest("dialog")?.close();
  };
  /** @param {Event} event */
  const outside = (event) => {
    if (event.target === event.currentTarget) close(event);
  };
  /** @param {Event} event */
  const switchKeys = (event) => {
    const keys = /** @type {HTMLInputElement} */ (event.target).checked;
    localStorage.setItem("keys", keys ? "on" : "off");
    actions.set({ keys });
  };
  return html`
    <dialog class="help" aria-labelledby="help-title" ${modal()} @click=${outside} @close=${() => actions.set({ help: false })}>
      <div class="help-body">
        <header>
          <h2 id="help-title">Help</h2>
          <button type="button" class="tool" aria-label="Close" @click=${close}>${icon("close")}</button>
        </header>
        <p>Everything on the page is in its address: copy it, and a colleague sees the same. Drag over the bars to zoom into a time. Click a value to see only its tasks.</p>
        <h3>Shortcuts</h3>
        <label class="switch"><input type="checkbox" .checked=${state.ui.keys} @change=${switchKeys}> Shortcuts are on</label>
        <div class="shortcuts">
          ${GROUPS.map(
            ({ title, shortcuts }) => html`
              <section>
                <h4>${title}</h4>
                <dl>
                  ${shortcuts.map(({ keys, text }) => html`<div><dt>${keys.map((key) => html`<kbd>${key}</kbd>`)}</dt><dd>${text}</dd></div>`)}
                </dl>
              </section>`,
          )}
        </div>
        <footer>
          <a href="${ROOT}docs">Documentation of the API</a>
          ${who ? html`<span class="muted">Version ${who.version}</span>` : nothing}
          ${who?.name ? html`<span class="muted">Signed in as ${who.name}</span>` : nothing}
          ${who?.via === "session" ? html`<button type="button" @click=${() => signOut(actions)}>Sign out</button>` : nothing}
        </footer>
      </div>
    </dialog>`;
}
