/** Everything that a person can do on the page, and the shortcuts for it. Views call these functions. */

import { ROOT } from "./api.js";
import { makeClipboard, place, shownWindow, widened, zoomed } from "./shown.js";
import { localZone } from "./time.js";
import { changed, format, one, parse, timeChange } from "./url.js";

/** How long a notice is shown. */
const NOTICE_MS = 4000;
/** Screen readers get at most one message in this time. */
const SPOKEN_MS = 5000;

/**
 * @param {State} state
 * @param {Main} main
 */
export function makeActions(state, main) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let noticeTimer;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let spokenTimer;
  let spokenAt = 0;

  const actions = {
    ask: main.ask,
    checkSession: main.checkSession,
    later: main.later,
    redraw: main.draw,

    /** Ask again for all parts of the page. */
    reload() {
      main.load({ again: true });
    },

    /**
     * Return the URL of the shown view after a change, for a link.
     * @param {Change} change
     */
    href(change) {
      return format(changed(state.view, change), ROOT);
    },

    /**
     * Show the view after a change.
     * @param {Change} change
     * @param {{replace?: boolean, mark?: object | null}} [options]
     */
    go(change, options) {
      main.visit(changed(state.view, change), options);
    },

    /**
     * Return the URL of a list that has nothing in common with the shown one but the time zone.
     * @param {Change} change
     */
    freshHref(change) {
      const fresh = changed({ page: "list", id: null, params: {} }, { tz: one(state.view, "tz") });
      return format(changed(fresh, change), ROOT);
    },

    /** Return the id of the task that is shown, in the panel or on a page of its own. */
    taskId() {
      return state.view.id ?? one(state.view, "task");
    },

    /** Return where the page lies in the list. */
    place() {
      return place(state);
    },

    /**
     * Return the URL of the page of one task.
     * @param {string} id
     */
    taskHref(id) {
      const tz = one(state.view, "tz");
      return format({ page: "task", id, params: tz ? { tz: [tz] } : {} }, ROOT);
    },

    /**
     * Show the page of one task.
     * @param {string} id
     */
    openPage(id) {
      main.visit(parse(new URL(actions.taskHref(id), location.origin), ROOT));
    },

    /** @param {Partial<Ui>} change */
    set(change) {
      Object.assign(state.ui, change);
      main.draw();
    },

    /**
     * Open a task in the side panel.
     * @param {string} id
     */
    open(id) {
      const replace = one(state.view, "task") !== null;
      actions.go({ task: id }, replace ? { replace } : { mark: { opened: true } });
    },

    /** Close the open task. */
    close() {
      if (state.view.page === "task") main.visit({ page: "list", id: null, params: {} });
      else if (history.state?.opened) history.back();
      else actions.go({ task: null }, { replace: true });
    },

    /**
     * Open the task that is `step` rows below the open one.
     * @param {number} step
     */
    neighbour(step) {
      const tasks = state.parts.list.data?.tasks ?? [];
      const at = tasks.findIndex((task) => task.task_id === one(state.view, "task"));
      const next = at < 0 ? undefined : tasks[at + step];
      if (next) actions.open(next.task_id);
      else
        actions.notify(
          step < 0 ? "This is the newest task of the page" : "This is the oldest task of the page",
        );
    },

    /**
     * Move the focus to the task that is `step` rows below the focused one.
     * @param {number} step
     */
    moveRow(step) {
      const links = [...document.querySelectorAll("[data-task]")];
      const at = links.indexOf(
        /** @type {Element} */ (
          document.activeElement?.closest("tr")?.querySelector("[data-task]")
        ),
      );
      const next = links[Math.min(Math.max(at + step, 0), links.length - 1)];
      if (next instanceof HTMLElement) next.focus();
    },

    /** Return the id of the task whose row has the focus. */
    focusedTask() {
      return document.activeElement?.closest("tr")?.getAttribute("data-row") ?? null;
    },

    /**
     * Move the focus, after what has changed is drawn.
     * @param {string} selector
     */
    focus(selector) {
      main.drawPending();
      const found = document.querySelector(selector);
      if (found instanceof HTMLElement || found instanceof SVGElement) found.focus();
    },

    /**
     * Open or close a menu. The focus moves into an opened menu.
     * @param {string} name
     */
    async toggleMenu(name) {
      const menu = state.ui.menu === name ? "" : name;
      actions.set({ menu });
      if (menu && (await main.need("menus"))) actions.focus(".menu :is(a, button, input)");
    },

    /**
     * Close the open menu, or only the named one. The focus returns to its button.
     * @param {string} [name]
     */
    closeMenu(name) {
      if (!state.ui.menu || (name && name !== state.ui.menu)) return;
      const holder = document.activeElement?.closest(".menu")?.closest("[data-menu]");
      actions.set({ menu: "" });
      const button = holder?.querySelector("[aria-expanded]");
      if (button instanceof HTMLElement && button.tagName === "BUTTON") button.focus();
    },

    /** Return the window of time of the tasks that are shown. */
    window() {
      return shownWindow(state);
    },

    /** Turn a window that moves with the clock into one that stands still. */
    freeze() {
      if (!one(state.view, "last") && !one(state.view, "days")) return;
      actions.go(timeChange(actions.window()));
      actions.notify("The window stands still now");
    },

    /**
     * Show the time of some bars of the histogram.
     * @param {number} from
     * @param {number} to
     */
    zoom(from, to) {
      const data = state.parts.histogram.data;
      if (data)
        actions.go(timeChange(zoomed(state.view, data, from, to)), { mark: { zoomed: true } });
    },

    /**
     * Go back to the view before the zoom, or else show a longer time.
     * @param {{undo?: boolean}} [options]  `undo`: undo a zoom first.
     */
    zoomOut({ undo = false } = {}) {
      if (undo && history.state?.zoomed)
        addEventListener("popstate", () => actions.zoomOut(), { once: true });
      if (history.state?.zoomed) return history.back();
      const wider = widened(state);
      if (wider) actions.go(timeChange(wider));
      else actions.notify("All time is shown");
    },

    /** Let the list follow the changes of its tasks, or stop that. */
    toggleLive() {
      if (state.view.page !== "list") return;
      actions.go({ live: main.isLive() ? null : "1" });
    },

    /** Show what live mode holds back. */
    showNew() {
      if (main.isLive()) main.later("live")?.show(state, main);
    },

    /** @param {number} top */
    showMore(top) {
      actions.set({ top });
      main.load();
    },

    /**
     * Show all times in a zone, now and when this browser comes back.
     * @param {string} zone
     */
    setZone(zone) {
      localStorage.setItem("tz", zone);
      actions.go({ tz: zone === "UTC" ? null : zone });
    },

    /** Show all times in UTC, or in the zone of this computer. */
    toggleZone() {
      actions.setZone(state.zone === "UTC" ? localZone() : "UTC");
      actions.notify(`Times are in ${state.zone}`);
    },

    /** @param {"auto" | "light" | "dark"} theme */
    setTheme(theme) {
      localStorage.setItem("theme", theme);
      if (theme === "auto") delete document.documentElement.dataset.theme;
      else document.documentElement.dataset.theme = theme;
      actions.set({ theme });
    },

    /** Change to the next of: as the system, light, dark. */
    cycleTheme() {
      const next =
        /** @type {const} */ ({ auto: "light", light: "dark", dark: "auto" })[state.ui.theme] ??
        "auto";
      actions.setTheme(next);
      actions.notify(`Colours: ${next === "auto" ? "as the system" : next}`);
    },

    /**
     * Show a short message for some seconds. Screen readers say it.
     * @param {string} notice
     */
    notify(notice) {
      clearTimeout(noticeTimer);
      noticeTimer = setTimeout(() => actions.set({ notice: "" }), NOTICE_MS);
      actions.set({ notice });
    },

    /**
     * Let screen readers say something. Of several messages, they get the last one.
     * @param {string} spoken
     */
    say(spoken) {
      clearTimeout(spokenTimer);
      const wait = Math.max(0, spokenAt + SPOKEN_MS - Date.now());
      spokenTimer = setTimeout(() => {
        spokenAt = Date.now();
        actions.set({ spoken });
      }, wait);
    },
  };
  return { ...actions, ...makeClipboard(state, actions) };
}

