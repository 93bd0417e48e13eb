/**
 * Live mode: the list follows the changes of its tasks, on one stream while the page is visible.
 *
 * The stream begins at the position of the list (`Feed-Position`), so nothing is missed between
 * them, and it ends when another list is asked for. A hidden page holds no stream, because a browser
 * opens few connections to one server. It continues later at the position where it stopped.
 */

import { html, nothing } from "../lit-html/lit-html.js";
import { API, get, Problem } from "./api.js";
import { relativeSeconds } from "./shown.js";
import { all, one } from "./url.js";
import { counted } from "./views/parts.js";

/** The filters of the feed. It has no times, and its `status` would hide that a task leaves the list. */
const FILTERS = ["service", "intent", "created_by", "project_id", "outcome"];
/** How often changes are shown, and how often the numbers above the list are asked for. */
const SHOW_MS = 250;
const COUNT_MS = 2000;
/** Rows that move the list by themselves within a second. If there are more, they wait. */
const MOST_A_SECOND = 20;
/** Rows of the list, and rows that wait. */
const MOST_ROWS = 500;
/** After this time without a stream, the page says so. */
const LOST_MS = 2000;
/** The service sends something every 15 seconds. A stream that is silent for longer is dead. */
const SILENT_MS = 40_000;
/** How long the service may take to say whether the page may still read. */
const ANSWER_MS = 10_000;
const RETRY_MS = { first: 500, most: 15_000 };

/** @type {EventSource | null} */
let source = null;
/** What the stream belongs to; null while there should be none. @type {{state: State, main: Main, actions: Actions} | null} */
let running = null;
let position = "";
let retryMs = RETRY_MS.first;
/** Changes that were not looked at yet. @type {FeedChange[]} */
let incoming = [];
/** When rows were inserted, within the last second. @type {number[]} */
let inserted = [];
let isCountDue = false;
/** The time until the numbers are asked for, which grows while they fail. */
let countMs = COUNT_MS;
/** @type {Partial<Record<"show" | "count" | "task" | "retry" | "lost" | "silent", ReturnType<typeof setTimeout>>>} */
let timers = {};

/**
 * Follow the list that has just arrived.
 * @param {State} state
 * @param {Main} main
 * @param {Actions} actions
 */
export function start(state, main, actions) {
  stop();
  const { list } = state.parts;
  // Another list may have been asked for while this module was loaded.
  if (!main.isLive() || list.loading) return;
  running = { state, main, actions };
  position = list.position ?? "now";
  Object.assign(state.live, { lost: false, overflow: false, waiting: new Map(), fresh: new Set() });
  open();
  // The numbers may have been counted before the list was read.
  count();
}

/** Follow nothing. What waits is part of the next list. */
export function stop() {
  close();
  running = null;
  incoming = [];
  isCountDue = false;
  countMs = COUNT_MS;
  for (const timer of Object.values(timers)) clearTimeout(timer);
  timers = {};
}

function close() {
  clearTimeout(timers.silent);
  source?.close();
  source = null;
}

/** Open the stream, if there should be one. */
function open() {
  if (!running || source || document.visibilityState === "hidden") return;
  const params = new URLSearchParams({ position });
  for (const name of FILTERS) {
    for (const value of all(running.state.view, name)) params.append(name, value);
  }
  source = new EventSource(`${API}feed?${params}`);
  source.addEventListener("change", (event) => {
    arrived(event);
    incoming.push(JSON.parse(event.data));
    timers.show ??= setTimeout(look, SHOW_MS);
  });
  source.addEventListener("position", arrived);
  source.addEventListener("gone", () => running?.main.load({ again: true }));
  source.addEventListener("error", reconnect);
  timers.lost ??= setTimeout(() => setLost(true), LOST_MS);
  timers.silent = setTimeout(reconnect, SILENT_MS);
}

/** @param {MessageEvent} event */
function arrived(event) {
  clearTimeout(timers.silent);
  timers.silent = setTimeout(reconnect, SILENT_MS);
  position = event.lastEventId;
  retryMs = RETRY_MS.first;
  setLost(false);
}

