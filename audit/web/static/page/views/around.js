/** What ran on the same service just before and just after a task. */

import { html, nothing } from "../../lit-html/lit-html.js";
import { ROOT } from "../api.js";
import { duration, exact, secondsBetween } from "../time.js";
import { changed, format } from "../url.js";
import { count, counted, statusIcon } from "./parts.js";

const MINUTE_MS = 60_000;
const WINDOW_MS = 30 * MINUTE_MS;
const KIND_MS = 30 * 24 * 60 * MINUTE_MS;
/** The tasks within the window are all known if there are no more. */
const LIMIT = 50;
const SHOWN = 3;

/**
 * The heading of a part of a task. The task itself has an h1 on its own page, and an h2 in the panel.
 * @param {State} state
 * @param {string} title
 * @param {string} [note]
 */
export function partHeading({ view }, title, note = "") {
  const words = html`${title} <span class="muted">${note}</span>`;
  return view.page === "task" ? html`<h2>${words}</h2>` : html`<h3>${words}</h3>`;
}

/**
 * @param {Task} task
 * @param {number} before  Milliseconds before the task.
 * @param {number} after  Milliseconds after it.
 */
function span(task, before, after) {
  const at = Date.parse(task.created_at);
  return {
    since: new Date(at - before).toISOString(),
    until: new Date(at + after).toISOString(),
  };
}

/**
 * Ask for what is shown around a task.
 * @param {Task} task
 * @param {Ask} ask
 */
export function askAround(task, ask) {
  const [service] = task.services_touched;
  const intent = task.outcome?.action_type;
  const until = task.created_at;
  if (service === undefined) return;
  ask("around", "query", { service, ...span(task, WINDOW_MS, WINDOW_MS), limit: `${LIMIT}` });
  ask("before", "query", { service, until, limit: `${SHOWN}` });
  if (typeof intent !== "string") return;
  const kind = { service, intent };
  ask("success", "query", { ...kind, status: "completed", until, limit: "1" });
  ask("durations", "statistics/durations", { ...kind, ...span(task, KIND_MS, 0) });
}

/**
 * @param {Task} task
 * @param {State} state
 * @param {Actions} actions
 */
export function around(task, state, actions) {
  const [service, ...others] = task.services_touched;
  if (service === undefined) return nothing;
  const near = state.parts.around?.data;
  const before = state.parts.before?.data;
  const failed = [state.parts.around, state.parts.before].some((part) => part?.problem);
  return html`
    <section class="task-section">
      ${partHeading(state, "Around it", `on ${service}`)}
      ${
        near && before
          ? html`
            <p>${summary(task, near, service, actions)}</p>
            <ol class="around">
              ${earlier(before).map((row) => line(row, task, state))}
              <li class="this"><span class="distance">this one</span>${statusIcon(task.status)}<span>${task.request_text}</span></li>
              ${later(near, task).map((row) => line(row, task, state))}
            </ol>
            ${lastSuccess(task, state)}`
          : html`<p class="muted">${failed ? "The service does not say what else ran. Try again later." : "Loading…"}</p>`
      }
      ${others.length > 0 ? html`<p class="muted">Also: ${others.map((each) => html`<a class="value-link" href=${windowHref(task, each, actions)}>${each}</a> `)}</p>` : nothing}
    </section>`;
}

/**
 * Return the URL that shows another task where this one is shown.
 * @param {State} state
 * @param {string} id
 */
function siblingHref({ view }, id) {
  return format(view.page === "task" ? { ...view, id } : changed(view, { task: id }), ROOT);
}

/**
 * @param {Task} task
 * @param {string} service
 * @param {Actions} actions
 */
function windowHref(task, service, actions) {
  return actions.freshHref({ service, ...span(task, WINDOW_MS, WINDOW_MS), task: task.task_id });
}

/**
 * @param {Task} task
 * @param {Page} near
 * @param {string} service
 * @param {Actions} actions
 */
function summary(task, near, service, actions) {
  const others = near.total - (near.tasks.some((row) => row.task_id === task.task_id) ? 1 : 0);
  if (near.total <= LIMIT && others === 0) return "Nothing else within 30 minutes.";
  const failures = near.tasks.filter(
    (row) => row.status === "failed" && row.task_id !== task.task_id,
  ).length;
  const words = near.total <= LIMIT && failures > 0 ? `, ${count(failures)} failed` : "";
  return html`<a href=${windowHref(task, service, actions)}>${counted(others, "other task")}</a> within 30 minutes${words}.`;
}

/** @param {Page} before */
function earlier({ tasks }) {
  return tasks.toReversed();
}

/**
 * The next tasks, if they are known: lists are newest first, so they are at the end of the window.
 * @param {Page} near
 * @param {Task} task
 */
function later({ tasks, total }, task) {
  const place = tasks.findIndex((row) => row.task_id === task.task_id);
  if (place === -1 || total > LIMIT + place) return [];
  return tasks.slice(Math.max(0, place - SHOWN), place).reverse();
}

/**
 * @param {Row} row
 * @param {Task} task
 * @param {State} state
 */
function line(row, task, state) {
  const seconds = secondsBetween(task.created_at, row.created_at);
  const when = `${seconds < 0 ? "−" : "+"}${duration(Math.abs(seconds))}`;
  return html`
    <li>
      <time class="distance" datetime=${row.created_at} title=${exact(row.created_at, state.zone)}>${when}</time>
      <span class="status ${row.status}">${statusIcon(row.status)}<span class="hidden">${row.status}</span></span>
      <a href=${siblingHref(state, row.task_id)}>${row.request_text}</a>
    </li>`;
}

/**
 * @param {Task} task
 * @param {State} state
 */
function lastSuccess(task, state) {
  const intent = task.outcome?.action_type;
  const rows = state.parts.success?.data?.tasks;
  if (typeof intent !== "string" || !rows) return nothing;
  const [row] = rows;
  if (!row) return html`<p>${intent} has not succeeded on this service before.</p>`;
  const ago = duration(secondsBetween(row.created_at, task.created_at));
  return html`<p>Last success of ${intent}: <a href=${siblingHref(state, row.task_id)}>${ago} before</a>.</p>`;
}
