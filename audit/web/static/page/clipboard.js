/** What can be copied: a link, and the same question for a terminal. */

import { address, ROOT } from "./api.js";
import { place } from "./place.js";
import { changed, FILTERS, format, listParams, one, timeChange } from "./url.js";
import { shownWindow } from "./window.js";

/** @typedef {import("./main.js").State} State */

/**
 * @param {State} state
 * @param {{notify: (notice: string) => void, closeMenu: () => void}} actions
 */
export function makeClipboard(state, actions) {
  return {
    /**
     * @param {string} text
     * @param {string} notice
     */
    async copy(text, notice) {
      actions.closeMenu();
      try {
        await navigator.clipboard.writeText(text);
        actions.notify(notice);
      } catch {
        // Browsers give no clipboard to a page on plain http, except on localhost.
        actions.notify(`Copy this yourself: ${text}`);
      }
    },

    /**
     * Copy a link that shows the same tasks tomorrow, or one whose window follows the clock.
     * @param {{moving?: boolean}} [options]
     */
    copyLink({ moving = false } = {}) {
      const link = location.origin + format(moving ? withZone(state) : frozen(state), ROOT);
      return this.copy(
        link,
        moving ? "Link copied: its time goes on" : "Link copied: it will show these tasks",
      );
    },

    copyCurl() {
      const url = address("query", listParams(state.view));
      const open = state.session.who?.via === "nobody";
      const key = open ? "" : '-H "Authorization: Bearer $AUDIT_KEY" ';
      return this.copy(
        `curl ${key}${quoted(url)}`,
        open ? "curl command copied" : "curl command copied; it reads the key from AUDIT_KEY",
      );
    },

    copyCommand() {
      return this.copy(command(state), "audit command copied");
    },

    /** Return the number of the first task of the page, and the page before. */
    place() {
      return place(state);
    },
  };
}

/** @param {State} state */
function withZone(state) {
  return changed(state.view, { tz: state.zone });
}

/** @param {State} state */
function frozen(state) {
  const view = withZone(state);
  if (!one(view, "last") && !one(view, "days")) return view;
  const { first } = place(state);
  const still = changed(view, timeChange(shownWindow(state)));
  // The cursor of a page belongs to the window that moves.
  return first !== null && first > 1 ? changed(still, { offset: `${first - 1}` }) : still;
}

/** @param {State} state */
function command({ view }) {
  const words = ["audit", "query", "--url", quoted(location.origin + ROOT.replace(/\/$/, ""))];
  for (const name of FILTERS) {
    for (const value of view.params[name] ?? []) {
      if (name === "days") words.push("--last", quoted(`${value}d`));
      else words.push(`--${name.replace("_", "-")}`, quoted(value));
    }
  }
  words.push("--limit", quoted(one(view, "limit") ?? "100"));
  return words.join(" ");
}

/**
 * Quote a word for a POSIX shell, if it needs it.
 * @param {string} word
 */
function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