/** @param {boolean} lost */
function setLost(lost) {
  clearTimeout(timers.lost);
  timers.lost = undefined;
  if (!running || running.state.live.lost === lost) return;
  running.state.live.lost = lost;
  running.main.draw();
}

/** A stream says only that it failed, and not why. So ask whether the page may still read. */
async function reconnect() {
  close();
  const was = running;
  timers.lost ??= setTimeout(() => setLost(true), LOST_MS);
  try {
    await get("whoami", {}, AbortSignal.timeout(ANSWER_MS));
  } catch (error) {
    if (error instanceof Problem && error.status === 401 && was) {
      was.state.session.needed = true;
      was.main.draw();
      if (running === was) stop();
      return;
    }
  }
  if (running !== was || !was) return;
  timers.retry = setTimeout(open, retryMs);
  retryMs = Math.min(retryMs * 2, RETRY_MS.most);
}

document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "hidden") close();
  else open();
});

/** Put the changes that came into the list, or among those that wait. */
function look() {
  timers.show = undefined;
  if (!running) return;
  const { state, main, actions } = running;
  const { live } = state;
  const page = state.parts.list.data;
  if (!page || incoming.length === 0) return;
  const rows = new Map(incoming.map(({ task }) => [task.task_id, task]));
  incoming = [];
  const shown = new Map(page.tasks.map((row) => [row.task_id, row]));
  const isHeld = held(state);
  /** @type {Row[]} */
  const changed = [];
  /** @type {Row[]} */
  const added = [];
  for (const row of rows.values()) {
    const before = shown.get(row.task_id);
    if (before && (live.waiting.has(row.task_id) || (isHeld && grows(before, row))))
      live.waiting.set(row.task_id, row);
    else if (before) changed.push(row);
    else if (live.waiting.has(row.task_id)) {
      // It may have left the list before anyone saw it.
      if (matches(row, state)) live.waiting.set(row.task_id, row);
      else live.waiting.delete(row.task_id);
    } else if (belongs(row, state, page)) added.push(row);
  }
  const now = Date.now();
  inserted = inserted.filter((at) => at > now - 1000);
  const fits = inserted.length + added.length <= MOST_A_SECOND;
  if (isHeld || live.waiting.size > 0 || live.overflow || !fits) wait(added, live);
  else {
    inserted.push(...added.map(() => now));
    changed.push(...added);
  }
  put(changed, page, state);
  count();
  if (rows.has(one(state.view, "task") ?? "")) loadTask();
  if (live.waiting.size > 0 || live.overflow) actions.say(waitingWords(live));
  main.draw();
}

/** @param {Live} live */
function waitingWords({ waiting, overflow }) {
  return overflow ? `More than ${MOST_ROWS} changes` : counted(waiting.size, "change");
}

/**
 * @param {Row[]} rows
 * @param {Live} live
 */
function wait(rows, live) {
  if (live.overflow) return;
  for (const row of rows) live.waiting.set(row.task_id, row);
  live.overflow = live.waiting.size > MOST_ROWS;
  if (live.overflow) live.waiting.clear();
}

/**
 * Whether a person reads the list, so that no row may move.
 * @param {State} state
 */
function held({ view }) {
  if (one(view, "task") !== null || document.activeElement?.closest(".rows")) return true;
  const top = document.querySelector(".rows, .state")?.getBoundingClientRect().top ?? 0;
  return top < 0;
}

/**
 * Whether a change makes a row higher.
 * @param {Row} before
 * @param {Row} after
 */
function grows(before, after) {
  return before.error_message !== after.error_message;
}

/**
 * Whether a task that changed matches the filters that the feed does not know.
 * @param {Row} row
 * @param {State} state
 */
function matches(row, { view, parts }) {
  const statuses = all(view, "status");
  if (statuses.length > 0 && !statuses.includes(row.status)) return false;
  const at = Date.parse(row.created_at);
  const seconds = relativeSeconds(view);
  const now = parts.list.at?.getTime() ?? Date.now();
  const since = seconds === null ? Date.parse(one(view, "since") ?? "") : now - seconds * 1000;
  const until = Date.parse(one(view, "until") ?? "");
  return !(at < since) && !(at >= until);
}

