/**
 * The one grammar between the page's URL and its state. Pure: nothing here touches the browser.
 *
 * The query of the page is the query of the API, plus the parameters in `VIEW`. A name or a value
 * that this file does not know stays in the state and goes to the API, which says what is wrong.
 */

/** Parameters that select tasks, in the order of the URL. */
export const FILTERS = [
  "status",
  "service",
  "intent",
  "last",
  "days",
  "since",
  "until",
  "created_by",
  "project_id",
  "outcome",
];
/** Parameters that select a time. They exclude each other. */
export const TIMES = ["last", "days", "since", "until"];
/** Parameters that may be repeated. */
export const REPEATED = ["status", "service", "intent"];
/** Parameters that select a page of the matching tasks. */
export const PAGING = ["cursor", "offset", "limit"];
/** Parameters that the API does not know. */
export const VIEW = ["tz", "interval", "task", "live", "facets"];

const ORDER = [...FILTERS, ...PAGING, ...VIEW];
const DEFAULTS = new Map([
  ["limit", "100"],
  ["offset", "0"],
]);

/**
 * @param {URL} url
 * @param {string} root  The path of the service, which ends with a slash.
 * @returns {View}
 */
export function parse(url, root) {
  /** @type {Record<string, string[]>} */
  const params = {};
  for (const [name, value] of url.searchParams) {
    if (!Object.hasOwn(params, name)) params[name] = [];
    params[name].push(value);
  }
  const path = url.pathname.slice(root.length);
  const id = path.startsWith("tasks/") ? decode(path.slice("tasks/".length)) : "";
  return { page: id ? "task" : "list", id: id || null, params };
}

/** @param {string} text */
function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/**
 * Return the canonical URL of a view: equal views have equal URLs.
 * @param {View} view
 * @param {string} root
 */
export function format(view, root) {
  const path = view.page === "task" && view.id ? `tasks/${encodeURIComponent(view.id)}` : "tasks";
  const query = new URLSearchParams(canonical(view.params)).toString();
  return `${root}${path}${query && `?${readable(query)}`}`;
}

/**
 * Write characters as they are if no URL parser gives them a meaning in a query.
 * @param {string} query
 */
function readable(query) {
  return query
    .replaceAll("%3A", ":")
    .replaceAll("%2F", "/")
    .replaceAll("%40", "@")
    .replaceAll("%2C", ",");
}

/**
 * @param {Record<string, string[]>} params
 * @returns {[string, string][]}
 */
function canonical(params) {
  const known = ORDER.filter((name) => Object.hasOwn(params, name));
  const unknown = Object.keys(params).filter((name) => !ORDER.includes(name));
  return [...known, ...unknown].flatMap((name) =>
    params[name]
      .filter((value) => DEFAULTS.get(name) !== value)
      .map((value) => /** @type {[string, string]} */ ([name, value])),
  );
}

/**
 * @param {View} view
 * @param {string} name
 */
export function one(view, name) {
  return view.params[name]?.[0] ?? null;
}

/**
 * @param {View} view
 * @param {string} name
 * @returns {readonly string[]}
 */
export function all(view, name) {
  return view.params[name] ?? [];
}

/**
 * Return the view after a change. A change of filters leads back to the first page.
 * @param {View} view
 * @param {Change} change
 * @returns {View}
 */
export function changed(view, change) {
  const params = { ...view.params };
  const names = Object.keys(change);
  if (names.some((name) => !PAGING.includes(name) && !VIEW.includes(name))) {
    delete params.cursor;
    delete params.offset;
  }
  for (const name of names) {
    const value = change[name];
    if (value === null || value.length === 0) delete params[name];
    else params[name] = typeof value === "string" ? [value] : [...value];
  }
  return { ...view, params };
}

/**
 * Return the change that selects a time and drops the one that was selected.
 * @param {Record<string, string>} time  Some of `TIMES`; empty for all times.
 * @returns {Change}
 */
export function timeChange(time) {
  return { last: null, days: null, since: null, until: null, ...time };
}

/**
 * Return the change that adds a value to a filter, or removes it if it is there.
 * @param {View} view
 * @param {string} name
 * @param {string} value
 * @returns {Change}
 */
export function toggled(view, name, value) {
  const values = all(view, name);
  if (values.includes(value)) return { [name]: values.filter((each) => each !== value) };
  return { [name]: REPEATED.includes(name) ? [...values, value] : value };
}

/**
 * Return the parameters of the API's lists.
 * @param {View} view
 */
export function listParams(view) {
  return new URLSearchParams(
    canonical(view.params).filter(([name]) => !VIEW.includes(name) || isRepeated(view, name)),
  );
}

/**
 * Return the parameters that select tasks, for statistics.
 * @param {View} view
 */
export function filterParams(view) {
  return new URLSearchParams(
    canonical(view.params).filter(([name]) => !VIEW.includes(name) && !PAGING.includes(name)),
  );
}

/**
 * A view parameter that is given twice goes to the API, which refuses it: nothing is ignored.
 * @param {View} view
 * @param {string} name
 */
function isRepeated(view, name) {
  return all(view, name).length > 1;
}

/**
 * Tell whether going from one view to another is a step that Back should undo.
 * @param {View} before
 * @param {View} after
 */
export function isStep(before, after) {
  const seen = (/** @type {View} */ view) => {
    const { tz, interval, live, facets, ...params } = view.params;
    return format({ ...view, params }, "/");
  };
  return seen(before) !== seen(after);
}
