/** The list: what is shown, states, histogram, facets, tasks, paging. */

import { html, nothing } from "../../lit-html/lit-html.js";
import { all, toggled } from "../url.js";
import { facets } from "./facets.js";
import { foot } from "./foot.js";
import { histogram } from "./histogram.js";
import { count, counted, icon, percent, STATUSES, statusIcon } from "./parts.js";
import { rows } from "./rows.js";
import { share } from "./share.js";
import { empty, failed, loading } from "./states.js";
import { timeWords } from "./timemenu.js";

/** @typedef {import("../main.js").State} State */
/** @typedef {import("../main.js").Actions} Actions */

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
        <p class="when muted">${timeWords(state)}${rate(state)}</p>
        ${share(state, actions)}
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
  const errors = [list, histogram, facets].flatMap((part) => part.problem?.errors ?? []);
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
  return html` · <span title="failed ÷ (failed + completed)">${percent(counts.failed / ended)} failed</span>`;
}

/**
 * @param {State} state
 * @returns {import("../api.js").Counts | null}
 */
function countsByStatus({ view, parts }) {
  const values = parts.facets.problem ? null : parts.facets.data?.facets.status?.values;
  // Without a filter of states, the bars count the same.
  if (!values)
    return all(view, "status").length > 0 ? null : (parts.histogram.data?.status ?? null);
  const counts = { pending: 0, approved: 0, executing: 0, completed: 0, failed: 0, rejected: 0 };
  for (const { value, total } of values) {
    if (value !== null) counts[/** @type {import("../api.js").Status} */ (value)] = total;
  }
  return counts;
}
