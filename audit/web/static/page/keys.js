/** The shortcuts: one table, from which the help is rendered too. */

import { one } from "./url.js";

/** @typedef {import("./main.js").State} State */
/** @typedef {import("./main.js").Actions} Actions */

/**
 * @typedef {object} Shortcut
 * @property {string[]} keys  Any of them, as in `KeyboardEvent.key`.
 * @property {string} text
 * @property {(actions: Actions, state: State, key: string) => void} [run]  Without it, the element
 *   that has the focus knows the key.
 */

/** @type {{title: string, shortcuts: Shortcut[]}[]} */
export const GROUPS = [
  {
    title: "Find",
    shortcuts: [
      { keys: ["/"], text: "Filter", run: (actions) => actions.focus(".filters input") },
      { keys: ["t"], text: "Time", run: (actions) => actions.toggleMenu("time") },
      {
        keys: ["z"],
        text: "UTC or the zone of this computer",
        run: (actions) => actions.toggleZone(),
      },
      { keys: ["f"], text: "Freeze a moving time window", run: (actions) => actions.freeze() },
      { keys: ["v"], text: "Views", run: (actions) => actions.toggleMenu("views") },
    ],
  },
  {
    title: "List",
    shortcuts: [
      { keys: ["j"], text: "Next task", run: (actions) => actions.moveRow(1) },
      { keys: ["k"], text: "Previous task", run: (actions) => actions.moveRow(-1) },
      { keys: ["Enter"], text: "Open beside the list" },
      { keys: ["o"], text: "Open on a page of its own", run: (actions) => openPage(actions) },
      { keys: ["["], text: "Newer task, if one is open", run: (actions) => actions.neighbour(-1) },
      { keys: ["]"], text: "Older task, if one is open", run: (actions) => actions.neighbour(1) },
      { keys: ["Escape"], text: "Close", run: (actions, state) => close(actions, state) },
    ],
  },
  {
    title: "Bars, when one has the focus",
    shortcuts: [
      { keys: ["←", "→"], text: "Move" },
      { keys: ["Shift ← →"], text: "Select" },
      { keys: ["Enter"], text: "Zoom in" },
    ],
  },
  {
    title: "Page",
    shortcuts: [
      { keys: ["0"], text: "Zoom out", run: (actions) => actions.zoomOut() },
      {
        keys: ["y"],
        text: "Linear or logarithmic bars",
        run: (actions, state) => actions.set({ log: !state.ui.log }),
      },
      { keys: ["c"], text: "Copy a link", run: (actions) => actions.copyLink() },
      { keys: ["x"], text: "Copy as curl", run: (actions) => actions.copyCurl() },
      { keys: ["d"], text: "Dark or light", run: (actions) => actions.cycleTheme() },
      { keys: ["?"], text: "This help", run: (actions) => actions.set({ help: true }) },
    ],
  },
];

const FIELDS = "input, select, textarea, [contenteditable], [role=combobox]";
const shortcuts = GROUPS.flatMap((group) => group.shortcuts).filter((shortcut) => shortcut.run);

/**
 * @param {KeyboardEvent} event
 * @param {State} state
 * @param {Actions} actions
 */
export function press(event, state, actions) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (state.session.needed || state.ui.help || event.isComposing) return;
  const isEscape = event.key === "Escape";
  const inField = /** @type {Element} */ (event.target).closest?.(FIELDS);
  if (!isEscape && (inField || !state.ui.keys)) return;
  const found = shortcuts.find(({ keys }) => keys.includes(event.key));
  if (!found) return;
  event.preventDefault();
  found.run?.(actions, state, event.key);
}

/** @param {Actions} actions */
function openPage(actions) {
  const id = actions.focusedTask() ?? actions.taskId();
  if (id) actions.openPage(id);
}

/**
 * @param {Actions} actions
 * @param {State} state
 */
function close(actions, state) {
  if (state.ui.menu) actions.closeMenu();
  else if (state.ui.selection) actions.set({ selection: null });
  else if (one(state.view, "task") || state.view.page === "task") actions.close();
}
