/** The menus: time, time zone, views, and what can be copied. Loaded when one is opened first. */

import { html, nothing } from "../../lit-html/lit-html.js";
import { ROOT } from "../api.js";
import {
  day,
  exact,
  instant,
  isZone,
  local,
  localZone,
  span,
  timeWords,
  WINDOWS,
  zones,
} from "../time.js";
import { one, timeChange } from "../url.js";
import { icon } from "./parts.js";

/** @type {Record<string, (state: State, actions: Actions) => unknown>} */
const MENUS = { time, zone, views, copy };

/**
 * Return the open menu, if it has this name.
 * @param {string} name
 * @param {State} state
 * @param {Actions} actions
 */
export function menu(name, state, actions) {
  return MENUS[name](state, actions);
}

/**
 * @param {State} state
 * @param {Actions} actions
 */
function time(state, actions) {
  const last = one(state.view, "last");
  return html`
    <div class="menu time-menu" role="dialog" aria-label="Time">
      <div class="spans">
        ${WINDOWS.map(
          (each) =>
            html`<a class="item" aria-current=${each === last} href=${actions.href(timeChange({ last: each }))}>Last ${span(each)?.words}</a>`,
        )}
        <a class="item" aria-current=${timeWords(state) === "All time"} href=${actions.href(timeChange({}))}>All time</a>
      </div>
      ${absolute(state, actions)}
    </div>`;
}

/**
 * @param {State} state
 * @param {Actions} actions
 */
function absolute(state, actions) {
  const { zone } = state;
  const { since, until } = actions.window();
  return html`
    <form class="absolute" @submit=${(/** @type {Event} */ event) => {
      event.preventDefault();
      const form = /** @type {HTMLFormElement} */ (event.target);
      const [from, to] = ["since", "until"].map((name) => chosen(form, name, zone));
      actions.go(timeChange({ ...(from && { since: from }), ...(to && { until: to }) }));
    }}>
      ${field("since", "From", since, zone)}
      ${field("until", "To, not included", until, zone)}
      <div class="buttons">
        <button type="submit" class="primary">Show</button>
        ${
          one(state.view, "last") || one(state.view, "days")
            ? html`<button type="button" title="Freeze (f): keep this window while time goes on" @click=${actions.freeze}>Freeze</button>`
            : nothing
        }
      </div>
    </form>`;
}

/**
 * @param {string} name
 * @param {string} label
 * @param {string | undefined} time
 * @param {string} zone
 */
function field(name, label, time, zone) {
  return html`
    <label><span>${label} <span class="muted">(${zone})</span></span>
      <input type="datetime-local" step="1" name=${name} value=${time ? local(time, zone) : ""}
        @input=${(/** @type {Event} */ event) => {
          const input = /** @type {HTMLInputElement} */ (event.target);
          const output = input.parentElement?.querySelector("output");
          if (output) output.textContent = utc(instant(input.value, zone));
        }}>
      <output class="muted">${utc(time ? new Date(time) : null)}</output>
    </label>`;
}

/** @param {Date | null} time */
function utc(time) {
  return time ? exact(withoutFraction(time), "UTC") : "any time";
}

/** @param {Date} time */
function withoutFraction(time) {
  return `${time.toISOString().slice(0, 19)}Z`;
}

/**
 * @param {HTMLFormElement} form
 * @param {string} name
 * @param {string} zone
 */
function chosen(form, name, zone) {
  const input = /** @type {HTMLInputElement} */ (form.elements.namedItem(name));
  const at = instant(input.value, zone);
  return at && withoutFraction(at);
}

/**
 * @param {State} state
 * @param {Actions} actions
 */
function zone(state, actions) {
  const mine = localZone();
  /** @param {Event} event */
  const submit = (event) => {
    event.preventDefault();
    const form = /** @type {HTMLFormElement} */ (event.target);
    const input = /** @type {HTMLInputElement} */ (form.elements.namedItem("zone"));
    if (isZone(input.value)) actions.setZone(input.value);
    else input.setCustomValidity("Choose a zone from the list");
    input.reportValidity();
  };
  return html`
    <div class="menu zone-menu" role="dialog" aria-label="Time zone">
      ${[...new Set(["UTC", mine])].map(
        (each) => html`
          <button type="button" class="item" aria-current=${each === state.zone} @click=${() => actions.setZone(each)}>
            ${each} <span class="muted">${each === mine ? "this computer" : ""}</span>
          </button>`,
      )}
      <form @submit=${submit}>
        <label>Another zone
          <input name="zone" list="zones" autocomplete="off" spellcheck="false" placeholder="Europe/Berlin"
            @input=${(/** @type {Event} */ event) => /** @type {HTMLInputElement} */ (event.target).setCustomValidity("")}>
        </label>
        <datalist id="zones">${zones().map((each) => html`<option value=${each}></option>`)}</datalist>
        <button type="submit">Use it</button>
      </form>
    </div>`;
}

