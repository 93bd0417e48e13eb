/** The menus of the time window and of the time zone. */

import { html, nothing } from "../../lit-html/lit-html.js";
import { exact, instant, isZone, local, localZone, minute, span, zones } from "../time.js";
import { one, timeChange } from "../url.js";
import { range } from "./axis.js";
import { icon } from "./parts.js";

/** @typedef {import("../main.js").State} State */
/** @typedef {import("../main.js").Actions} Actions */

const SPANS = ["15m", "1h", "6h", "24h", "7d", "30d", "90d"];

/**
 * @param {State} state
 */
export function timeWords({ view, zone }) {
  const [last, days, since, until] = ["last", "days", "since", "until"].map((name) =>
    one(view, name),
  );
  const relative = last ?? (days ? `${days}d` : null);
  if (relative) return `Last ${span(relative)?.words ?? relative}`;
  const at = (/** @type {string} */ time) =>
    Number.isNaN(Date.parse(time)) ? time : minute(time, zone);
  if (since && until && !Number.isNaN(Date.parse(since) + Date.parse(until)))
    return range(since, until, zone);
  if (since) return `Since ${at(since)}`;
  return until ? `Before ${at(until)}` : "All time";
}

/**
 * @param {State} state
 * @param {Actions} actions
 */
export function timeMenu(state, actions) {
  const open = state.ui.menu === "time";
  const last = one(state.view, "last");
  const all = timeWords(state) === "All time";
  return html`
    <div class="menu-holder" data-menu>
      <button type="button" class="tool" aria-expanded=${open} title="Time (t)" @click=${() => actions.toggleMenu("time")}>
        ${icon("clock")}<span class="label">${timeWords(state)}</span>${icon("chevron")}
      </button>
      ${
        open
          ? html`
            <div class="menu time-menu" role="dialog" aria-label="Time">
              <div class="spans">
                ${SPANS.map(
                  (each) =>
                    html`<a class="item" aria-current=${each === last} href=${actions.href(timeChange({ last: each }))}>Last ${span(each)?.words}</a>`,
                )}
                <a class="item" aria-current=${all} href=${actions.href(timeChange({}))}>All time</a>
              </div>
              ${absolute(state, actions)}
            </div>`
          : nothing
      }
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
export function zoneMenu(state, actions) {
  const open = state.ui.menu === "zone";
  const mine = localZone();
  return html`
    <div class="menu-holder" data-menu>
      <button type="button" class="tool" aria-expanded=${open} title="Time zone (z)" @click=${() => actions.toggleMenu("zone")}>
        ${icon("globe")}<span class="label">${state.zone}</span>${icon("chevron")}
      </button>
      ${
        open
          ? html`
            <div class="menu zone-menu" role="dialog" aria-label="Time zone">
              ${[...new Set(["UTC", mine])].map(
                (zone) => html`
                  <button type="button" class="item" aria-current=${zone === state.zone} @click=${() => actions.setZone(zone)}>
                    ${zone} <span class="muted">${zone === mine ? "this computer" : ""}</span>
                  </button>`,
              )}
              <form @submit=${(/** @type {Event} */ event) => {
                event.preventDefault();
                const form = /** @type {HTMLFormElement} */ (event.target);
                const input = /** @type {HTMLInputElement} */ (form.elements.namedItem("zone"));
                if (isZone(input.value)) actions.setZone(input.value);
                else input.setCustomValidity("Choose a zone from the list");
                input.reportValidity();
              }}>
                <label>Another zone
                  <input name="zone" list="zones" autocomplete="off" spellcheck="false" placeholder="Europe/Berlin"
                    @input=${(/** @type {Event} */ event) => /** @type {HTMLInputElement} */ (event.target).setCustomValidity("")}>
                </label>
                <datalist id="zones">${zones().map((zone) => html`<option value=${zone}></option>`)}</datalist>
                <button type="submit">Use it</button>
              </form>
            </div>`
          : nothing
      }
    </div>`;
}