/**
 * Whether a task belongs on the shown page, as far as the page goes.
 * @param {Row} row
 * @param {State} state
 * @param {Page} page
 */
function belongs(row, state, page) {
  if (!matches(row, state)) return false;
  const [first] = page.tasks;
  const isLater = one(state.view, "cursor") !== null || one(state.view, "offset") !== null;
  if (isLater && first && isNewer(row, first)) return false;
  const last = page.tasks.at(-1);
  const ends = page.next_cursor === null && page.tasks.length < MOST_ROWS;
  return ends || !last || isNewer(row, last);
}

/**
 * The order of lists: by the time of creation, then by id.
 * @param {Row} a
 * @param {Row} b
 */
function isNewer(a, b) {
  if (a.created_at === b.created_at) return a.task_id > b.task_id;
  return a.created_at > b.created_at;
}

/**
 * Put rows into the list, in its order. A row that is there already stays where it is.
 * @param {Row[]} rows
 * @param {Page} page
 * @param {State} state
 */
function put(rows, page, state) {
  if (rows.length === 0) return;
  const changes = new Map(rows.map((row) => [row.task_id, row]));
  const kept = page.tasks.map((row) => {
    const change = changes.get(row.task_id);
    changes.delete(row.task_id);
    return change ?? row;
  });
  const added = [...changes.values()];
  const tasks = [...kept, ...added].sort((a, b) => (isNewer(a, b) ? -1 : 1)).slice(0, MOST_ROWS);
  const isCut = tasks.length < kept.length + added.length;
  state.live.fresh = new Set(added.map((row) => row.task_id));
  state.parts.list.data = {
    ...page,
    tasks,
    // The histogram counts. It may have counted these rows before they are shown.
    total: Math.max(page.total, tasks.length),
    // The cursor belongs to the last row, which may be cut off.
    next_cursor: isCut ? null : page.next_cursor,
  };
}

/**
 * Show what waits.
 * @param {State} state
 * @param {Main} main
 */
export function show(state, main) {
  const { live } = state;
  const page = state.parts.list.data;
  if (live.overflow) {
    main.load({ again: true });
  } else if (page && live.waiting.size > 0) {
    put([...live.waiting.values()], page, state);
    live.waiting = new Map();
    main.draw();
  }
  scrollTo({ top: 0 });
}

/** Ask for the numbers above the list: soon after a change, but not more often than that. */
function count() {
  isCountDue = true;
  timers.count ??= setTimeout(countNow, countMs);
}

async function countNow() {
  const was = running;
  if (was && isCountDue && !was.state.ui.selection) {
    isCountDue = false;
    const answered = await was.main.loadCounts({ again: true, quiet: true });
    if (running !== was) return;
    const failed = answered.includes(false);
    isCountDue ||= failed;
    countMs = failed ? Math.min(2 * countMs, RETRY_MS.most) : COUNT_MS;
    const { list, histogram } = was.state.parts;
    if (answered[0] && !histogram.problem && list.data && histogram.data) {
      list.data = { ...list.data, total: histogram.data.total };
      was.main.draw();
    }
  }
  timers.count = undefined;
  if (isCountDue) count();
}

/** Ask for the open task, and again until the API answers. */
async function loadTask() {
  const was = running;
  clearTimeout(timers.task);
  const answered = await was?.main.loadTask({ again: true, quiet: true });
  if (running !== was || !answered?.includes(false)) return;
  clearTimeout(timers.task);
  timers.task = setTimeout(loadTask, COUNT_MS);
}

/**
 * What live mode does, above the list.
 * @param {State} state
 * @param {Actions} actions
 */
export function bar({ live }, actions) {
  return html`
    <div class="live-bar">
      <span class=${live.lost ? "muted" : "on"}>${live.lost ? "Reconnecting…" : "Live"}</span>
      ${live.waiting.size > 0 || live.overflow ? html`<button type="button" class="small primary" title="Show (n)" @click=${() => actions.showNew()}>Show ${waitingWords(live)}</button>` : nothing}
    </div>`;
}