const HOUR_MS = 3_600_000;
const SAVED_AT_MOST = 50;

/**
 * @param {State} state
 * @returns {[string, Change][]}
 */
function builtIn({ zone }) {
  const now = new Date();
  const today = day(now, zone);
  const since = (/** @type {string} */ date) =>
    (instant(`${date}T00:00:00`, zone) ?? now).toISOString();
  const hourAgo = new Date(now.getTime() - HOUR_MS).toISOString();
  return [
    ["Failures of the last 7 days", { status: "failed", last: "7d" }],
    ["Failures of the last hour, live", { status: "failed", last: "1h", live: "1" }],
    ["Running for more than an hour", { status: "executing", until: hourAgo }],
    ["Rejected this month", { status: "rejected", since: since(`${today.slice(0, 8)}01`) }],
    ["Changes in production today", { since: since(today), outcome: '{"environment":"prod"}' }],
    ["Everything", {}],
  ];
}

/**
 * @typedef {object} SavedView
 * @property {string} name
 * @property {string} query  The query of the page's URL.
 */

/** @returns {SavedView[]} */
function readSaved() {
  try {
    const saved = JSON.parse(localStorage.getItem("views") ?? "[]");
    return Array.isArray(saved)
      ? saved.filter((view) => view?.name && view.query !== undefined)
      : [];
  } catch {
    return [];
  }
}

/**
 * Save the shown view, or remove a saved one if there is no query.
 * @param {string} name
 * @param {string | null} query
 * @param {Actions} actions
 */
function save(name, query, actions) {
  const others = readSaved().filter((view) => view.name !== name);
  if (query !== null && others.length >= SAVED_AT_MOST) {
    actions.notify(`There are ${SAVED_AT_MOST} saved views already. Remove one first.`);
    return;
  }
  const views = query === null ? others : [...others, { name, query }];
  localStorage.setItem("views", JSON.stringify(views));
  actions.notify(query === null ? `“${name}” removed` : `Saved as “${name}” in this browser`);
}

/**
 * @param {State} state
 * @param {Actions} actions
 */
function views(state, actions) {
  const own = readSaved();
  /** @param {Event} event */
  const submit = (event) => {
    event.preventDefault();
    const form = /** @type {HTMLFormElement} */ (event.target);
    const input = /** @type {HTMLInputElement} */ (form.elements.namedItem("name"));
    save(input.value.trim(), location.search.slice(1), actions);
    form.reset();
  };
  return html`
    <div class="menu views-menu" role="dialog" aria-label="Views">
      ${builtIn(state).map(([name, change]) => html`<a class="item" href=${actions.freshHref(change)}>${name}</a>`)}
      ${own.length > 0 ? html`<h2>Saved in this browser</h2>` : nothing}
      ${own.map(
        ({ name, query }) => html`
          <div class="own">
            <a class="item" href="${ROOT}tasks?${query}">${name}</a>
            <button type="button" class="tool" aria-label="Remove ${name}" title="Remove" @click=${() => save(name, null, actions)}>${icon("close")}</button>
          </div>`,
      )}
      ${
        state.view.page === "list"
          ? html`
            <form class="save" @submit=${submit}>
              <label>Save this view as <input name="name" required maxlength="60" pattern=".*\\S.*" autocomplete="off"></label>
              <button type="submit">Save</button>
            </form>`
          : nothing
      }
    </div>`;
}

/**
 * @param {State} _state
 * @param {Actions} actions
 */
function copy(_state, actions) {
  return html`
    <div class="menu copy-menu" role="dialog" aria-label="Copy">
      ${item("Link", "these tasks, also tomorrow", () => actions.copyLink())}
      ${item("Link that moves", "the time goes on", () => actions.copyLink({ moving: true }))}
      ${item("curl command", "as JSON", () => actions.copyCurl())}
      ${item("audit command", "in a terminal", () => actions.copyCommand())}
    </div>`;
}

/**
 * @param {string} label
 * @param {string} note
 * @param {() => void} act
 */
function item(label, note, act) {
  return html`<button type="button" class="item" @click=${act}>${label} <span class="muted">${note}</span></button>`;
}
