/**
 * Every format of a time, a duration, a zone and an axis of time. Dates are always in ISO order.
 *
 * Times come from the API in UTC with microseconds. `Date` knows milliseconds only, so the digits
 * after the second are taken from the text.
 */

import { one } from "./url.js";

/** The windows that follow the clock, which the page offers. */
export const WINDOWS = ["15m", "1h", "6h", "24h", "7d", "30d", "90d"];

/** @type {Map<string, Intl.DateTimeFormat>} */
const formats = new Map();

/**
 * @param {string} zone
 * @returns {Intl.DateTimeFormat}
 */
function format(zone) {
  let found = formats.get(zone);
  if (!found) {
    found = new Intl.DateTimeFormat("en-CA", {
      timeZone: zone,
      calendar: "iso8601",
      numberingSystem: "latn",
      hourCycle: "h23",
      year: "numeric",
      month: "2-digit",
      day: "2-digit",
      hour: "2-digit",
      minute: "2-digit",
      second: "2-digit",
      weekday: "short",
      timeZoneName: "longOffset",
    });
    formats.set(zone, found);
  }
  return found;
}

/**
 * Reading a clock is slow, and each rendering of the list needs some hundred times again.
 * @type {Map<string, Clock>}
 */
const clocks = new Map();
const MOST_CLOCKS = 5000;

/**
 * A time as the clocks of a zone show it.
 * @typedef {object} Clock
 * @property {string} year
 * @property {string} month
 * @property {string} day
 * @property {string} hour
 * @property {string} minute
 * @property {string} second
 * @property {string} weekday  Such as "Tue".
 * @property {string} offset  Such as "+02:00".
 */

/**
 * @param {string | number | Date} time
 * @param {string} zone
 * @returns {Clock}
 */
export function clock(time, zone) {
  const key = `${zone} ${+new Date(time)}`;
  let found = clocks.get(key);
  if (!found) {
    found = read(time, zone);
    if (clocks.size >= MOST_CLOCKS) clocks.clear();
    clocks.set(key, found);
  }
  return found;
}

/**
 * @param {string | number | Date} time
 * @param {string} zone
 * @returns {Clock}
 */
function read(time, zone) {
  const parts = Object.fromEntries(
    format(zone)
      .formatToParts(new Date(time))
      .map((part) => [part.type, part.value]),
  );
  return {
    year: parts.year.padStart(4, "0"),
    month: parts.month,
    day: parts.day,
    hour: parts.hour,
    minute: parts.minute,
    second: parts.second,
    weekday: parts.weekday,
    offset: parts.timeZoneName.slice("GMT".length) || "+00:00",
  };
}

/** @param {string} zone */
export function isZone(zone) {
  try {
    format(zone);
    // An offset such as "+02:00" is a zone for Intl, but not for the API.
    return !/^[+-]/.test(zone);
  } catch {
    return false;
  }
}

/** The zone of this computer. */
export function localZone() {
  return Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
}

/** Every zone that the browser knows, UTC first. */
export function zones() {
  return ["UTC", ...Intl.supportedValuesOf("timeZone").filter((zone) => zone !== "UTC")];
}

/**
 * @param {string | number | Date} time
 * @param {string} zone
 */
export function day(time, zone) {
  const { year, month, day } = clock(time, zone);
  return `${year}-${month}-${day}`;
}

/**
 * Such as "07:01:16.785".
 * @param {string} time
 * @param {string} zone
 */
export function timeOfDay(time, zone) {
  const { hour, minute, second } = clock(time, zone);
  return `${hour}:${minute}:${second}${fraction(time).slice(0, 4)}`;
}

/**
 * Such as "2026-11-23 07:01:16.785214+01:00": nothing is left out.
 * @param {string} time
 * @param {string} zone
 */
export function exact(time, zone) {
  const { hour, minute, second, offset } = clock(time, zone);
  const at = `${day(time, zone)} ${hour}:${minute}:${second}${fraction(time)}`;
  return `${at}${offset === "+00:00" ? "Z" : offset}`;
}

/**
 * Such as "2026-11-23 07:01", or only the day if the time is midnight.
 * @param {string | number | Date} time
 * @param {string} zone
 */
export function minute(time, zone) {
  const { hour, minute, second } = clock(time, zone);
  if (hour === "00" && minute === "00" && second === "00") return day(time, zone);
  return `${day(time, zone)} ${hour}:${minute}${second === "00" ? "" : `:${second}`}`;
}

/** @param {string} time */
function fraction(time) {
  return /\.\d+/.exec(time)?.[0] ?? "";
}

/**
 * Return the instant at which the clocks of a zone show a time.
 *
 * A time that a change of the clocks skips is moved forwards; of a time that occurs twice, the
 * first is taken.
 * @param {string} local  Such as "2026-11-23T07:01", as `<input type="datetime-local">` gives it.
 * @param {string} zone
 * @returns {Date | null}
 */
