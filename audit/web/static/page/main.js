/**
 * The start of the page: state, requests, rendering, and all listeners on `window`.
 *
 * Everything that a link should carry is in the URL (`state.view`). `state.parts` holds the answers
 * of the API, each of which loads and fails on its own. `state.ui` holds what no link needs to carry.
 * A view is a function from the state to a template. It changes nothing itself; it calls an action.
 * The types are in `types.d.ts`.
 */

import { render } from "../lit-html/lit-html.js";
import { makeActions, press } from "./actions.js";
import { get, Problem, ROOT } from "./api.js";
import { remember } from "./shown.js";
import { isZone } from "./time.js";
import { changed, filterParams, format, isStep, listParams, one, parse } from "./url.js";
import { askOutside, counted } from "./views/parts.js";
import { shell } from "./views/shell.js";

const NARROW = matchMedia("(max-width: 719px)");
const root = /** @type {HTMLElement} */ (document.getElementById("page"));
// Its URL is relative to the document, whose own URL is about to change.
const favicon = document.querySelector("link[rel=icon]");
if (favicon instanceof HTMLLinkElement) favicon.setAttribute("href", favicon.href);

/** @returns {Part<any>} */
function emptyPart() {
  return {
    question: "",
    data: null,
    text: "",
    at: null,
    position: null,
    loading: false,
    problem: null,
    request: null,
  };
}

/** @type {State} */
const state = {
  view: parse(new URL(location.href), ROOT),
  zone: "UTC",
  session: { needed: false, who: null, asking: false, refusal: "" },
  parts: {
    list: emptyPart(),
    histogram: emptyPart(),
    facets: emptyPart(),
    task: emptyPart(),
    history: emptyPart(),
  },
  ui: {
    menu: "",
    help: false,
    draft: "",
    option: -1,
    bar: -1,
    selection: null,
    table: false,
    log: false,
    top: 10,
    find: {},
    filtersOpen: false,
    narrow: NARROW.matches,
    theme: /** @type {Ui["theme"]} */ (localStorage.getItem("theme") ?? "auto"),
    keys: localStorage.getItem("keys") !== "off",
    notice: "",
    spoken: "",
    outdated: false,
  },
  live: { lost: false, waiting: new Map(), overflow: false, fresh: new Set() },
};

/** The parts of the page that are loaded when they are needed first. */
const LATER = {
  help: () => import("./views/help.js"),
  live: () => import("./live.js"),
  login: () => import("./views/login.js"),
  menus: () => import("./views/menus.js"),
  task: () => import("./views/task.js"),
};
/** @type {{[N in keyof typeof LATER]?: Promise<unknown>}} */
const loading = {};
/** @type {Partial<Later>} */
const loaded = {};
/** @type {Promise<unknown> | undefined} */
let style;

/**
 * Load a part of the page. Return undefined if it cannot be loaded.
 * @template {keyof Later} N
 * @param {N} name
 * @returns {Promise<Later[N] | undefined>}
 */
async function need(name) {
  style ??= loadStyle();
  loading[name] ??= LATER[name]();
  try {
    const [found] = await Promise.all([loading[name], style]);
    loaded[name] = /** @type {Later[N]} */ (found);
  } catch {
    // The assets of another version have other URLs, so they are gone when the service is updated.
    state.ui.outdated = true;
  }
  draw();
  return loaded[name];
}

/**
 * Return a part of the page. If it is not there yet, load it, and draw again when it is.
 * @template {keyof Later} N
 * @param {N} name
 * @returns {Later[N] | undefined}
 */
function later(name) {
  if (!loaded[name] && !loading[name]) need(name);
  return loaded[name];
}

/** Load the styles of all parts that are loaded later. */
function loadStyle() {
  return new Promise((resolve, reject) => {
    const link = document.createElement("link");
    link.addEventListener("load", resolve);
    link.addEventListener("error", reject);
    link.rel = "stylesheet";
    link.href = new URL("./later.css", import.meta.url).href;
    document.head.append(link);
  });
}

