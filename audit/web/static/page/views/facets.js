/** The most frequent values of each filter, with exact counts. */

import { html, nothing } from "../../lit-html/lit-html.js";
import { minute } from "../time.js";
import { all, one, timeChange, toggled } from "../url.js";
import { count, failed } from "./parts.js";

/** @type {{name: string, title: string, note?: string}[]} */
const GROUPS = [
  { name: "service", title: "Service", note: "tasks that touched all of these" },
  { name: "intent", title: "Intent" },
  { name: "created_by", title: "Created by" },
  { name: "project_id", title: "Project" },
];
const OPEN = ["service", "intent", "created_by"];
const MANY = 50;

/**
 * @param {State} state
 * @param {Actions} actions
 */
export function facets(state, actions) {
  const { data, problem, loading } = state.parts.facets;
  if (problem && problem.errors.length === 0) return failed(problem, actions.reload);
  if (problem && !data) return nothing;
  return html`
    <div class=${loading && data ? "stale" : ""} aria-busy=${loading}>
      ${GROUPS.map((group) => facet(group, data?.facets[group.name], state, actions))}
    </div>`;
}

/**
 * @param {{name: string, title: string, note?: string}} group
 * @param {Facet | undefined} found
 * @param {State} state
 * @param {Actions} actions
 */
function facet({ name, title, note }, found, state, actions) {
  const open = (one(state.view, "facets")?.split(",") ?? OPEN).filter(Boolean);
  const chosen = all(state.view, name);
  return html`
    <details class="facet" ?open=${open.includes(name)} @toggle=${(/** @type {Event} */ event) => {
      const isOpen = /** @type {HTMLDetailsElement} */ (event.target).open;
      if (isOpen === open.includes(name)) return;
      const now = isOpen ? [...open, name] : open.filter((each) => each !== name);
      actions.go({ facets: now.join() === OPEN.join() ? null : now.join() || "," });
    }}>
      <summary><h2>${title}</h2></summary>
      ${note && chosen.length > 1 ? html`<p class="note">${note}</p>` : nothing}
      ${found ? content(name, title, found, state, actions) : state.parts.facets.problem ? nothing : html`<div class="skeleton lines"></div>`}
    </details>`;
}

/**
 * @param {string} name
 * @param {string} title
 * @param {Facet} found
 * @param {State} state
 * @param {Actions} actions
 */
function content(name, title, found, state, actions) {
  if (!found.values) return tooMany(found, state, actions);
  const chosen = all(state.view, name);
  const listed = found.values.map((each) => each.value);
  const missing = chosen
    .filter((value) => !listed.includes(value))
    .map((value) => ({ value, total: 0 }));
  const text = (state.ui.find[name] ?? "").toLowerCase();
  const values = [...missing, ...found.values].filter(({ value }) =>
    (value ?? "none").toLowerCase().includes(text),
  );
  const most = Math.max(...found.values.map((each) => each.total), 1);
  const findable = found.more || found.values.length > 10;
  return html`
    ${
      findable && state.ui.top > 10
        ? html`<input type="search" class="find" placeholder="Find" aria-label="Find in ${title}" .value=${state.ui.find[name] ?? ""}
            @input=${(/** @type {Event} */ event) =>
              actions.set({
                find: {
                  ...state.ui.find,
                  [name]: /** @type {HTMLInputElement} */ (event.target).value,
                },
              })}>`
        : nothing
    }
    <ul>${values.map((each) => item(name, each, most, chosen, state, actions))}</ul>
    ${values.length === 0 ? html`<p class="note">None</p>` : nothing}
    ${
      found.more && state.ui.top < MANY
        ? html`<button type="button" class="link more" @click=${() => actions.showMore(MANY)}>More…</button>`
        : nothing
    }
    ${found.more && state.ui.top >= MANY ? html`<p class="note">and more: type a name into the filter</p>` : nothing}`;
}

/**
 * @param {string} name
 * @param {{value: string | null, total: number}} entry
 * @param {number} most
 * @param {readonly string[]} chosen
 * @param {State} state
 * @param {Actions} actions
 */
function item(name, { value, total }, most, chosen, state, actions) {
  const width = `${(100 * total) / most}%`;
  const share = html`<svg class="share-bar" aria-hidden="true"><rect width=${width} height="100%"/></svg>`;
  if (value === null) {
    return html`<li class="value">${share}<span class="name none">none</span><span class="n">${count(total)}</span></li>`;
  }
  const on = chosen.includes(value);
  return html`
    <li class="value ${on ? "on" : ""}">
      ${share}
      <input type="checkbox" aria-label=${`${on ? "Remove" : "Add"} ${value}`} .checked=${on}
        @change=${() => actions.go(toggled(state.view, name, value))}>
      <a class="name" href=${actions.href({ [name]: on && chosen.length === 1 ? null : value })} title=${value}>${value}</a>
      <span class="n">${count(total)}</span>
    </li>`;
}

/**
 * Say why tasks are not counted, and offer the window in which they would be.
 * @param {{matching?: number, at_most?: number, fits?: string | null}} found
 * @param {State} state
 * @param {Actions} actions
 */
export function tooMany({ matching = 0, at_most = 0, fits }, state, actions) {
  return html`
    <p class="note">${count(matching)} tasks are too many to group one by one; at most ${count(at_most)}.</p>
    ${
      fits
        ? html`<a class="more" href=${actions.href(timeChange({ since: fits, ...until(state) }))}>Since ${minute(fits, state.zone)}</a>`
        : nothing
    }`;
}

/**
 * @param {State} state
 * @returns {Record<string, string>}
 */
function until(state) {
  const value = one(state.view, "until");
  return value ? { until: value } : {};
}
