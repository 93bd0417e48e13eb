/** What stands in place of an answer: it is loading, it is empty, or it failed. */

import { Directive, directive } from "../../lit-html/directive.js";
import { html, noChange, nothing } from "../../lit-html/lit-html.js";
import { minute } from "../time.js";
import { all, FILTERS, one, TIMES } from "../url.js";
import { counted } from "./parts.js";

/** @typedef {import("../main.js").State} State */
/** @typedef {import("../main.js").Actions} Actions */
/** @typedef {import("../url.js").View} View */

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

export function loadingTask() {
  return html`
    <div class="placeholder of-task" aria-busy="true">
      <p class="hidden" role="status">Loading</p>
      ${Array.from({ length: 7 }, () => html`<i></i>`)}
    </div>`;
}

/**
 * @param {import("../api.js").Problem} problem
 * @param {() => void} retry
 */
export function failed(problem, retry) {
  const { title, detail, errors, requestId, retryAfterSeconds: wait, at, status } = problem;
  const again = status === 0 || status === 408 || status === 429 || status >= 500;
  return html`
    <div class="state failure" role="alert">
      <p><strong>${title}</strong></p>
      ${detail && detail !== title ? html`<p>${detail}</p>` : nothing}
      ${errors.length > 0 ? html`<ul>${errors.map((error) => html`<li><code>${error.field}</code>: ${error.detail}</li>`)}</ul>` : nothing}
      ${
        again
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
  return html`<b>${name.replace("_", " ")}</b> ${all(view, name).join(" or ")}`;
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
 * @param {(name: string, path: string, params: URLSearchParams) => unknown} ask
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
  /** @type {import("../api.js").Page | undefined} */
  const page = state.parts.outside?.data;
  const newest = page?.tasks[0];
  if (!newest || !TIMES.some((name) => one(state.view, name))) return nothing;
  const anyTime = actions.href(Object.fromEntries(TIMES.map((name) => [name, null])));
  return html`<li>At any time: <a href=${anyTime}>${counted(page.total, "task")}</a>, the newest on ${minute(newest.created_at, state.zone)}</li>`;
}
