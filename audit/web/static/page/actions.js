/** Everything that a person can do on the page. Views and shortcuts call these functions. */

import { login, logout, Problem, ROOT } from "./api.js";
import { makeClipboard } from "./clipboard.js";
import { taskActions } from "./taskactions.js";
import { localZone } from "./time.js";
import { changed, format, one, parse, timeChange } from "./url.js";
import { shownWindow, widened, zoomed } from "./window.js";

/** @typedef {import("./main.js").State} State */
/** @typedef {import("./url.js").View} View */
/** @typedef {import("./url.js").Change} Change */

/**
 * What `main.js` gives to the actions.
 * @typedef {object} Page
 * @property {(name: string, path: string, params?: URLSearchParams | Record<string, string>, options?: {again?: boolean, keep?: boolean}) => Promise<void>} ask
 * @property {() => Promise<void>} checkSession
 * @property {() => void} draw
 * @property {() => void} drawPending
 * @property {(options?: {again?: boolean}) => void} load
 * @property {(view: View, options?: {replace?: boolean, mark?: object | null}) => void} visit
 */

/** How long a notice is shown. */
const NOTICE_MS = 4000;
/** Screen readers get at most one message in this time. */
const SPOKEN_MS = 5000;

/**
 * @param {State} state
 * @param {Page} page
 */
export function makeActions(state, page) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let noticeTimer;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let spokenTimer;
  let spokenAt = 0;

  const actions = {
    ask: page.ask,

    /** Ask again for all parts of the page. */
    reload() {
      page.load({ again: true });
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
      page.visit(changed(state.view, change), options);
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
      page.visit(parse(new URL(actions.taskHref(id), location.origin), ROOT));
    },

    /** @param {Partial<import("./main.js").Ui>} change */
    set(change) {
      Object.assign(state.ui, change);
      page.draw();
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
      if (state.view.page === "task") page.visit({ page: "list", id: null, params: {} });
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
      page.drawPending();
      const found = document.querySelector(selector);
      if (found instanceof HTMLElement || found instanceof SVGElement) found.focus();
    },

    /**
     * Open or close a menu. The focus moves into an opened menu.
     * @param {string} name
     */
    toggleMenu(name) {
      const menu = state.ui.menu === name ? "" : name;
      actions.set({ menu });
      if (menu) actions.focus(".menu :is(a, button, input)");
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

    /** Go back to the view before the zoom, or else show a longer time. */
    zoomOut() {
      if (history.state?.zoomed) return history.back();
      const wider = widened(state);
      if (wider) actions.go(timeChange(wider));
      else actions.notify("All time is shown");
    },

    /** @param {number} top */
    showMore(top) {
      actions.set({ top });
      page.load();
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

    /** @param {string} key */
    async login(key) {
      Object.assign(state.session, { asking: true, refusal: "" });
      page.draw();
      let refusal = "";
      try {
        await login(key);
        await page.checkSession();
        if (state.session.needed)
          refusal = "This browser keeps a session on https or localhost only.";
      } catch (error) {
        if (!(error instanceof Problem)) throw error;
        refusal =
          error.status === 401 ? "This key is not known, or no longer valid." : error.message;
      }
      Object.assign(state.session, { asking: false, refusal });
      page.draw();
      if (!state.session.needed) page.load({ again: true });
    },

    async logout() {
      await logout().catch(() => {});
      await page.checkSession();
      page.load({ again: true });
    },
  };
  return { ...actions, ...makeClipboard(state, actions), ...taskActions(state, page, actions) };
}
