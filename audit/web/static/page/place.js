/** Where a page lies among all matching tasks. A cursor does not say it, so the browser's tab remembers. */

import { one } from "./url.js";

/** @typedef {import("./main.js").State} State */
/** @typedef {{first: number | null, previous: import("./url.js").Change | null}} Place */

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
