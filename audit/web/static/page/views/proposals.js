/** What the filter box proposes for a text. Pure. */

import { all, FILTERS, REPEATED, TIMES, timeChange } from "../url.js";
import { STATUSES } from "./parts.js";

/** @typedef {import("../main.js").State} State */
/** @typedef {import("../url.js").Change} Change */
/**
 * @typedef {object} Proposal
 * @property {string} text  The text that it completes.
 * @property {string} note
 * @property {{name: string, value: string} | null} filter  The filter that it adds.
 * @property {string | null} task  The task that it opens.
 */

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

/** @type {Record<string, string>} */
const NOTES = {
  status: "failed, executing, …",
  service: "a service that the task touched",
  intent: "what the task was for",
  created_by: "who or what created it",
  project_id: "a project",
  outcome: 'members of the outcome, as {"environment":"prod"}',
  last: "15m, 24h, 7d, 8w",
};
const FREE = ["service", "intent", "created_by"];
const MOST = 9;

/**
 * Split a text at its blanks, but not inside quotes or inside a JSON object.
 * @param {string} text
 */
export function words(text) {
  return text.match(/[a-z_]+:\{.*\}|(?:"[^"]*"?|[^\s"])+/g) ?? [];
}

/**
 * Return the filter that a word such as `service:payments` stands for.
 * @param {string} word
 */
export function filterOf(word) {
  const [, name, quoted] = /^([a-z_]+):(.+)$/s.exec(word) ?? [];
  if (!name || !FILTERS.includes(name)) return null;
  const value = name === "outcome" ? quoted : quoted.replaceAll('"', "");
  return value ? { name, value } : null;
}

/**
 * Write a filter as a word.
 * @param {string} name
 * @param {string} value
 */
export function wordOf(name, value) {
  return `${name}:${/\s/.test(value) && name !== "outcome" ? `"${value}"` : value}`;
}

/**
 * Return the change that adds filters.
 * @param {import("../url.js").View} view
 * @param {{name: string, value: string}[]} filters
 * @returns {Change}
 */
export function adding(view, filters) {
  /** @type {Change} */
  let change = {};
  for (const { name, value } of filters) {
    if (name === "since" || name === "until") change = { last: null, days: null, ...change };
    else if (TIMES.includes(name)) change = { ...change, ...timeChange({}) };
    const before = change[name] ?? all(view, name);
    const values = typeof before === "string" ? [before] : before;
    change[name] = REPEATED.includes(name) ? [...new Set([...values, value])] : value;
  }
  return change;
}

/**
 * @param {State} state
 * @returns {Proposal[]}
 */
export function proposals(state) {
  const word = words(state.ui.draft).at(-1) ?? "";
  if (/\s$/.test(state.ui.draft) || word === "") return names("");
  if (UUID.test(word))
    return [{ text: word, note: "open this task", filter: null, task: word.toLowerCase() }];
  const [, name, typed] = /^([a-z_]+):(.*)$/s.exec(word) ?? [];
  if (name && FILTERS.includes(name)) return values(state, name, typed.replaceAll('"', ""));
  const known = FREE.flatMap((each) => listed(state, each, word));
  const free = FREE.map((each) => proposal(each, word, "exactly this"));
  return [...names(word), ...states(word), ...known.slice(0, 5), ...free].slice(0, MOST + 3);
}

/** @param {string} word */
function names(word) {
  return Object.keys(NOTES)
    .filter((name) => name.startsWith(word))
    .map((name) => ({ text: `${name}:`, note: NOTES[name], filter: null, task: null }));
}

/** @param {string} word */
function states(word) {
  return STATUSES.filter((status) => status.startsWith(word)).map((status) =>
    proposal("status", status, "state"),
  );
}

/**
 * @param {string} name
 * @param {string} value
 * @param {string} note
 * @returns {Proposal}
 */
function proposal(name, value, note) {
  return { text: wordOf(name, value), note, filter: { name, value }, task: null };
}

/**
 * @param {State} state
 * @param {string} name
 * @param {string} typed
 */
function values(state, name, typed) {
  const known =
    name === "status"
      ? STATUSES.filter((status) => status.startsWith(typed)).map((status) =>
          proposal(name, status, ""),
        )
      : listed(state, name, typed);
  const free = typed && !known.some((each) => each.filter?.value === typed) && name !== "status";
  const given = free ? [proposal(name, typed, known.length > 0 ? "exactly this" : "")] : [];
  return [...known.slice(0, MOST), ...given];
}

/**
 * The values of a facet that is loaded.
 * @param {State} state
 * @param {string} name
 * @param {string} typed
 */
function listed(state, name, typed) {
  const found = state.parts.facets.data?.facets[name]?.values ?? [];
  const chosen = all(state.view, name);
  return found.flatMap(({ value, total }) =>
    value?.toLowerCase().includes(typed.toLowerCase()) && !chosen.includes(value)
      ? [proposal(name, value, total.toLocaleString("en-US"))]
      : [],
  );
}
