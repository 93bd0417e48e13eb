/** One task, in the side panel and on a page of its own. */

import { html, nothing } from "../../lit-html/lit-html.js";
import { ROOT } from "../api.js";
import { member, parse, tree } from "../json.js";
import { duration, exact, secondsBetween } from "../time.js";
import { all, changed, format, one } from "../url.js";
import { around, partHeading } from "./around.js";
import { failed, icon, isOpen, statusIcon } from "./parts.js";
import { timeline } from "./timeline.js";

export { askAround } from "./around.js";

/** A longer request gets a section of its own, and only its beginning stands in the heading. */
const HEADING_AT_MOST = 200;
const DOCUMENTS = /** @type {const} */ ([
  ["outcome", "Outcome"],
  ["estimated_resources", "Estimated resources"],
  ["actual_resources", "Actual resources"],
  ["external_ai_used", "External AI"],
  ["suggestions", "Suggestions"],
]);

/**
 * @param {State} state
 * @param {Actions} actions
 */
export function task(state, actions) {
  const { data, problem } = state.parts.task;
  return html`
    ${bar(state, actions)}
    ${problem ? failed(problem, actions.reload) : data ? details(data, state, actions) : loadingTask()}`;
}

function loadingTask() {
  return html`
    <div class="placeholder of-task" aria-busy="true">
      <p class="hidden" role="status">Loading</p>
      ${Array.from({ length: 7 }, () => html`<i></i>`)}
    </div>`;
}

/**
 * The buttons above the task: to its neighbours in the list, to its own page, and out.
 * @param {State} state
 * @param {Actions} actions
 */
function bar(state, actions) {
  const id = actions.taskId() ?? "";
  if (state.view.page === "task") {
    return html`<p class="task-bar"><a href=${listHref(state, actions, {})}>${icon("chevron")}All tasks</a></p>`;
  }
  const { newer, older } = neighbours(state);
  return html`
    <div class="task-bar">
      ${neighbour("Newer", "[", newer, () => actions.neighbour(-1))}
      ${neighbour("Older", "]", older, () => actions.neighbour(1))}
      <span class="space"></span>
      <a class="button" href=${actions.taskHref(id)} title="A page of its own (o)">Open</a>
      <button type="button" class="tool square" title="Close (Esc)" aria-label="Close" @click=${actions.close}>${icon("close")}</button>
    </div>`;
}

/**
 * Whether the list that is shown has tasks before and after the open one.
 * @param {State} state
 */
function neighbours({ view, parts }) {
  const ids = parts.list.data?.tasks.map((row) => row.task_id) ?? [];
  const place = ids.indexOf(one(view, "task") ?? "");
  return { newer: place > 0, older: place >= 0 && place < ids.length - 1 };
}

/**
 * Return the URL of the shown list with further filters. A page of one task shows no list, so there
 * it is a list with these filters alone.
 * @param {State} state
 * @param {Actions} actions
 * @param {Change} change
 */
function listHref({ view }, actions, change) {
  if (view.page === "task") return actions.freshHref(change);
  return format(changed(view, { cursor: null, offset: null, ...change }), ROOT);
}

/**
 * @param {string} word
 * @param {string} key
 * @param {boolean} exists
 * @param {() => void} open
 */
function neighbour(word, key, exists, open) {
  return html`<button type="button" class="tool ${word.toLowerCase()}" title="${word} task of the list (${key})" ?disabled=${!exists} @click=${open}>${icon("chevron")}${word}</button>`;
}

/**
 * @param {Task} data
 * @param {State} state
 * @param {Actions} actions
 */
function details(data, state, actions) {
  const short =
    data.request_text.length > HEADING_AT_MOST
      ? `${[...data.request_text].slice(0, HEADING_AT_MOST).join("")}…`
      : data.request_text;
  const copied = {
    id: () => actions.copy(data.task_id, "Id copied"),
    json: () => actions.copy(state.parts.task.text, "JSON copied"),
    link: () => actions.copy(`${location.origin}${actions.taskHref(data.task_id)}`, "Link copied"),
  };
  return html`
    <header class="task-head">
      <p class="task-state"><span class="status ${data.status}">${statusIcon(data.status)}${data.status}</span> ${duty(data, state)}</p>
      ${state.view.page === "task" ? html`<h1>${short}</h1>` : html`<h2 class="title">${short}</h2>`}
      <p class="task-copy">
        <button type="button" @click=${copied.id}>Copy id</button>
        <button type="button" @click=${copied.json}>Copy JSON</button>
        <button type="button" @click=${copied.link}>Copy link</button>
        ${trace(data, state)}
      </p>
    </header>
    ${
      data.error_message === null
        ? nothing
        : section(
            state,
            "Error",
            html`<pre class="error-text" tabindex="0">${data.error_message}</pre>${copyButton(data.error_message, actions)}`,
          )
    }
    ${
      short === data.request_text
        ? nothing
        : section(
            state,
            "Request",
            html`<pre class="request-text" tabindex="0">${data.request_text}</pre>`,
          )
    }
    ${facts(data, state, actions)}
    ${section(state, "Timeline", timeline(state, actions), `(${state.zone})`)}
    ${around(data, state, actions)}
    ${documents(state, actions)}`;
}

