/** Small parts that several views show: states, numbers, icons. */

import { html, svg } from "../../lit-html/lit-html.js";

/** @typedef {import("../api.js").Status} Status */

/**
 * The states, the most urgent first. Bars are stacked in this order, from the bottom.
 * @type {Status[]}
 */
export const STATUSES = ["failed", "rejected", "executing", "approved", "pending", "completed"];

/** What tells the states apart without colour. */
const SHAPES = {
  failed: svg`<circle class="disc" cx="8" cy="8" r="7"/><path class="cut" d="M5.4 5.4l5.2 5.2M10.6 5.4l-5.2 5.2"/>`,
  rejected: svg`<circle class="ring" cx="8" cy="8" r="6"/><path class="ring" d="M4 12 12 4"/>`,
  executing: svg`<circle class="ring" cx="8" cy="8" r="6"/><path class="disc" d="M8 4.2a3.8 3.8 0 0 1 0 7.6z"/>`,
  approved: svg`<circle class="ring" cx="8" cy="8" r="6"/><path class="ring" d="M5.3 8.2l1.9 1.9 3.5-3.9"/>`,
  pending: svg`<circle class="ring dashed" cx="8" cy="8" r="6"/>`,
  completed: svg`<circle class="disc" cx="8" cy="8" r="7"/><path class="cut" d="M4.9 8.3l2.2 2.2 4-4.6"/>`,
};

/** @param {Status} status */
export function statusIcon(status) {
  return html`<svg class="icon ${status}" viewBox="0 0 16 16" aria-hidden="true">${SHAPES[status]}</svg>`;
}

const ICONS = {
  bookmark: svg`<path d="M4.5 2.5h7v11L8 10.8l-3.5 2.7z"/>`,
  chevron: svg`<path d="M4.5 6.5 8 10l3.5-3.5"/>`,
  close: svg`<path d="M4.5 4.5l7 7M11.5 4.5l-7 7"/>`,
  clock: svg`<circle cx="8" cy="8" r="5.8"/><path d="M8 4.8V8l2.2 1.6"/>`,
  globe: svg`<circle cx="8" cy="8" r="5.8"/><path d="M2.4 8h11.2M8 2.2c-3.4 3.7-3.4 7.9 0 11.6 3.4-3.7 3.4-7.9 0-11.6"/>`,
  link: svg`<path d="M6.6 9.4a2.6 2.6 0 0 0 3.8.2l2-2a2.7 2.7 0 0 0-3.8-3.8l-.9.9M9.4 6.6a2.6 2.6 0 0 0-3.8-.2l-2 2a2.7 2.7 0 0 0 3.8 3.8l.9-.9"/>`,
  reload: svg`<path d="M13 8a5 5 0 1 1-1.5-3.6L13 6M13 2.8V6H9.8"/>`,
  search: svg`<circle cx="7" cy="7" r="4.3"/><path d="M10.3 10.3 13.5 13.5"/>`,
  sliders: svg`<path d="M2.5 5h6M12 5h1.5M2.5 11H4M7.5 11h6"/><circle cx="10.2" cy="5" r="1.7"/><circle cx="5.8" cy="11" r="1.7"/>`,
  theme: svg`<circle cx="8" cy="8" r="5.5"/><path class="filled" d="M8 2.5a5.5 5.5 0 0 1 0 11z"/>`,
  zoomOut: svg`<circle cx="7" cy="7" r="4.3"/><path d="M10.3 10.3 13.5 13.5M5 7h4"/>`,
};

/** @param {keyof typeof ICONS} name */
export function icon(name) {
  return html`<svg class="line-icon" viewBox="0 0 16 16" aria-hidden="true">${ICONS[name]}</svg>`;
}

/** @param {number} value */
export function count(value) {
  return value.toLocaleString("en-US");
}

/**
 * @param {number} value
 * @param {string} noun
 */
export function counted(value, noun) {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}

/**
 * A share such as "5.6 %"; "–" if there is nothing to share.
 * @param {number | null} share
 */
export function percent(share) {
  if (share === null) return "–";
  const value = share * 100;
  if (value === 0 || value === 100) return `${value} %`;
  if (value < 0.1) return "< 0.1 %";
  return `${Math.min(value, 99.9).toFixed(value < 10 ? 1 : 0)} %`;
}

/**
 * The heading of a part of a task. The task itself has an h1 on its own page, and an h2 in the panel.
 * @param {import("../main.js").State} state
 * @param {string} title
 * @param {string} [note]
 */
export function partHeading({ view }, title, note = "") {
  const words = html`${title} <span class="muted">${note}</span>`;
  return view.page === "task" ? html`<h2>${words}</h2>` : html`<h3>${words}</h3>`;
}