/** Whether something was changed since the last rendering. */
let pending = false;

/** Render soon, once for all changes that were made until then. */
function draw() {
  if (pending) return;
  pending = true;
  queueMicrotask(drawPending);
}

/** Render now, unless nothing was changed since the last rendering. */
function drawPending() {
  if (pending) drawNow();
}

function drawNow() {
  pending = false;
  render(shell(state, actions), root);
}

/**
 * Ask the API, unless this question was asked already. Return false if it should be asked again.
 * @param {keyof Parts} name  Where `state.parts` keeps the answer.
 * @param {string} path
 * @param {Params} [params]
 * @param {AskOptions} [options]
 */
async function ask(name, path, params = {}, { again, keep, quiet } = {}) {
  const part = state.parts[name] ?? emptyPart();
  state.parts[name] = part;
  const question = `${path}?${new URLSearchParams(params)}`;
  if (part.question === question && !again) return true;
  if (quiet && part.loading) return false;
  part.request?.abort();
  if (name === "list") loaded.live?.stop();
  const request = new AbortController();
  const shown = keep || part.question === question ? {} : { data: null, text: "", at: null };
  if (quiet) Object.assign(part, { question, request });
  else Object.assign(part, { question, request, loading: true, problem: null }, shown);
  draw();
  try {
    Object.assign(part, await get(path, params, request.signal), { problem: null });
  } catch (error) {
    if (request.signal.aborted) return false;
    const problem = asProblem(error);
    if (problem.status === 401) state.session.needed = true;
    draw();
    if (quiet) return !problem.mayPass;
    part.problem = problem;
    const wait = problem.retryAfterSeconds;
    const retry = () => !request.signal.aborted && ask(name, path, params, { again: true, keep });
    if (wait !== null) setTimeout(retry, wait * 1000);
  }
  part.loading = false;
  part.request = part.problem ? request : null;
  if (name === "list" && part.data && !part.problem) listArrived(part.data);
  if (name === "task" && part.data && !part.problem) taskArrived(part.data);
  draw();
  return true;
}

/** @param {Page} page */
async function listArrived(page) {
  remember(state);
  const total = counted(page.total, "task");
  document.title = `${total} · Task audit`;
  actions.say(total);
  askOutside(state, ask);
  if (isLive()) (await need("live"))?.start(state, main, actions);
}

/** Whether the list follows the changes of its tasks. */
function isLive() {
  return state.view.page === "list" && one(state.view, "live") !== null;
}

/** @param {Task} task */
async function taskArrived(task) {
  if (state.view.page === "task") document.title = `${task.request_text.slice(0, 80)} · Task audit`;
  (await need("task"))?.askAround(task, ask);
}

/** @param {unknown} error */
function asProblem(error) {
  if (error instanceof Problem) return error;
  console.error(error);
  return new Problem(0, { title: "The page has a defect", detail: String(error) }, null);
}

/**
 * Ask for all that the view needs and that was not asked for yet.
 * @param {{again?: boolean}} [options]
 */
function load({ again = false } = {}) {
  if (state.view.page === "list") {
    ask("list", "query", listParams(state.view), { again, keep: true });
    loadCounts({ again, keep: true });
  }
  loadTask({ again });
}

/** @param {AskOptions} options */
function loadCounts(options) {
  const { view } = state;
  const filters = filterParams(view);
  const histogram = new URLSearchParams(filters);
  const interval = one(view, "interval");
  if (interval) histogram.set("interval", interval);
  else histogram.set("buckets", state.ui.narrow ? "30" : "60");
  const zone = one(view, "tz") ?? "UTC";
  if (zone !== "UTC") histogram.set("tz", zone);
  const facets = new URLSearchParams(filters);
  for (const name of ["status", "service", "intent", "created_by", "project_id"]) {
    facets.append("facet", name);
  }
  if (state.ui.top !== 10) facets.set("top", `${state.ui.top}`);
  return Promise.all([
    ask("histogram", "statistics/histogram", histogram, options),
    ask("facets", "statistics/facets", facets, options),
  ]);
}

