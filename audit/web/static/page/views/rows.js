/** The tasks of a page, as a table that becomes cards where it is narrow. */

import { repeat } from "../../lit-html/directives/repeat.js";
import { html, nothing } from "../../lit-html/lit-html.js";
import { ago, clock, duration, exact, secondsBetween } from "../time.js";
import { one } from "../url.js";
import { statusIcon } from "./parts.js";

/** @typedef {import("../main.js").State} State */
/** @typedef {import("../main.js").Actions} Actions */
/** @typedef {import("../api.js").Row} Row */

const SERVICES = 2;

/**
 * @param {State} state
 * @param {Actions} actions
 * @param {import("../api.js").Page} page
 */
export function rows(state, actions, page) {
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
 * Such as "Berlin": a column has no room for a continent.
 * @param {string} zone
 */
function zoneName(zone) {
  return (zone.split("/").at(-1) ?? zone).replaceAll("_", " ");
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
  return html`
    <tr class=${open ? "open" : ""} data-row=${task.task_id} @click=${(/** @type {Event} */ event) => click(event, task, actions)}>
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
  const open = status === "pending" || status === "approved" || status === "executing";
  if (!open) return html`<span class="muted">–</span>`;
  return html`<span class="muted" title="Not finished">${duration(Math.max(0, (now - Date.parse(created_at)) / 1000))} …</span>`;
}
