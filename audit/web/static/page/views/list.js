/** The list: what is shown, states, histogram, facets, tasks, paging. */

import { repeat } from "../../lit-html/directives/repeat.js";
import { html, nothing } from "../../lit-html/lit-html.js";
import { address } from "../api.js";
import {
  ago,
  clock,
  duration,
  exact,
  minute,
  secondsBetween,
  timeWords,
  zoneName,
} from "../time.js";
import { all, filterParams, one, toggled } from "../url.js";
import { facets } from "./facets.js";
import { histogram } from "./histogram.js";
import {
  count,
  counted,
  empty,
  failed,
  icon,
  isOpen,
  loading,
  menuHolder,
  percent,
  STATUSES,
  statusIcon,
} from "./parts.js";

/**
 * @param {State} state
 * @param {Actions} actions
 */
export function list(state, actions) {
  const { list, histogram: bars } = state.parts;
  const total = list.data?.total ?? bars.data?.total ?? null;
  return html`
    <div class="list">
      <div class="title-row">
        <h1>${title(state, total)}</h1>
        <p class="when muted"><span class="window">${timeWords(state)}</span>${rate(state)}</p>
        <div class="title-tools">${liveButton(state, actions)}${share(state, actions)}</div>
      </div>
      ${wrong(state, actions)}
      ${states(state, actions)}
      ${histogram(state, actions)}
      <div class="columns">
        <button type="button" class="show-facets" aria-expanded=${state.ui.filtersOpen}
          @click=${() => actions.set({ filtersOpen: !state.ui.filtersOpen })}>${icon("sliders")}Narrow down</button>
        <nav class="facets ${state.ui.filtersOpen ? "shown" : ""}" aria-label="Narrow down">${facets(state, actions)}</nav>
        <section class="tasks ${list.loading && list.data ? "stale" : ""}" aria-label="Tasks" aria-busy=${list.loading}>
          ${tasks(state, actions)}
        </section>
      </div>
    </div>`;
}

/** @param {State} state */
function isLive({ view }) {
  return one(view, "live") !== null;
}

/**
 * @param {State} state
 * @param {Actions} actions
 */
function liveButton(state, actions) {
  return html`<button type="button" aria-pressed=${isLive(state)} title="Live (l): show changes as they happen" @click=${actions.toggleLive}>${icon("live")}Live</button>`;
}

/**
 * Ways to hand on what is shown.
 * @param {State} state
 * @param {Actions} actions
 */
function share(state, actions) {
  const open = state.ui.menu === "copy";
  const opener = html`
    <div class="joined">
      <button type="button" title="Copy a link to exactly these tasks (c)" @click=${() => actions.copyLink()}>${icon("link")}Copy link</button>
      <button type="button" aria-label="More to copy" aria-expanded=${open} @click=${() => actions.toggleMenu("copy")}>${icon("chevron")}</button>
    </div>`;
  return menuHolder("copy", opener, state, actions);
}

/**
 * @param {State} state
 * @param {number | null} total
 */
function title(state, total) {
  const statuses = all(state.view, "status");
  const noun = statuses.length === 1 ? `${statuses[0]} task` : "task";
  if (total === null) return "Tasks";
  return total === 0 ? `No ${noun}s` : counted(total, noun);
}

/**
 * @param {State} state
 * @param {Actions} actions
 */
function tasks(state, actions) {
  const isShown = isLive(state) && !state.parts.list.problem;
  const live = isShown && actions.later("live")?.bar(state, actions);
  return html`${live || nothing} ${answer(state, actions)}`;
}

/**
 * @param {State} state
 * @param {Actions} actions
 */
function answer(state, actions) {
  const { data, problem } = state.parts.list;
  if (problem) return problem.errors.length > 0 ? nothing : failed(problem, actions.reload);
  if (!data) return loading();
  if (data.tasks.length === 0) return empty(state, actions);
  return html`${rows(state, actions, data)} ${foot(state, actions, data)}`;
}

/**
 * The parameters that the API refused, each with a way out.
 * @param {State} state
 * @param {Actions} actions
 */
function wrong(state, actions) {
  const { list, histogram, facets } = state.parts;
  // What the list says comes last, and stays: a parameter of the page is a parameter of the list.
  const errors = [facets, histogram, list].flatMap((part) => part.problem?.errors ?? []);
  const fields = new Map(errors.map(({ field, detail }) => [field, detail]));
  if (fields.size === 0) return nothing;
  return html`
    <div class="wrong" role="alert"><ul>
      ${[...fields].map(
        ([field, detail]) => html`
          <li>
            <strong>${field}${value(state, field)}</strong> ${detail}
            <a href=${actions.href({ [field]: null })}>Remove it</a>
          </li>`,
      )}
    </ul></div>`;
}

