/** Everything that a person can do on the page. Views and shortcuts call these functions. */

import { login, logout, Problem, ROOT } from "./api.js";
import { changed, format, one } from "./url.js";

/** @typedef {import("./main.js").State} State */
/** @typedef {import("./url.js").View} View */
/** @typedef {import("./url.js").Change} Change */

/**
 * What `main.js` gives to the actions.
 * @typedef {object} Page
 * @property {(name: string, path: string, params?: URLSearchParams | Record<string, string>, options?: {again?: boolean, keep?: boolean}) => Promise<void>} ask
 * @property {() => Promise<void>} checkSession
 * @property {() => void} draw
 * @property {() => void} drawNow
 * @property {(options?: {again?: boolean}) => void} load
 * @property {(view: View, options?: {replace?: boolean, mark?: object | null}) => void} visit
 */

/**
 * @param {State} state
 * @param {Page} page
 */
export function makeActions(state, page) {
  const actions = {
    ask: page.ask,

    /**
     * Ask again for a part of the page, or for all of it.
     */
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

    /** @param {Partial<import("./main.js").Ui>} change */
    set(change) {
      Object.assign(state.ui, change);
      page.draw();
    },

    /** @param {string} id */
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

    /** @param {string} name */
    toggleMenu(name) {
      actions.set({ menu: state.ui.menu === name ? "" : name });
    },

    closeMenu() {
      if (state.ui.menu) actions.set({ menu: "" });
    },

    /**
     * Called when an answer or a problem has arrived.
     * @param {string} _name
     */
    arrived(_name) {},

    /**
     * Called when another view is shown.
     * @param {View} before
     * @param {View} after
     */
    moved(before, after) {
      const [closed, opened] = [one(before, "task"), one(after, "task")];
      if (opened && opened !== closed) focus(".panel");
      else if (closed && !opened) focus(`[data-task="${CSS.escape(closed)}"]`);
    },

    /** @param {string} key */
    async login(key) {
      Object.assign(state.session, { asking: true, problem: null });
      page.draw();
      try {
        await login(key);
      } catch (error) {
        const problem = error instanceof Problem ? error : null;
        Object.assign(state.session, { asking: false, problem });
        page.draw();
        return;
      }
      await page.checkSession();
      if (!state.session.needed) page.load({ again: true });
    },

    async logout() {
      await logout().catch(() => {});
      await page.checkSession();
      page.load({ again: true });
    },
  };
  return actions;
}

/** @param {string} selector */
function focus(selector) {
  const found = document.querySelector(selector);
  if (found instanceof HTMLElement) found.focus({ preventScroll: selector === ".panel" });
}