/** @param {AskOptions} options */
function loadTask(options) {
  const id = state.view.id ?? one(state.view, "task");
  if (!id) return Promise.all([]);
  const path = `tasks/${encodeURIComponent(id)}`;
  return Promise.all([
    ask("task", path, {}, options),
    ask("history", `${path}/history`, {}, options),
  ]);
}

/** Find out who asks. A service without this route, or without keys, needs no login. */
async function checkSession() {
  try {
    state.session = { needed: false, who: (await get("whoami")).data, asking: false, refusal: "" };
  } catch (error) {
    const needed = asProblem(error).status === 401;
    state.session = { needed, who: null, asking: false, refusal: "" };
  }
  draw();
}

/**
 * Show another view.
 * @param {View} view
 * @param {VisitOptions} [options]
 */
function visit(view, { replace = !isStep(state.view, view), mark = null } = {}) {
  const pages = ["cursor", "offset"].some((name) => one(state.view, name) !== one(view, name));
  const url = format(view, ROOT);
  if (replace) history.replaceState(mark ?? history.state, "", url);
  else history.pushState(mark, "", url);
  show(view);
  if (pages) document.querySelector(".columns")?.scrollIntoView();
}

/** @param {View} view */
function show(view) {
  const before = state.view;
  const wasLive = isLive();
  state.view = view;
  chooseZone();
  actions.closeMenu();
  Object.assign(state.ui, { selection: null, bar: -1 });
  if (!isLive()) loaded.live?.stop();
  // A list that nothing followed until now may be old.
  load({ again: isLive() && !wasLive });
  drawNow();
  const [closed, opened] = [one(before, "task"), one(view, "task")];
  if (opened && !closed) actions.focus(".panel");
  else if (closed && !opened) actions.focus(`[data-task="${CSS.escape(closed)}"]`);
}

/** The zone of the URL, or else the one that this browser used last, which then joins the URL. */
function chooseZone() {
  const remembered = localStorage.getItem("tz");
  if (!one(state.view, "tz") && remembered && remembered !== "UTC") {
    state.view = changed(state.view, { tz: remembered });
    history.replaceState(history.state, "", format(state.view, ROOT));
  }
  const zone = one(state.view, "tz") ?? "UTC";
  // The API says what is wrong with a zone that is not one.
  state.zone = isZone(zone) ? zone : "UTC";
}

/** @type {Main} */
const main = {
  ask,
  checkSession,
  draw,
  drawPending,
  isLive,
  later,
  load,
  loadCounts,
  loadTask,
  need,
  visit,
};
const actions = makeActions(state, main);

/** Follow a link of the page without loading the page again. */
addEventListener("click", (event) => {
  const target = /** @type {Element} */ (event.target);
  // The clicked element may be gone already: its own listener may have drawn the page anew.
  const path = event.composedPath();
  if (!path.some((each) => each instanceof Element && each.matches("[data-menu]")))
    actions.closeMenu();
  const link = target.closest("a[href]");
  if (!(link instanceof HTMLAnchorElement) || link.target || link.download) return;
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey)
    return;
  const url = new URL(link.href);
  if (url.origin !== location.origin || !/^tasks(\/|$)/.test(url.pathname.slice(ROOT.length)))
    return;
  event.preventDefault();
  const view = parse(url, ROOT);
  const opens = one(view, "task") && !one(state.view, "task");
  visit(view, { mark: opens ? { opened: true } : null });
});
addEventListener("popstate", () => show(parse(new URL(location.href), ROOT)));
addEventListener("keydown", (event) => press(event, state, actions));
NARROW.addEventListener("change", () => {
  state.ui.narrow = NARROW.matches;
  load();
  draw();
});

history.replaceState(history.state, "", format(state.view, ROOT));
chooseZone();
checkSession();
load();
drawNow();
