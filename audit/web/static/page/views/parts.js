/** What several views show: states, numbers, icons, and what stands in place of an answer. */

import { Directive, directive } from "../../lit-html/directive.js";
import { html, noChange, nothing, svg } from "../../lit-html/lit-html.js";
import { minute } from "../time.js";
import { all, FILTERS, one, TIMES } from "../url.js";

/**
 * The states, the most urgent first. Bars are stacked in this order, from the bottom.
 * @type {Status[]}
 */
export const STATUSES = ["failed", "rejected", "executing", "approved", "pending", "completed"];

/** What tells the states apart without colour. */
const SHAPES = {
  failed: svg`<circle class="disc" cx="8" cy="8" r="7"/><path class="cut" d="M5.4 5.4l5.2 5.2M10.6 5.4l-5.2 5.2"/>`,
  rejected: svg`<circle class="ring" cx="8" cy="8" r="6"/><path class="ring" d="M4 12 12 4"/>`,
  executing: svg`<circle class="ring" cx="8" cy="8" r="6"/><path class="disc" d="M8 4.2a3.8 3.8 0 0 1 0 7.6z"/>`,
  approved: svg`<circle class="ring" cx="8" cy="8" r="6"/><path class="ring" d="M5.3 8.2l1.9 1.9 3.5-3.9"/>`,
  pending: svg`<circle class="ring dashed" cx="8" cy="8" r="6"/>`,
  completed: svg`<circle class="disc" cx="8" cy="8" r="7"/><path class="cut" d="M4.9 8.3l2.2 2.2 4-4.6"/>`,
};

/** @param {Status} status */
export function isOpen(status) {
  return status === "pending" || status === "approved" || status === "executing";
}

/** @param {Status} status */
export function statusIcon(status) {
  return html`<svg class="icon ${status}" viewBox="0 0 16 16" aria-hidden="true">${SHAPES[status]}</svg>`;
}

const ICONS = {
  bookmark: svg`<path d="M4.5 2.5h7v11L8 10.8l-3.5 2.7z"/>`,
  chevron: svg`<path d="M4.5 6.5 8 10l3.5-3.5"/>`,
  close: svg`<path d="M4.5 4.5l7 7M11.5 4.5l-7 7"/>`,
  clock: svg`<circle cx="8" cy="8" r="5.8"/><path d="M8 4.8V8l2.2 1.6"/>`,
  copy: svg`<path d="M6 5.5h6.5v8H6zM10 5.5v-3H3.5v8H6"/>`,
  globe: svg`<circle cx="8" cy="8" r="5.8"/><path d="M2.4 8h11.2M8 2.2c-3.4 3.7-3.4 7.9 0 11.6 3.4-3.7 3.4-7.9 0-11.6"/>`,
  link: svg`<path d="M6.6 9.4a2.6 2.6 0 0 0 3.8.2l2-2a2.7 2.7 0 0 0-3.8-3.8l-.9.9M9.4 6.6a2.6 2.6 0 0 0-3.8-.2l-2 2a2.7 2.7 0 0 0 3.8 3.8l.9-.9"/>`,
  live: svg`<circle class="filled" cx="8" cy="8" r="3"/><path d="M4.2 11.8a5.4 5.4 0 0 1 0-7.6M11.8 4.2a5.4 5.4 0 0 1 0 7.6"/>`,
  reload: svg`<path d="M13 8a5 5 0 1 1-1.5-3.6L13 6M13 2.8V6H9.8"/>`,
  search: svg`<circle cx="7" cy="7" r="4.3"/><path d="M10.3 10.3 13.5 13.5"/>`,
  sliders: svg`<path d="M2.5 5h6M12 5h1.5M2.5 11H4M7.5 11h6"/><circle cx="10.2" cy="5" r="1.7"/><circle cx="5.8" cy="11" r="1.7"/>`,
  theme: svg`<circle cx="8" cy="8" r="5.5"/><path class="filled" d="M8 2.5a5.5 5.5 0 0 1 0 11z"/>`,
  zoomOut: svg`<circle cx="7" cy="7" r="4.3"/><path d="M10.3 10.3 13.5 13.5M5 7h4"/>`,
};

/** @param {keyof typeof ICONS} name */
export function icon(name) {
  return html`<svg class="line-icon" viewBox="0 0 16 16" aria-hidden="true">${ICONS[name]}</svg>`;
}

/**
 * A button that is an icon.
 * @param {string} label
 * @param {keyof typeof ICONS} image
 * @param {(event: Event) => void} act
 */
export function button(label, image, act) {
  return html`<button type="button" class="tool square" title=${label} aria-label=${label} @click=${act}>${icon(image)}</button>`;
}

/**
 * A button with the menu that it opens.
 * @param {string} name
 * @param {unknown} opener
 * @param {State} state
 * @param {Actions} actions
 */
export function menuHolder(name, opener, state, actions) {
  const open = state.ui.menu === name;
  return html`
    <div class="menu-holder ${name}" data-menu>
      ${opener}${open ? actions.later("menus")?.menu(name, state, actions) : nothing}
    </div>`;
}

/** @param {number} value */
export function count(value) {
  return value.toLocaleString("en-US");
}

/**
 * @param {number} value
 * @param {string} noun
 */
export function counted(value, noun) {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}

/**
 * A share such as "5.6 %"; "–" if there is nothing to share.
 * @param {number | null} share
 */
export function percent(share) {
  if (share === null) return "–";
  const value = share * 100;
  if (value === 0 || value === 100) return `${value} %`;
  if (value < 0.1) return "< 0.1 %";
  return `${Math.min(value, 99.9).toFixed(value < 10 ? 1 : 0)} %`;
}

