/** The window of time that is shown, and the ones inside and around it. */

import { span } from "./time.js";
import { one } from "./url.js";

/** @typedef {import("./main.js").State} State */
/** @typedef {import("./api.js").Histogram} Histogram */

/** The windows that follow the clock, which zooming out goes through. */
const SPANS = ["15m", "1h", "6h", "24h", "7d", "30d", "90d"];

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
 * @param {import("./url.js").View} view
 * @param {"since" | "until"} name
 */
function instantOf(view, name) {
  const value = one(view, name);
  return value && !Number.isNaN(Date.parse(value)) ? value : null;
}

/** @param {import("./url.js").View} view */
function relativeSeconds(view) {
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
 * @param {import("./url.js").View} view
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
    const next = SPANS.find((each) => (span(each)?.seconds ?? 0) > relative);
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
