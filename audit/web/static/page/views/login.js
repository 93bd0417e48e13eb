/** Asks for a key, and exchanges it for a session, which the browser keeps in a cookie. */

import { html, nothing } from "../../lit-html/lit-html.js";
import { Problem, ROOT, send } from "../api.js";

/**
 * @param {State} state
 * @param {Actions} actions
 */
export function login(state, actions) {
  const { asking, refusal } = state.session;
  /** @param {Event} event */
  const submit = (event) => {
    event.preventDefault();
    const form = /** @type {HTMLFormElement} */ (event.target);
    const input = /** @type {HTMLInputElement} */ (form.elements.namedItem("key"));
    if (input.value.trim() && !asking) signIn(input.value.trim(), state, actions);
  };
  return html`
    <main id="main" class="login">
      <form @submit=${submit}>
        <h1>Sign in</h1>
        <p>This service asks for a key that may read the history.</p>
        <label for="key">Key</label>
        <input id="key" name="key" type="password" autocomplete="current-password" spellcheck="false" required autofocus
          aria-describedby=${refusal ? "refusal" : nothing}>
        ${refusal ? html`<p id="refusal" class="refusal" role="alert">${refusal}</p>` : nothing}
        <button type="submit" class="primary" ?disabled=${asking}>${asking ? "Signing in…" : "Sign in"}</button>
        <details>
          <summary>Where do I get a key?</summary>
          <p>Someone who may manage the service makes one:</p>
          <pre tabindex="0">audit keys create --name ada --scope read --expires 90d</pre>
          <p class="muted">The page keeps it as a session cookie that no script can read. The session ends with the browser. See the <a href="${ROOT}docs">documentation of the API</a>.</p>
        </details>
      </form>
    </main>`;
}

/**
 * @param {string} key
 * @param {State} state
 * @param {Actions} actions
 */
async function signIn(key, state, actions) {
  Object.assign(state.session, { asking: true, refusal: "" });
  actions.redraw();
  let refusal = "";
  try {
    const headers = { "Content-Type": "application/json" };
    await send(`${ROOT}session`, { method: "POST", headers, body: JSON.stringify({ key }) });
    await actions.checkSession();
    if (state.session.needed) refusal = "This browser keeps a session on https or localhost only.";
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    refusal = error.status === 401 ? "This key is not known, or no longer valid." : error.message;
  }
  Object.assign(state.session, { asking: false, refusal });
  actions.redraw();
  if (!state.session.needed) actions.reload();
}

/** @param {Actions} actions */
export async function signOut(actions) {
  await send(`${ROOT}session`, { method: "DELETE" }).catch(() => {});
  await actions.checkSession();
  actions.reload();
}