/**
 * @param {State} state
 * @param {string} title
 * @param {unknown} content
 * @param {string} [note]
 */
function section(state, title, content, note = "") {
  return html`<section class="task-section">${partHeading(state, title, note)}${content}</section>`;
}

/**
 * How long the task has taken, or how long it has been open.
 * @param {Task} data
 * @param {State} state
 */
function duty(data, state) {
  if (data.completed_at) {
    return html`<span class="muted">took ${duration(secondsBetween(data.created_at, data.completed_at))}</span>`;
  }
  if (!isOpen(data.status) || !state.parts.task.at) return nothing;
  const seconds = (state.parts.task.at.getTime() - Date.parse(data.created_at)) / 1000;
  return html`<span class="muted">for ${duration(Math.max(0, seconds))}</span>`;
}

/**
 * @param {Task} data
 * @param {State} state
 */
function trace(data, state) {
  const id = data.outcome?.trace_id;
  const url = state.session.who?.trace_url;
  if (!url || typeof id !== "string" || !/^[0-9a-f]{32}$/i.test(id)) return nothing;
  return html`<a class="button" href=${url.replace("{trace_id}", id)} target="_blank" rel="noopener noreferrer">Trace ${id.slice(0, 8)}… ↗</a>`;
}

/**
 * @param {Task} data
 * @param {State} state
 * @param {Actions} actions
 */
function facts(data, state, actions) {
  const intent = data.outcome?.action_type;
  const services = data.services_touched.map((service) => {
    const others = all(state.view, "service").filter((each) => each !== service);
    return filter(service, { service: [...others, service] }, state, actions);
  });
  const at = (/** @type {string | null} */ time) =>
    time &&
    html`<time datetime=${time}>${exact(time, state.zone)}</time>${copyButton(time, actions)}`;
  return html`
    <dl class="facts">
      ${fact("Services", services.length > 0 && services)}
      ${fact("Intent", typeof intent === "string" && filter(intent, { intent }, state, actions))}
      ${fact("Created by", data.created_by && filter(data.created_by, { created_by: data.created_by }, state, actions))}
      ${fact("Project", data.project_id && filter(data.project_id, { project_id: data.project_id }, state, actions))}
      ${fact("Created", at(data.created_at))}
      ${fact("Approved", at(data.approved_at))}
      ${fact("Completed", at(data.completed_at))}
      ${fact("Task id", html`<code>${data.task_id}</code>${copyButton(data.task_id, actions)}`)}
    </dl>`;
}

/**
 * @param {string} name
 * @param {unknown} value  Nothing is shown for a value that is missing.
 */
function fact(name, value) {
  return value ? html`<div><dt>${name}</dt><dd>${value}</dd></div>` : nothing;
}

/**
 * A value that leads to the tasks that have it.
 * @param {string} value
 * @param {Change} change
 * @param {State} state
 * @param {Actions} actions
 */
function filter(value, change, state, actions) {
  return html`<span class="copied"><a class="value-link" title="Show tasks with ${value}" href=${listHref(state, actions, change)}>${value}</a>${copyButton(value, actions)}</span>`;
}

/**
 * @param {string} value
 * @param {Actions} actions
 */
function copyButton(value, actions) {
  const label = `Copy ${value.length > 60 ? `${value.slice(0, 60)}…` : value}`;
  return html`<button type="button" class="copy-value" title="Copy" aria-label=${label} @click=${() => actions.copy(value, "Copied")}>${icon("copy")}</button>`;
}

/** @type {{text: string, node: JsonNode | null}} */
const parsed = { text: "", node: null };

/**
 * The members that hold JSON, with numbers and names as they were sent.
 * @param {State} state
 * @param {Actions} actions
 */
function documents(state, actions) {
  const { text } = state.parts.task;
  if (parsed.text !== text) Object.assign(parsed, { text, node: parse(text) });
  const { node } = parsed;
  return DOCUMENTS.map(([name, title]) => {
    const value = node && member(node, name);
    if (!value || value.text === "null") return nothing;
    return section(state, title, tree(value, actions.redraw, afterValue(name, state, actions)));
  });
}

/**
 * Offer to copy a value, and to filter by a member of the outcome. A value inside an array has no
 * name to filter by.
 * @param {string} document
 * @param {State} state
 * @param {Actions} actions
 * @returns {import("../json.js").After}
 */
function afterValue(document, state, actions) {
  return (path, { kind, text }) => {
    const copy = copyButton(kind === "string" ? JSON.parse(text) : text, actions);
    if (document !== "outcome" || path.length === 0 || path.includes(null)) return copy;
    const outcome = path.reduceRight((inner, name) => `{${JSON.stringify(name)}:${inner}}`, text);
    const words = `Show tasks with ${path.join(".")} ${text}`;
    return html` <a class="add-filter" href=${listHref(state, actions, { outcome })} title=${words} aria-label=${words}>+ filter</a>${copy}`;
  };
}
