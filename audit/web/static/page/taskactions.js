/** What a person can do with one task, with saved views and with shortcuts. Part of the actions. */

import { address, ROOT } from "./api.js";
import { format, one } from "./url.js";

/** @typedef {import("./main.js").State} State */
/** @typedef {import("./url.js").Change} Change */

const SAVED_AT_MOST = 50;

/**
 * @typedef {object} SavedView
 * @property {string} name
 * @property {string} query  The query of the page's URL.
 */

/** @returns {SavedView[]} */
function readSaved() {
  try {
    const views = JSON.parse(localStorage.getItem("views") ?? "[]");
    return Array.isArray(views)
      ? views.filter((view) => view?.name && view.query !== undefined)
      : [];
  } catch {
    return [];
  }
}

/**
 * @param {State} state
 * @param {import("./actions.js").Page} page
 * @param {{notify: (notice: string) => void}} actions
 */
export function taskActions(state, page, { notify }) {
  const tz = () => one(state.view, "tz");
  /**
   * The URL of a list that has nothing in common with the shown one but the time zone.
   * @param {Change} params
   */
  const freshHref = (params) => {
    const given = Object.entries({ tz: tz(), ...params }).flatMap(([name, value]) =>
      value === null ? [] : [[name, [value].flat()]],
    );
    return format({ page: "list", id: null, params: Object.fromEntries(given) }, ROOT);
  };

  return {
    redraw: page.draw,
    freshHref,

    /** The task that is shown, in the panel or on its own page. */
    taskId() {
      return state.view.id ?? one(state.view, "task");
    },

    /** Whether the list that is shown has tasks before and after the open one. */
    neighbours() {
      const ids = state.parts.list.data?.tasks.map((row) => row.task_id) ?? [];
      const place = ids.indexOf(one(state.view, "task") ?? "");
      return { newer: place > 0, older: place >= 0 && place < ids.length - 1 };
    },

    /**
     * The URL of the shown list with further filters. A page of one task shows no list, so there
     * it is a list with these filters alone.
     * @param {Change} change
     */
    listHref(change) {
      if (state.view.page === "task") return freshHref(change);
      const params = { ...state.view.params, cursor: [], offset: [] };
      return freshHref({ ...params, ...change });
    },

    /**
     * The URL that shows another task where this one is shown.
     * @param {string} id
     */
    siblingHref(id) {
      const view = state.view;
      if (view.page === "task") return format({ ...view, id }, ROOT);
      return format({ ...view, params: { ...view.params, task: [id] } }, ROOT);
    },

    /** The URL of the shown task's history, for programs. */
    historyHref() {
      const id = encodeURIComponent(state.view.id ?? one(state.view, "task") ?? "");
      return address(`tasks/${id}/history`, new URLSearchParams({ limit: "1000" }));
    },

    savedViews: readSaved,

    /** @param {string} name */
    saveView(name) {
      const query = location.search.slice(1);
      const others = readSaved().filter((view) => view.name !== name);
      if (others.length >= SAVED_AT_MOST) {
        notify(`There are ${SAVED_AT_MOST} saved views already. Remove one first.`);
        return;
      }
      localStorage.setItem("views", JSON.stringify([...others, { name, query }]));
      notify(`Saved as “${name}” in this browser`);
    },

    /** @param {string} name */
    removeView(name) {
      const others = readSaved().filter((view) => view.name !== name);
      localStorage.setItem("views", JSON.stringify(others));
      page.draw();
    },

    /** @param {boolean} on */
    setKeys(on) {
      localStorage.setItem("keys", on ? "on" : "off");
      state.ui.keys = on;
      page.draw();
    },
  };
}