/**
 * @param {State} state
 * @param {string} field
 */
function value(state, field) {
  const values = all(state.view, field);
  return values.length > 0 ? ` = ${values.join(", ")}` : "";
}

/**
 * How many tasks are in each state under the other filters. A click chooses states.
 * @param {State} state
 * @param {Actions} actions
 */
function states(state, actions) {
  const counts = countsByStatus(state);
  const chosen = all(state.view, "status");
  const missing = state.parts.facets.problem ? "–" : "…";
  return html`
    <div class="states ${state.parts.facets.loading ? "stale" : ""}" role="group" aria-label="States">
      ${STATUSES.map(
        (status) => html`
          <a class="state-count ${status}" role="button" aria-pressed=${chosen.includes(status)}
            href=${actions.href(toggled(state.view, "status", status))}>
            ${statusIcon(status)}<span>${status}</span> <strong>${counts ? count(counts[status]) : missing}</strong>
          </a>`,
      )}
    </div>`;
}

/**
 * The share of failures among the tasks that ended by themselves. A rejected task did not fail.
 * @param {State} state
 */
function rate(state) {
  const counts = countsByStatus(state);
  if (!counts) return nothing;
  const ended = counts.failed + counts.completed;
  if (ended === 0) return nothing;
  return html`<span class="window"> · </span><span title="failed ÷ (failed + completed)">${percent(counts.failed / ended)} failed</span>`;
}

/**
 * @param {State} state
 * @returns {Counts | null}
 */
function countsByStatus({ view, parts }) {
  const values = parts.facets.problem ? null : parts.facets.data?.facets.status?.values;
  // Without a filter of states, the bars count the same.
  if (!values)
    return all(view, "status").length > 0 ? null : (parts.histogram.data?.status ?? null);
  const counts = { pending: 0, approved: 0, executing: 0, completed: 0, failed: 0, rejected: 0 };
  for (const { value, total } of values) {
    if (value !== null) counts[/** @type {Status} */ (value)] = total;
  }
  return counts;
}

const SERVICES = 2;

/**
 * @param {State} state
 * @param {Actions} actions
 * @param {Page} page
 */
function rows(state, actions, page) {
  const now = (state.parts.list.at ?? new Date()).getTime();
  return html`
    <table class="rows">
      <thead>
        <tr>
          <th scope="col" class="created">Created <span class="zone" title=${state.zone}>(${zoneName(state.zone)})</span></th>
          <th scope="col" class="state">State</th>
          <th scope="col" class="service">Service</th>
          <th scope="col" class="intent">Intent</th>
          <th scope="col" class="took">Took</th>
          <th scope="col" class="request">Request and error</th>
        </tr>
      </thead>
      <tbody>
        ${repeat(
          page.tasks,
          (task) => task.task_id,
          (task) => row(task, state, actions, now),
        )}
      </tbody>
    </table>`;
}

/**
 * A click beside the links opens the task too, but not the end of selecting text.
 * @param {Event} event
 * @param {Row} task
 * @param {Actions} actions
 */
function click(event, task, actions) {
  const target = /** @type {Element} */ (event.target);
  if (!target.closest("a, button") && getSelection()?.isCollapsed) actions.open(task.task_id);
}

/**
 * @param {Row} task
 * @param {State} state
 * @param {Actions} actions
 * @param {number} now
 */
function row(task, state, actions, now) {
  const intent = task.outcome?.action_type;
  const open = one(state.view, "task") === task.task_id;
  const fresh = state.live.fresh.has(task.task_id);
  return html`
    <tr class="${open ? "open" : ""} ${fresh ? "fresh" : ""}" data-row=${task.task_id} @click=${(/** @type {Event} */ event) => click(event, task, actions)}>
      <td class="created">
        <a href=${actions.href({ task: task.task_id })} data-task=${task.task_id} aria-current=${open}
          title="${exact(task.created_at, state.zone)}, ${ago(task.created_at, now)}">${created(task.created_at, state.zone, now)}</a>
      </td>
      <td class="state"><span class="status ${task.status}">${statusIcon(task.status)}${task.status}</span></td>
      <td class="service">${services(task, actions)}</td>
      <td class="intent">
        ${typeof intent === "string" ? html`<a class="value-link" title="Only ${intent}" href=${actions.href({ intent })}>${intent}</a>` : html`<span class="muted">–</span>`}
      </td>
      <td class="took">${took(task, now)}</td>
      <td class="request">
        <span title=${task.request_text}>${task.request_text}</span>
        ${task.error_message ? html`<span class="error" title=${task.error_message}>${task.error_message}</span>` : nothing}
      </td>
    </tr>`;
}

