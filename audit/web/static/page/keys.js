/**
 * @param {KeyboardEvent} event
 * @param {import("./main.js").State} state
 * @param {import("./main.js").Actions} actions
 */
export function press(event, state, actions) {
  if (event.key !== "Escape") return;
  if (state.ui.menu) actions.closeMenu();
  else if (state.view.params.task) actions.close();
}
