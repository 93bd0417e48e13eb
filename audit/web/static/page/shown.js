/**
 * What is shown, to come back to it and to hand it on: the window of time, the place of the page in
 * the list, and a link, a request and a command for the same tasks.
 */

import { address, ROOT } from "./api.js";
import { span, WINDOWS } from "./time.js";
import { changed, FILTERS, format, listParams, one, timeChange } from "./url.js";

/**
 * Write a time as the API does, without decimals that are zero.
 * @param {string | Date} time
 */
function text(time) {
  const iso = typeof time === "string" ? time : time.toISOString();
  return iso.replace(/\.?0+Z$/, "Z");
}

/**
 * Return the half-open window of the answer that is shown. An end that is open is null.
 *
 * A window that follows the clock ends at the time of the answer, or behind the newest task if the
 * clock of that task was ahead.
 * @param {State} state
 * @returns {{since?: string, until?: string}}
 */
export function shownWindow({ view, parts }) {
  const [since, until] = [instantOf(view, "since"), instantOf(view, "until")];
  const relative = relativeSeconds(view);
  if (relative === null) return { ...(since && { since }), ...(until && { until }) };
  const { list, histogram } = parts;
  const bars = histogram.problem || histogram.loading ? null : histogram.data;
  const at = list.at ?? new Date();
  const ends = [at.toISOString(), after(list.data?.tasks[0]?.created_at), bars?.until ?? ""];
  return {
    since: text(bars?.since ?? new Date(at.getTime() - relative * 1000)),
    until: text(ends.map(padded).sort().at(-1) ?? ""),
  };
}

/**
 * Return a time of the URL, or null if it is none: the API says what is wrong with it.
 * @param {View} view
 * @param {"since" | "until"} name
 */
function instantOf(view, name) {
  const value = one(view, name);
  return value && !Number.isNaN(Date.parse(value)) ? value : null;
}

/** @param {View} view */
export function relativeSeconds(view) {
  const [last, days] = [one(view, "last"), one(view, "days")];
  return span(last ?? `${days}d`)?.seconds ?? null;
}

/**
 * Return the first instant after a time.
 * @param {string | undefined} time
 */
function after(time) {
  if (!time) return "";
  const [, seconds, digits] = /^(.*)\.(\d{6})Z$/.exec(time) ?? [];
  if (digits === undefined) return time;
  if (digits !== "999999") return `${seconds}.${`${+digits + 1}`.padStart(6, "0")}Z`;
  return new Date(Date.parse(`${seconds}Z`) + 1000).toISOString();
}

/**
 * Write a time with six decimals, so that texts sort as times do.
 * @param {string} time
 */
function padded(time) {
  return time.replace(/(?:\.(\d+))?Z$/, (_, digits = "") => `.${digits.padEnd(6, "0")}Z`);
}

/**
 * Return the window of some bars. It never contains what the shown window does not.
 * @param {View} view
 * @param {Histogram} histogram
 * @param {number} from
 * @param {number} to
 */
export function zoomed(view, { buckets, since }, from, to) {
  const first = buckets[Math.min(from, to)].start;
  const last = buckets[Math.max(from, to)].end;
  const until = one(view, "until");
  return {
    since: text(padded(first) < padded(since) ? since : first),
    until: text(until && Date.parse(until) < Date.parse(last) ? until : last),
  };
}

/**
 * Return a longer window around the shown one, or null if all time is shown.
 * @param {State} state
 * @returns {Record<string, string> | null}
 */
export function widened(state) {
  const { view } = state;
  const relative = relativeSeconds(view);
  if (relative !== null) {
    const next = WINDOWS.find((each) => (span(each)?.seconds ?? 0) > relative);
    return next ? { last: next } : {};
  }
  const [since, until] = [instantOf(view, "since"), instantOf(view, "until")];
  if (!since && !until) return null;
  if (!since || !until) return {};
  const half = (Date.parse(until) - Date.parse(since)) / 2;
  const end = Date.parse(until) + half;
  const from = { since: text(new Date(Date.parse(since) - half)) };
  return end > Date.now() ? from : { ...from, until: text(new Date(end)) };
}

/**
 * Return the number of the first task on the page, counted from 1, and the change that leads to the
 * page before. Both are null where the page was opened by a link.
 * @param {State} state
 * @returns {Place}
 */
export function place({ view }) {
  const cursor = one(view, "cursor");
  if (cursor !== null) return remembered(cursor);
  const offset = Number(one(view, "offset") ?? 0);
  if (offset === 0) return { first: 1, previous: null };
  const before = Math.max(0, offset - Number(one(view, "limit") ?? 100));
  return { first: offset + 1, previous: { offset: before ? `${before}` : null } };
}

/**
 * @param {string} cursor
 * @returns {Place}
 */
function remembered(cursor) {
  const stored = sessionStorage.getItem(`page ${cursor}`);
  return stored ? JSON.parse(stored) : { first: null, previous: null };
}

/**
 * Remember where the next page lies.
 * @param {State} state
 */
export function remember(state) {
  const page = state.parts.list.data;
  const { first } = place(state);
  if (!page?.next_cursor || first === null) return;
  const previous = { cursor: one(state.view, "cursor"), offset: one(state.view, "offset") };
  const next = { first: first + page.tasks.length, previous };
  try {
    sessionStorage.setItem(`page ${page.next_cursor}`, JSON.stringify(next));
  } catch {
    // The storage of the tab is full: "First" still works.
  }
}

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
  const still = changed(view, { ...timeChange(shownWindow(state)), live: null });
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