/**
 * The time, with the parts that matter less in a lighter colour.
 * @param {string} time
 * @param {string} zone
 * @param {number} now
 */
function created(time, zone, now) {
  const at = clock(time, zone);
  const year = at.year === clock(now, zone).year ? "" : `${at.year}-`;
  const milliseconds = /\.\d{3}/.exec(time)?.[0] ?? "";
  return html`<time datetime=${time}><span class="day">${year}${at.month}-${at.day}</span> ${at.hour}:${at.minute}:${at.second}<span class="ms">${milliseconds}</span></time>`;
}

/**
 * @param {Row} task
 * @param {Actions} actions
 */
function services({ services_touched: touched }, actions) {
  if (touched.length === 0) return html`<span class="muted">–</span>`;
  const more = touched.slice(SERVICES);
  return html`
    ${touched
      .slice(0, SERVICES)
      .map(
        (service) =>
          html`<a class="value-link" title="Only tasks that touched ${service}" href=${actions.href({ service })}>${service}</a>`,
      )}
    ${more.length > 0 ? html`<span class="muted plus" title=${more.join(", ")}>+${more.length}</span>` : nothing}`;
}

/**
 * @param {Row} task
 * @param {number} now
 */
function took({ status, created_at, completed_at }, now) {
  if (completed_at) return duration(secondsBetween(created_at, completed_at));
  if (!isOpen(status)) return html`<span class="muted">–</span>`;
  return html`<span class="muted" title="Not finished">${duration(Math.max(0, (now - Date.parse(created_at)) / 1000))} …</span>`;
}

const LIMITS = ["50", "100", "200", "500"];

/**
 * @param {State} state
 * @param {Actions} actions
 * @param {Page} page
 */
function foot(state, actions, page) {
  const { first, previous } = actions.place();
  const shown = page.tasks.length;
  const end = first === null ? null : first - 1 + shown;
  // Live mode cuts off the rows before the cursor. Then the number of the next row leads on.
  const next = page.next_cursor
    ? { cursor: page.next_cursor, offset: null }
    : end !== null && end < page.total
      ? { cursor: null, offset: `${end}` }
      : null;
  const later = one(state.view, "cursor") !== null || one(state.view, "offset") !== null;
  return html`
    <nav class="foot" aria-label="Pages">
      ${later ? html`<a class="button" rel="first" href=${actions.href({ cursor: null, offset: null })}>‹‹ First</a>` : nothing}
      ${previous !== null ? html`<a class="button" rel="prev" href=${actions.href(previous)}>‹ Newer</a>` : nothing}
      <p>${first === null ? `${count(shown)} tasks` : `${count(first)}–${count(first + shown - 1)}`} of ${count(page.total)}</p>
      ${
        next === null
          ? nothing
          : html`<a class="button" rel="next" href=${actions.href(next)}>Older ›</a>`
      }
      <span class="space"></span>
      <p>${download(state, "csv", `CSV of all ${count(page.total)}`)} · ${download(state, "ndjson", "NDJSON")}</p>
      ${page.total > page.limit ? jump(page, actions) : nothing}
      <label class="small select">Rows
        <select @change=${(/** @type {Event} */ event) =>
          actions.go({ limit: /** @type {HTMLSelectElement} */ (event.target).value })}>
          ${[...new Set([...LIMITS, `${page.limit}`])].map(
            (limit) => html`<option ?selected=${+limit === page.limit}>${limit}</option>`,
          )}
        </select>
      </label>
    </nav>
    <p class="printed">${count(page.total)} tasks, as of ${minute(state.parts.list.at ?? new Date(), "UTC")} UTC<br>${location.href}</p>`;
}

/**
 * A link to a file with all tasks that match the filter.
 * @param {State} state
 * @param {string} format
 * @param {string} words
 */
function download(state, format, words) {
  const params = filterParams(state.view);
  params.set("format", format);
  return html`<a download href=${address("export", params)}>${words}</a>`;
}

/**
 * @param {Page} page
 * @param {Actions} actions
 */
function jump(page, actions) {
  return html`
    <form class="jump" @submit=${(/** @type {Event} */ event) => {
      event.preventDefault();
      const form = /** @type {HTMLFormElement} */ (event.target);
      const input = /** @type {HTMLInputElement} */ (form.elements.namedItem("number"));
      if (input.value) actions.go({ offset: `${+input.value - 1}`, cursor: null });
    }}>
      <label>Go to task no. <input name="number" type="number" min="1" max=${page.total} inputmode="numeric"></label>
    </form>`;
}