export function instant(local, zone) {
  const asUtc = Date.parse(`${local}Z`);
  if (Number.isNaN(asUtc)) return null;
  const candidates = [-86400000, 86400000].map((shift) => asUtc - offsetMs(asUtc + shift, zone));
  const fitting = candidates.filter((at) => at + offsetMs(at, zone) === asUtc);
  return new Date(fitting.length > 0 ? Math.min(...fitting) : Math.max(...candidates));
}

/**
 * @param {number} time
 * @param {string} zone
 */
function offsetMs(time, zone) {
  const at = clock(time, zone);
  const shown = Date.UTC(+at.year, +at.month - 1, +at.day, +at.hour, +at.minute, +at.second);
  return shown - Math.floor(time / 1000) * 1000;
}

/**
 * Such as "Berlin": where there is no room for a continent.
 * @param {string} zone
 */
export function zoneName(zone) {
  return zone.slice(zone.lastIndexOf("/") + 1).replaceAll("_", " ");
}

/**
 * Return a time as `<input type="datetime-local">` takes it.
 * @param {string | number | Date} time
 * @param {string} zone
 */
export function local(time, zone) {
  const { hour, minute, second } = clock(time, zone);
  return `${day(time, zone)}T${hour}:${minute}:${second}`;
}

/**
 * Such as "4m 51s"; two units at most.
 * @param {number} seconds
 * @returns {string}
 */
export function duration(seconds) {
  if (seconds < 0) return `−${duration(-seconds)}`;
  if (seconds < 1) return `${Math.round(seconds * 1000)}ms`;
  if (seconds < 10) return `${Math.round(seconds * 10) / 10}s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return units(whole, 60, "m", 1, "s");
  if (whole < 86400) return units(whole, 3600, "h", 60, "m");
  return units(whole, 86400, "d", 3600, "h");
}

/**
 * @param {number} seconds
 * @param {number} large
 * @param {string} largeName
 * @param {number} small
 * @param {string} smallName
 */
function units(seconds, large, largeName, small, smallName) {
  const rest = Math.floor((seconds % large) / small);
  return `${Math.floor(seconds / large)}${largeName}${rest ? ` ${rest}${smallName}` : ""}`;
}

/**
 * Return how many seconds lie between two times, to the microsecond.
 * @param {string} from
 * @param {string} to
 */
export function secondsBetween(from, to) {
  return (microseconds(to) - microseconds(from)) / 1e6;
}

/** @param {string} time */
function microseconds(time) {
  return Math.floor(Date.parse(time) / 1000) * 1e6 + +fraction(time).slice(1).padEnd(6, "0");
}

/**
 * Such as "3 h ago".
 * @param {string} time
 * @param {number} now
 */
export function ago(time, now) {
  const seconds = (now - Date.parse(time)) / 1000;
  if (seconds < -1) return `in ${duration(-seconds)}`;
  if (seconds < 60) return "just now";
  return `${duration(seconds).split(" ")[0]} ago`;
}

const SPANS = new Map([
  ["m", ["minute", 60]],
  ["h", ["hour", 3600]],
  ["d", ["day", 86400]],
  ["w", ["week", 604800]],
]);

/**
 * Return a span such as "7d" in words and in seconds, or null if it is not one.
 * @param {string} text
 */
export function span(text) {
  const [, digits, letter] = /^([1-9]\d{0,5})([mhdw])$/.exec(text) ?? [];
  const [unit, seconds] = SPANS.get(letter) ?? [];
  if (!unit || !seconds) return null;
  return {
    words: digits === "1" ? `${unit}` : `${digits} ${unit}s`,
    seconds: +digits * +seconds,
  };
}

/**
 * @param {State} state
 */
export function timeWords({ view, zone }) {
  const [last, days, since, until] = ["last", "days", "since", "until"].map((name) =>
    one(view, name),
  );
  const relative = last ?? (days ? `${days}d` : null);
  if (relative) return `Last ${span(relative)?.words ?? relative}`;
  const at = (/** @type {string} */ time) =>
    Number.isNaN(Date.parse(time)) ? time : minute(time, zone);
  if (since && until && !Number.isNaN(Date.parse(since) + Date.parse(until)))
    return range(since, until, zone);
  if (since) return `Since ${at(since)}`;
  return until ? `Before ${at(until)}` : "All time";
}

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
  const time = (/** @type {Clock} */ at) =>
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
  // Every second day, and of bars that are weeks every second one.
  { fits: (at) => isMidnight(at) && dayNumber(at) % 2 === 1, shows: "day" },
  { fits: (at) => isMidnight(at) && at.weekday === "Mon", shows: "day" },
  ...[1, 2, 3, 6, 12].map((n) => ({
    fits: (/** @type {Clock} */ at) =>
      isMidnight(at) && at.day === "01" && (+at.month - 1) % n === 0,
    shows: /** @type {const} */ ("month"),
  })),
];

/** @param {Clock} at */
function dayNumber(at) {
  return Date.UTC(+at.year, +at.month - 1, +at.day) / 86400000;
}

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
