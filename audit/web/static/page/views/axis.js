/** Ticks and labels of the histogram. */

import { clock, day } from "../time.js";
import { count, STATUSES } from "./parts.js";

/** @typedef {import("../api.js").Bucket} Bucket */

const INTERVAL_WORDS = new Map([
  ["1m", "minute"],
  ["5m", "5 minutes"],
  ["15m", "15 minutes"],
  ["1h", "hour"],
  ["3h", "3 hours"],
  ["6h", "6 hours"],
  ["12h", "12 hours"],
  ["1d", "day"],
  ["1w", "week"],
  ["1mo", "month"],
  ["1y", "year"],
]);

/** @param {string} interval */
export function intervalWords(interval) {
  return INTERVAL_WORDS.get(interval) ?? interval;
}

/**
 * Return a range of time, without repeating what both ends have in common.
 *
 * Such as "2026-11-23 07:00 – 10:00" or "2026-11-23 – 2026-11-30".
 * @param {string} since
 * @param {string} until
 * @param {string} zone
 */
export function range(since, until, zone) {
  const [from, to] = [clock(since, zone), clock(until, zone)];
  // Seconds do not matter in a range of hours.
  const short = Date.parse(until) - Date.parse(since) < 3600000;
  const time = (/** @type {import("../time.js").Clock} */ at) =>
    `${at.hour}:${at.minute}${short && at.second !== "00" ? `:${at.second}` : ""}`;
  const days = [day(since, zone), day(until, zone)];
  const midnight = time(from) === "00:00" && time(to) === "00:00";
  if (midnight) {
    const last = day(Date.parse(until) - 1, zone);
    return last === days[0] ? `${days[0]} ${from.weekday}` : `${days[0]} – ${last}`;
  }
  if (days[0] === days[1]) return `${days[0]} ${time(from)} – ${time(to)}`;
  const end = from.year === to.year ? days[1].slice(5) : days[1];
  return `${days[0]} ${time(from)} – ${end} ${time(to)}`;
}

/**
 * What a screen reader says about a bar.
 * @param {Bucket} bucket
 * @param {string} zone
 */
export function barLabel(bucket, zone) {
  const parts = STATUSES.filter((status) => bucket.status[status] > 0).map(
    (status) => `${count(bucket.status[status])} ${status}`,
  );
  const part = bucket.partial ? ", only a part of it" : "";
  return `${range(bucket.start, bucket.end, zone)}${part}: ${parts.join(", ") || "no tasks"}`;
}

/**
 * Return round numbers from the lowest line to the one at or above the highest bar.
 * @param {number} highest
 * @param {boolean} log
 */
export function yTicks(highest, log) {
  if (log) {
    const ticks = [1];
    while (ticks[ticks.length - 1] < highest) ticks.push(ticks[ticks.length - 1] * 10);
    return ticks.length > 1 ? ticks : [1, 10];
  }
  const rough = Math.max(highest, 1) / 3;
  const magnitude = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * magnitude).find((n) => n >= rough) ?? 1;
  const whole = Math.max(1, Math.ceil(step));
  const lines = Math.max(1, Math.ceil(highest / whole));
  return Array.from({ length: lines }, (_, i) => (i + 1) * whole);
}

/** @typedef {import("../time.js").Clock} Clock */

/**
 * Which bars may carry a label, from the finest rule to the coarsest.
 * @type {{fits: (at: Clock) => boolean, shows: "time" | "day" | "month"}[]}
 */
const RULES = [
  ...[1, 2, 5, 10, 15, 30].map((n) => ({
    fits: (/** @type {Clock} */ at) => +at.minute % n === 0,
    shows: /** @type {const} */ ("time"),
  })),
  ...[1, 2, 3, 6, 12].map((n) => ({
    fits: (/** @type {Clock} */ at) => at.minute === "00" && +at.hour % n === 0,
    shows: /** @type {const} */ ("time"),
  })),
  { fits: isMidnight, shows: "day" },
  { fits: (at) => isMidnight(at) && +at.day % 2 === 1 && +at.day < 31, shows: "day" },
  { fits: (at) => isMidnight(at) && at.weekday === "Mon", shows: "day" },
  ...[1, 2, 3, 6, 12].map((n) => ({
    fits: (/** @type {Clock} */ at) =>
      isMidnight(at) && at.day === "01" && (+at.month - 1) % n === 0,
    shows: /** @type {const} */ ("month"),
  })),
];

/** @param {Clock} at */
function isMidnight(at) {
  return at.hour === "00" && at.minute === "00";
}

/**
 * Return the bars to label: as many as fit, at times that people know.
 * @param {Bucket[]} buckets
 * @param {string} zone
 * @param {boolean} narrow
 */
export function xTicks(buckets, zone, narrow) {
  const most = narrow ? 5 : 10;
  const clocks = buckets.map((bucket) => clock(bucket.start, zone));
  for (const { fits, shows } of RULES) {
    const indexes = clocks.flatMap((at, index) => (fits(at) ? [index] : []));
    if (indexes.length < 2) break;
    if (indexes.length <= most) {
      return indexes.map((index) => ({ index, label: tickLabel(clocks[index], shows, narrow) }));
    }
  }
  const days = clocks.every(isMidnight);
  const every = Math.ceil(buckets.length / (narrow ? (days ? 5 : 3) : 8));
  return clocks.flatMap((at, index) =>
    index % every === 0 ? [{ index, label: days ? date(at) : `${date(at)} ${time(at)}` }] : [],
  );
}

/**
 * @param {Clock} at
 * @param {"time" | "day" | "month"} shows
 * @param {boolean} narrow
 */
function tickLabel(at, shows, narrow) {
  if (shows === "month") return at.month === "01" ? at.year : `${at.year}-${at.month}`;
  if (shows === "time") return isMidnight(at) ? date(at) : time(at);
  return narrow ? date(at) : `${at.weekday} ${date(at)}`;
}

/** @param {Clock} at */
function date(at) {
  return `${at.month}-${at.day}`;
}

/** @param {Clock} at */
function time(at) {
  return `${at.hour}:${at.minute}`;
}
