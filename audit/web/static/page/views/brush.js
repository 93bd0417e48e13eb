/** How bars of the histogram are selected: by mouse or touch, and by keyboard. */

/** @typedef {import("../main.js").State} State */
/** @typedef {import("../main.js").Actions} Actions */

/**
 * @param {PointerEvent} event
 * @param {number} bars
 */
function barAt(event, bars) {
  const { left, width } = /** @type {Element} */ (event.currentTarget).getBoundingClientRect();
  const index = Math.floor(((event.clientX - left) / width) * bars);
  return Math.min(Math.max(index, 0), bars - 1);
}

/**
 * @param {PointerEvent} event
 * @param {Actions} actions
 * @param {number} bars
 */
export function press(event, actions, bars) {
  if (event.button !== 0) return;
  const target = /** @type {Element} */ (event.currentTarget);
  target.setPointerCapture(event.pointerId);
  const at = barAt(event, bars);
  actions.set({ bar: at, selection: [at, at] });
}

/**
 * @param {PointerEvent} event
 * @param {State} state
 * @param {Actions} actions
 * @param {number} bars
 */
export function move(event, state, actions, bars) {
  const target = /** @type {Element} */ (event.currentTarget);
  const at = barAt(event, bars);
  const { bar, selection } = state.ui;
  if (at === bar) return;
  const brushing = selection && target.hasPointerCapture(event.pointerId);
  actions.set({ bar: at, selection: brushing ? [selection[0], at] : selection });
}

/**
 * @param {PointerEvent} event
 * @param {State} state
 * @param {Actions} actions
 */
export function release(event, state, actions) {
  const target = /** @type {Element} */ (event.currentTarget);
  if (state.ui.selection && target.hasPointerCapture(event.pointerId))
    actions.zoom(...state.ui.selection);
}

/** @param {Actions} actions */
export function drop(actions) {
  actions.set({ bar: -1, selection: null });
}

/**
 * @param {KeyboardEvent} event
 * @param {State} state
 * @param {Actions} actions
 * @param {number} bars
 */
export function key(event, state, actions, bars) {
  const focused = document.activeElement?.closest("[data-bar]")?.getAttribute("data-bar");
  if (!focused || event.ctrlKey || event.altKey || event.metaKey) return;
  const { selection } = state.ui;
  const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -bars, End: bars };
  const step = steps[/** @type {keyof typeof steps} */ (event.key)];
  if (step) {
    const to = Math.min(Math.max(+focused + step, 0), bars - 1);
    actions.set({ bar: to, selection: event.shiftKey ? [selection?.[0] ?? +focused, to] : null });
    actions.focus(`[data-bar="${to}"]`);
  } else if (event.key === "Enter" || event.key === " ") {
    // The focus goes to a bar that is there whatever the zoom shows.
    actions.focus('[data-bar="0"]');
    actions.zoom(...(selection ?? [+focused, +focused]));
  } else if (event.key === "Escape" && selection) {
    actions.set({ selection: null });
  } else return;
  event.preventDefault();
  event.stopPropagation();
}