/** Filters that no answer counts without. */
const NOT_COUNTED_WITHOUT = ["service", "outcome"];
/** Filters whose facet ignores the filter itself, so that it tells what is there without it. */
const COUNTED_WITHOUT = ["status", "intent", "created_by", "project_id"];

/** Counts the seconds until a time. */
class Countdown extends Directive {
  /** @type {ReturnType<typeof setInterval> | undefined} */
  timer;

  /** @param {number} _until */
  render(_until) {
    return noChange;
  }

  /**
   * @param {import("../../lit-html/directive.js").ElementPart} part
   * @param {[number]} values
   */
  update({ element }, [until]) {
    clearInterval(this.timer);
    const show = () => {
      const seconds = Math.ceil((until - Date.now()) / 1000);
      element.textContent = seconds > 0 ? `Trying again in ${seconds} s` : "Trying again";
      if (!element.isConnected && this.timer) clearInterval(this.timer);
    };
    show();
    this.timer = setInterval(show, 1000);
    return noChange;
  }
}
const countdown = directive(Countdown);

/** Rows without text, which appear only if the answer is slow. */
export function loading() {
  return html`
    <div class="placeholder" aria-busy="true">
      <p class="hidden" role="status">Loading</p>
      ${Array.from({ length: 12 }, () => html`<i></i>`)}
    </div>`;
}

/**
 * @param {import("../api.js").Problem} problem
 * @param {() => void} retry
 */
export function failed(problem, retry) {
  const { title, detail, errors, requestId, retryAfterSeconds: wait, at, mayPass } = problem;
  return html`
    <div class="state failure" role="alert">
      <p><strong>${title}</strong></p>
      ${detail && detail !== title && errors.length === 0 ? html`<p class="detail">${detail}</p>` : nothing}
      ${errors.length > 0 ? html`<ul>${errors.map((error) => html`<li><code>${error.field}</code>: ${error.detail}</li>`)}</ul>` : nothing}
      ${
        mayPass
          ? html`<p class="retry"><button type="button" @click=${() => retry()}>Try again</button>
            ${wait === null ? nothing : html`<span class="muted" aria-hidden="true" ${countdown(at + wait * 1000)}></span>`}</p>`
          : nothing
      }
      ${requestId ? html`<p class="muted">Request <code>${requestId}</code></p>` : nothing}
    </div>`;
}

/**
 * @param {State} state
 * @param {Actions} actions
 */
export function empty(state, actions) {
  const { view } = state;
  const filters = FILTERS.filter((name) => all(view, name).length > 0);
  if (filters.length === 0) return nothingRecorded();
  const without = COUNTED_WITHOUT.filter((name) => filters.includes(name))
    .map((name) => ({ name, total: totalWithout(state, name) }))
    .filter(({ total }) => total > 0);
  const uncounted = NOT_COUNTED_WITHOUT.filter((name) => filters.includes(name));
  const outside = outsideWindow(state, actions);
  return html`
    <div class="state empty">
      <h2>No task matches</h2>
      ${
        without.length > 0 || uncounted.length > 0 || outside !== nothing
          ? html`<ul>
            ${uncounted.map((name) => html`<li><a href=${actions.href({ [name]: null })}>Without ${words(view, name)}</a></li>`)}
            ${without.map(({ name, total }) => html`<li>Without ${words(view, name)}: <a href=${actions.href({ [name]: null })}>${counted(total, "task")}</a></li>`)}
            ${outside}
          </ul>`
          : html`<p class="muted">No other time and no single filter less would show a task.</p>`
      }
      <p><a class="button" href=${actions.href(Object.fromEntries(filters.map((name) => [name, null])))}>Show everything</a></p>
    </div>`;
}

function nothingRecorded() {
  return html`
    <div class="state empty">
      <h2>No task has been recorded yet</h2>
      <p>Tasks appear here as soon as a program records them. <a href="docs">How to record a task</a></p>
    </div>`;
}

/**
 * @param {View} view
 * @param {string} name
 */
function words(view, name) {
  return html`<b>${name.replace("_", " ")}</b> ${all(view, name).join(name === "service" ? " and " : " or ")}`;
}

/**
 * The number of tasks that match all filters but one; 0 if the facet does not tell.
 * @param {State} state
 * @param {string} name
 */
function totalWithout({ parts }, name) {
  const values = parts.facets.data?.facets[name]?.values ?? [];
  return values.reduce((sum, { total }) => sum + total, 0);
}

/**
 * Ask for the newest task that matches at any time.
 * @param {State} state
 * @param {Ask} ask
 */
export function askOutside({ view, parts }, ask) {
  const { data, problem } = parts.list;
  if (problem || data?.total !== 0 || !TIMES.some((name) => one(view, name))) return;
  const params = new URLSearchParams({ limit: "1" });
  for (const name of FILTERS.filter((each) => !TIMES.includes(each))) {
    for (const value of all(view, name)) params.append(name, value);
  }
  ask("outside", "query", params);
}

/**
 * @param {State} state
 * @param {Actions} actions
 */
function outsideWindow(state, actions) {
  const page = state.parts.outside?.data;
  const newest = page?.tasks[0];
  if (!newest || !TIMES.some((name) => one(state.view, name))) return nothing;
  const anyTime = actions.href(Object.fromEntries(TIMES.map((name) => [name, null])));
  return html`<li>At any time: <a href=${anyTime}>${counted(page.total, "task")}</a>, the newest on ${minute(newest.created_at, state.zone)}</li>`;
}
