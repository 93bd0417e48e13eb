/** The frame of the page: which screen is shown, the head, the side panel, dialogs and notices. */

import { html, nothing } from "../../lit-html/lit-html.js";
import { one } from "../url.js";
import { head } from "./head.js";
import { help } from "./help.js";
import { list } from "./list.js";
import { login } from "./login.js";
import { task } from "./task.js";

/**
 * @param {import("../main.js").State} state
 * @param {import("../main.js").Actions} actions
 */
export function shell(state, actions) {
  if (state.session.needed) return login(state, actions);
  return html`
    <a class="skip" href="#main" @click=${skip}>Skip to the tasks</a>
    ${head(state, actions)}
    ${state.view.page === "task" ? taskPage(state, actions) : listPage(state, actions)}
    ${state.ui.help ? help(state, actions) : nothing}
    <p class="notice" role="status">${state.ui.notice}</p>
    <p class="hidden" role="status">${state.ui.spoken}</p>`;
}

/** @param {Event} event */
function skip(event) {
  event.preventDefault();
  document.getElementById("main")?.focus();
}

/**
 * @param {import("../main.js").State} state
 * @param {import("../main.js").Actions} actions
 */
function listPage(state, actions) {
  return html`
    <div class="screen">
      <main id="main" tabindex="-1">${list(state, actions)}</main>
      ${one(state.view, "task") ? panel(state, actions) : nothing}
    </div>`;
}

/**
 * @param {import("../main.js").State} state
 * @param {import("../main.js").Actions} actions
 */
function panel(state, actions) {
  return html`<aside class="panel" aria-label="Task" tabindex="-1">${task(state, actions)}</aside>`;
}

/**
 * @param {import("../main.js").State} state
 * @param {import("../main.js").Actions} actions
 */
function taskPage(state, actions) {
  return html`<main id="main" class="task-page" tabindex="-1">${task(state, actions)}</main>`;
}