/**
 * @typedef {object} Shortcut
 * @property {string[]} keys  Any of them, as in `KeyboardEvent.key`.
 * @property {string} text
 * @property {(actions: Actions, state: State, key: string) => void} [run]  Without it, the element
 *   that has the focus knows the key.
 */

/** @type {{title: string, shortcuts: Shortcut[]}[]} */
export const GROUPS = [
  {
    title: "Find",
    shortcuts: [
      { keys: ["/"], text: "Filter", run: (actions) => actions.focus(".filters input") },
      { keys: ["t"], text: "Time", run: (actions) => actions.toggleMenu("time") },
      {
        keys: ["z"],
        text: "UTC or the zone of this computer",
        run: (actions) => actions.toggleZone(),
      },
      { keys: ["f"], text: "Freeze a moving time window", run: (actions) => actions.freeze() },
      { keys: ["v"], text: "Views", run: (actions) => actions.toggleMenu("views") },
    ],
  },
  {
    title: "List",
    shortcuts: [
      { keys: ["j"], text: "Next task", run: (actions) => actions.moveRow(1) },
      { keys: ["k"], text: "Previous task", run: (actions) => actions.moveRow(-1) },
      { keys: ["Enter"], text: "Open beside the list" },
      { keys: ["o"], text: "Open on a page of its own", run: (actions) => openPage(actions) },
      { keys: ["["], text: "Newer task, if one is open", run: (actions) => actions.neighbour(-1) },
      { keys: ["]"], text: "Older task, if one is open", run: (actions) => actions.neighbour(1) },
      { keys: ["l"], text: "Live, or not", run: (actions) => actions.toggleLive() },
      { keys: ["n"], text: "Show what is new", run: (actions) => actions.showNew() },
      { keys: ["Escape"], text: "Close", run: (actions, state) => close(actions, state) },
    ],
  },
  {
    title: "Bars, when one has the focus",
    shortcuts: [
      { keys: ["←", "→"], text: "Move" },
      { keys: ["Shift ← →"], text: "Select" },
      { keys: ["Enter"], text: "Zoom in" },
    ],
  },
  {
    title: "Page",
    shortcuts: [
      { keys: ["0"], text: "Zoom out", run: (actions) => actions.zoomOut() },
      {
        keys: ["y"],
        text: "Linear or logarithmic bars",
        run: (actions, state) => actions.set({ log: !state.ui.log }),
      },
      { keys: ["c"], text: "Copy a link", run: (actions) => actions.copyLink() },
      { keys: ["x"], text: "Copy as curl", run: (actions) => actions.copyCurl() },
      { keys: ["d"], text: "Dark or light", run: (actions) => actions.cycleTheme() },
      { keys: ["?"], text: "This help", run: (actions) => actions.set({ help: true }) },
    ],
  },
];

const FIELDS = "input, select, textarea, [contenteditable], [role=combobox]";
const shortcuts = GROUPS.flatMap((group) => group.shortcuts).filter((shortcut) => shortcut.run);

/**
 * @param {KeyboardEvent} event
 * @param {State} state
 * @param {Actions} actions
 */
export function press(event, state, actions) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (state.session.needed || state.ui.help || event.isComposing) return;
  const isEscape = event.key === "Escape";
  const inField = /** @type {Element} */ (event.target).closest?.(FIELDS);
  if (!isEscape && (inField || !state.ui.keys)) return;
  const found = shortcuts.find(({ keys }) => keys.includes(event.key));
  if (!found) return;
  event.preventDefault();
  found.run?.(actions, state, event.key);
}

/** @param {Actions} actions */
function openPage(actions) {
  const id = actions.focusedTask() ?? actions.taskId();
  if (id) actions.openPage(id);
}

/**
 * @param {Actions} actions
 * @param {State} state
 */
function close(actions, state) {
  if (state.ui.menu) actions.closeMenu();
  else if (state.ui.selection) actions.set({ selection: null });
  else if (one(state.view, "task") || state.view.page === "task") actions.close();
}
