/** The history of one task: who changed what, and when. */

import { html, nothing, svg } from "../../lit-html/lit-html.js";
import { address } from "../api.js";
import { member, parse, tree } from "../json.js";
import { day, duration, exact, secondsBetween, timeOfDay } from "../time.js";
import { failed, isOpen, statusIcon } from "./parts.js";

/** Longer texts begin closed. */
const TEXT_AT_MOST = 300;
/** Members that are times. */
const TIMES = ["created_at", "approved_at", "completed_at"];

/**
 * @param {State} state
 * @param {Actions} actions
 */
export function timeline(state, actions) {
  const { data: task } = state.parts.task;
  const { data, problem } = state.parts.history;
  return html`
    ${task ? phases(task, state) : nothing}
    ${
      problem
        ? failed(problem, actions.reload)
        : data
          ? events(data.events, state, actions)
          : html`<p class="muted">Loading…</p>`
    }
    ${
      data?.next_cursor
        ? html`<p class="muted">Only the first ${data.events.length} events are shown. <a href=${historyHref(actions)}>All as JSON</a></p>`
        : nothing
    }`;
}

/**
 * Return the URL of all events, for programs.
 * @param {Actions} actions
 */
function historyHref(actions) {
  const id = encodeURIComponent(actions.taskId() ?? "");
  return address(`tasks/${id}/history`, new URLSearchParams({ limit: "1000" }));
}

/**
 * What a task has done since it was approved. A finished one ran.
 * @type {Partial<Record<Status, string>>}
 */
const SINCE_APPROVAL = {
  approved: "approved for",
  executing: "has run for",
  rejected: "rejected after",
};

/**
 * How long the task waited and ran, beside the time that most tasks of its kind take.
 * @param {Task} task
 * @param {State} state
 */
function phases(task, state) {
  const { created_at: created, approved_at: approved, completed_at: completed, status } = task;
  const now = state.parts.task.at?.toISOString();
  const end = completed ?? (isOpen(status) ? now : null);
  if (!end) return nothing;
  const total = secondsBetween(created, end);
  const waited = approved ? secondsBetween(created, approved) : 0;
  if (total <= 0 || waited < 0 || waited > total) return nothing;
  const p95 = state.parts.durations?.data?.p95;
  const longest = Math.max(total, p95 ?? 0);
  const x = (/** @type {number} */ seconds) => ((seconds / longest) * 1000).toFixed(1);
  return html`
    <svg class="phases" viewBox="0 0 1000 12" preserveAspectRatio="none" aria-hidden="true">
      <rect class="pending" x="0" y="3" width=${x(waited)} height="6"></rect>
      <rect class=${status} x=${x(waited)} y="3" width=${x(total - waited)} height="6"></rect>
      ${p95 ? svg`<line class="p95" x1=${x(p95)} x2=${x(p95)} y1="0" y2="12"></line>` : nothing}
    </svg>
    <p class="phase-words">
      ${approved ? html`<span>waited ${duration(waited)} for approval</span>` : nothing}
      ${approved ? html`<span>${SINCE_APPROVAL[status] ?? "ran"} ${duration(total - waited)}</span>` : html`<span>${completed ? "took" : "open for"} ${duration(total)}</span>`}
      ${p95 ? html`<span class="muted" title="Of the tasks with this intent on this service in the 30 days before">95 % of its kind took at most ${duration(p95)}</span>` : nothing}
    </p>`;
}

/** @type {{text: string, changes: Map<string, JsonNode>[]}} */
const parsed = { text: "", changes: [] };

/**
 * @param {TaskEvent[]} entries
 * @param {State} state
 * @param {Actions} actions
 */
