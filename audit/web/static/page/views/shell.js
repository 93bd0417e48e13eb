/** The frame of the page: which screen is shown, the head, the side panel, dialogs and notices. */

import { html, nothing, svg } from "../../lit-html/lit-html.js";
import { ROOT } from "../api.js";
import { timeWords, zoneName } from "../time.js";
import { one } from "../url.js";
import { filters } from "./filters.js";
import { list } from "./list.js";
import { button, icon, menuHolder } from "./parts.js";

const LOGO = svg`
  <rect width="32" height="32" rx="7" fill="var(--accent)"/>
  <path fill="none" stroke="var(--on-accent)" stroke-width="3.2" stroke-linecap="round" stroke-linejoin="round"
    d="M8 11h16M8 16.5h9M8 22h5M17.5 21.5l3 3 5.5-6.5"/>`;

/**
 * @param {State} state
 * @param {Actions} actions
 */
export function shell(state, actions) {
  if (state.session.needed)
    return html`${state.ui.outdated ? outdated() : nothing} ${actions.later("login")?.login(state, actions)}`;
  const alone = state.view.page === "task";
  return html`
    ${state.ui.outdated ? outdated() : nothing}
    <a class="skip" href="#main" @click=${skip}>Skip to the tasks</a>
    ${head(state, actions)}
    ${
      alone
        ? html`<main id="main" class="task-page" tabindex="-1">${task(state, actions)}</main>`
        : html`
          <div class="screen">
            <main id="main" tabindex="-1">${list(state, actions)}</main>
            ${one(state.view, "task") ? html`<aside class="panel" aria-label="Task" tabindex="-1">${task(state, actions)}</aside>` : nothing}
          </div>`
    }
    ${state.ui.help ? actions.later("help")?.help(state, actions) : nothing}
    <p class="notice" role="status">${state.ui.notice}</p>
    <p class="hidden" role="status">${state.ui.spoken}</p>`;
}

/** All that is shown is in the URL, so that loading the page again loses nothing. */
function outdated() {
  return html`
    <p class="outdated" role="alert">
      A part of the page cannot be loaded. Perhaps the service was updated.
      <button type="button" @click=${() => location.reload()}>Load the page again</button>
    </p>`;
}

/** @param {Event} event */
function skip(event) {
  event.preventDefault();
  document.getElementById("main")?.focus();
}

/**
 * @param {State} state
 * @param {Actions} actions
 */
function task(state, actions) {
  return actions.later("task")?.task(state, actions) ?? html`<p aria-busy="true"></p>`;
}

/**
 * The head of the page, which stays in sight.
 * @param {State} state
 * @param {Actions} actions
 */
function head(state, actions) {
  const list = state.view.page === "list";
  return html`
    <header class="head">
      <a class="brand" href="${ROOT}tasks?status=failed&last=7d" title="Recent failures">
        <svg viewBox="0 0 32 32" aria-hidden="true">${LOGO}</svg><span>Tasks</span>
      </a>
      ${list ? filters(state, actions) : nothing}
      <div class="tools">
        ${list ? tool("time", "Time (t)", "clock", timeWords(state), state, actions) : nothing}
        ${tool("zone", "Time zone (z)", "globe", state.ui.narrow ? zoneName(state.zone) : state.zone, state, actions)}
        ${tool("views", "Views (v)", "bookmark", "Views", state, actions)}
        ${button("Reload", "reload", actions.reload)}
        ${button("Light or dark (d)", "theme", actions.cycleTheme)}
        <button type="button" class="tool square" title="Help (?)" aria-label="Help" @click=${() => actions.set({ help: true })}>?</button>
      </div>
    </header>`;
}

/**
 * A button that opens a menu.
 * @param {string} menu
 * @param {string} title
 * @param {Parameters<typeof icon>[0]} image
 * @param {string} label
 * @param {State} state
 * @param {Actions} actions
 */
function tool(menu, title, image, label, state, actions) {
  const open = state.ui.menu === menu;
  return menuHolder(
    menu,
    html`<button type="button" class="tool" aria-expanded=${open} title=${title} @click=${() => actions.toggleMenu(menu)}>
      ${icon(image)}<span class="label">${label}</span>${icon("chevron")}
    </button>`,
    state,
    actions,
  );
}
