/** The filter box: a chip for each filter, and a text field that proposes more (ARIA 1.2 combobox). */

import { html, nothing } from "../../lit-html/lit-html.js";
import { all, FILTERS, PAGING, REPEATED, TIMES, timeChange, VIEW } from "../url.js";
import { icon, STATUSES } from "./parts.js";

/**
 * @param {State} state
 * @param {Actions} actions
 */
export function filters(state, actions) {
  const open = state.ui.menu === "filter";
  const offered = open ? proposals(state) : [];
  const active = open && offered[state.ui.option] ? `option-${state.ui.option}` : nothing;
  return html`
    <div class="filters filter-box" data-menu role="search" @click=${onBoxClick}>
      ${icon("search")}
      ${chips(state, actions)}
      <input id="filter" class="filter-input" type="text" role="combobox" aria-label="Filter" autocomplete="off"
        autocapitalize="off" spellcheck="false" placeholder=${chosen(state).length > 0 ? "" : "Filter: service, intent, id …"}
        aria-expanded=${open && offered.length > 0} aria-controls="proposals" aria-autocomplete="list"
        aria-activedescendant=${active} .value=${state.ui.draft}
        @focus=${() => actions.set({ menu: "filter", option: -1 })}
        @blur=${() => actions.closeMenu("filter")}
        @input=${(/** @type {Event} */ event) =>
          actions.set({
            draft: /** @type {HTMLInputElement} */ (event.target).value,
            menu: "filter",
            option: -1,
          })}
        @keydown=${(/** @type {KeyboardEvent} */ event) => key(event, offered, state, actions)}>
      <kbd class="slash" aria-hidden="true">/</kbd>
      <ul id="proposals" class="menu proposals" role="listbox" aria-label="Proposals" ?hidden=${offered.length === 0}>
        ${offered.map(
          (each, i) => html`
            <li id="option-${i}" role="option" aria-selected=${i === state.ui.option}
              @pointerdown=${(/** @type {Event} */ event) => {
                event.preventDefault();
                take(each, state, actions);
              }}>
              <span>${each.text}</span><span class="muted">${each.note}</span>
            </li>`,
        )}
      </ul>
    </div>`;
}

/** @param {Event} event */
function onBoxClick(event) {
  if (event.target === event.currentTarget) document.getElementById("filter")?.focus();
}

/**
 * Every filter of the URL but the time, which has its own menu.
 * @param {State} state
 */
function chosen(state) {
  const known = FILTERS.filter((name) => !TIMES.includes(name));
  const others = [...FILTERS, ...PAGING, ...VIEW];
  const unknown = Object.keys(state.view.params).filter((name) => !others.includes(name));
  return [...known, ...unknown].flatMap((name) =>
    all(state.view, name).map((value) => ({ name, value })),
  );
}

/**
 * @param {State} state
 * @param {Actions} actions
 */
function chips(state, actions) {
  return chosen(state).map(
    ({ name, value }) => html`
      <span class="chip">
        <button type="button" class="chip-text" title="Edit" @click=${() => edit(name, value, state, actions)}>
          <span class="muted">${name}:</span>${value}
        </button>
        <button type="button" class="chip-remove" aria-label="Remove ${name} ${value}"
          @click=${() => actions.go(without(state, name, value))}>${icon("close")}</button>
      </span>`,
  );
}

/**
 * @param {State} state
 * @param {string} name
 * @param {string} value
 */
function without(state, name, value) {
  return { [name]: all(state.view, name).filter((each) => each !== value) };
}

/**
 * Take a filter back into the text field.
 * @param {string} name
 * @param {string} value
 * @param {State} state
 * @param {Actions} actions
 */
function edit(name, value, state, actions) {
  actions.set({ draft: wordOf(name, value) });
  actions.go(without(state, name, value));
  actions.focus("#filter");
}

/**
 * @param {KeyboardEvent} event
 * @param {Proposal[]} offered
 * @param {State} state
 * @param {Actions} actions
 */
function key(event, offered, state, actions) {
  const { draft, option } = state.ui;
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    const step = event.key === "ArrowDown" ? 1 : -1;
    const from = option < 0 && step < 0 ? 0 : option;
    actions.set({ menu: "filter", option: (from + step + offered.length) % (offered.length || 1) });
  } else if (event.key === "Enter") {
    enter(offered, state, actions);
  } else if (event.key === "Tab" && !event.shiftKey && draft.trim() && offered.length > 0) {
    const completed = replaceLast(draft, offered[Math.max(option, 0)].text);
    if (completed === draft) return;
    actions.set({ draft: completed, option: -1 });
  } else if (event.key === "Backspace" && draft === "") {
    const last = chosen(state).at(-1);
    if (last) actions.go(without(state, last.name, last.value));
  } else if (event.key === "Escape") {
    if (state.ui.menu === "") /** @type {HTMLElement} */ (event.target).blur();
    actions.set({ menu: "", draft: state.ui.menu ? draft : "" });
  } else return;
  event.preventDefault();
  event.stopPropagation();
}

/**
 * @param {string} draft
 * @param {string} text
 */
function replaceLast(draft, text) {
  const all = words(draft);
  const kept = /\s$/.test(draft) ? all : all.slice(0, -1);
  return [...kept, text].join(" ");
}

/**
 * Add the highlighted proposal, or else what was typed.
 * @param {Proposal[]} offered
 * @param {State} state
 * @param {Actions} actions
 */
function enter(offered, state, actions) {
  const { draft, option } = state.ui;
  const typed = words(draft).map(filterOf);
  const found = typed.filter((each) => each !== null);
  if (option >= 0 && offered[option]) take(offered[option], state, actions);
  else if (found.length > 0 && found.length === typed.length) add(found, state, actions);
  else if (draft.trim() && offered.length > 0) take(offered[0], state, actions);
}

/**
 * @param {Proposal} proposal
 * @param {State} state
 * @param {Actions} actions
 */
function take({ text, filter, task }, state, actions) {
  const earlier = words(replaceLast(state.ui.draft, ""))
    .map(filterOf)
    .filter((each) => each !== null);
  if (task) {
    actions.set({ draft: "", menu: "" });
    actions.open(task);
  } else if (filter) {
    add([...earlier, filter], state, actions);
  } else {
    actions.set({ draft: replaceLast(state.ui.draft, text), menu: "filter", option: -1 });
  }
}

/**
 * @param {{name: string, value: string}[]} found
 * @param {State} state
 * @param {Actions} actions
 */
function add(found, state, actions) {
  actions.set({ draft: "" });
  actions.go(adding(state.view, found));
}

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
function words(text) {
  return text.match(/[a-z_]+:\{.*\}|(?:"[^"]*"?|[^\s"])+/g) ?? [];
}

/**
 * Return the filter that a word such as `service:payments` stands for.
 * @param {string} word
 */
function filterOf(word) {
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
function wordOf(name, value) {
  return `${name}:${/\s/.test(value) && name !== "outcome" ? `"${value}"` : value}`;
}

/**
 * Return the change that adds filters.
 * @param {View} view
 * @param {{name: string, value: string}[]} filters
 * @returns {Change}
 */
function adding(view, filters) {
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
function proposals(state) {
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