function events(entries, state, actions) {
  if (entries.length === 0) {
    return html`<p class="muted">This task was recorded before the event log existed. Only its own times are known.</p>`;
  }
  const { text } = state.parts.history;
  if (parsed.text !== text) Object.assign(parsed, { text, changes: readChanges(text) });
  return html`
    <ol class="timeline">
      ${entries.map((entry, place) => {
        const before = entries[place - 1];
        const newDay = !before || day(before.at, state.zone) !== day(entry.at, state.zone);
        const gap = before ? `+${duration(Math.max(0, secondsBetween(before.at, entry.at)))}` : "";
        return html`
          <li class=${entry.status}>
            <div class="moment">
              ${newDay ? html`<span class="day">${day(entry.at, state.zone)}</span>` : nothing}
              <time datetime=${entry.at} title=${exact(entry.at, state.zone)}>${timeOfDay(entry.at, state.zone)}</time>
              <span class="muted">${gap}</span>
            </div>
            ${statusIcon(entry.status)}
            <div class="what">
              <p>${headline(entry)}</p>
              ${changes(parsed.changes[place], state, actions)}
              ${record(entry)}
            </div>
          </li>`;
      })}
    </ol>`;
}

/**
 * Such as "failed by orchestrator, was executing".
 * @param {TaskEvent} entry
 */
function headline({ kind, status, changed, actor, role }) {
  const was = changed?.status?.from;
  const by = actor
    ? html`by <b class="actor">${actor}</b>`
    : html`<span class="muted">through ${role ?? "an unknown role"}</span>`;
  if (kind === "imported") return html`was <strong>${status}</strong> when the log began`;
  if (kind === "recorded") return html`recorded as <strong>${status}</strong> ${by}`;
  if (was !== undefined) return html`<strong>${status}</strong> ${by}, was ${was}`;
  return html`${kind} ${by}`;
}

/** @param {TaskEvent} entry */
function record({ position, request_id: request }) {
  const place = position === null ? "not numbered yet" : `no. ${position} of the log`;
  return html`<p class="record">${place}${request ? html` · request <code>${request}</code>` : nothing}</p>`;
}

/** @param {string} text */
function readChanges(text) {
  const list = member(parse(text), "events");
  return (list?.items ?? []).map(({ node }) => {
    const changed = member(node, "changed");
    return new Map(changed?.items.map((item) => [item.name, item.node]));
  });
}

/**
 * @param {Map<string, JsonNode>} changed
 * @param {State} state
 * @param {Actions} actions
 */
function changes(changed, state, actions) {
  const differences = [...changed]
    .filter(([name]) => name !== "status")
    .flatMap(([name, node]) => compare([name], member(node, "from"), member(node, "to")));
  if (differences.length === 0) return nothing;
  return html`
    <ul class="changes">
      ${differences.map(
        ({ path, from, to }) => html`
          <li>
            <span class="json-name">${path.join(".")}</span>
            ${from ? html`<span class="replaced">${value(path, from, state, actions)}</span> → ` : nothing}
            ${to ? value(path, to, state, actions) : html`<span class="muted">none</span>`}
          </li>`,
      )}
    </ul>`;
}

/**
 * Return the members that differ. Objects are compared member by member, and no object with none.
 * @param {string[]} path
 * @param {JsonNode | undefined} from
 * @param {JsonNode | undefined} to
 * @returns {{path: string[], from: JsonNode | undefined, to: JsonNode | undefined}[]}
 */
function compare(path, from, to) {
  if (from?.text === to?.text) return [];
  const before = from?.text === "null" ? undefined : from;
  const after = to?.text === "null" ? undefined : to;
  const objects = (!before || before.kind === "object") && after?.kind === "object";
  if (!objects || after.items.length === 0) return [{ path, from: before, to: after }];
  const names = new Set([...(before?.items ?? []), ...after.items].map((item) => item.name));
  return [...names].flatMap((name) =>
    compare([...path, name], before && member(before, name), member(after, name)),
  );
}

/**
 * @param {string[]} path
 * @param {JsonNode} node
 * @param {State} state
 * @param {Actions} actions
 */
function value(path, node, state, actions) {
  if (node.kind !== "string") return tree(node, actions.redraw);
  const text = JSON.parse(node.text);
  if (TIMES.includes(path[0])) return exact(text, state.zone);
  if (text.length <= TEXT_AT_MOST) return html`<span class="text">${text}</span>`;
  return html`<details class="json"><summary>${text.length} characters</summary><span class="text">${text}</span></details>`;
}
