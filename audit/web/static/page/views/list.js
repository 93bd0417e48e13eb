/** The list of tasks, with its totals, its histogram and its facets. */

import { html } from "../../lit-html/lit-html.js";
import { duration, secondsBetween } from "../time.js";
import { empty, failed, loading } from "./states.js";

/**
 * @param {import("../main.js").State} state
 * @param {import("../main.js").Actions} actions
 */
export function list(state, actions) {
  const { data, problem } = state.parts.list;
  if (problem) return failed(problem, actions.reload);
  if (!data) return loading();
  if (data.tasks.length === 0) return empty(state, actions);
  return html`
    <h1>${data.total.toLocaleString("en")} tasks</h1>
    <table class="rows">
      <thead>
        <tr>
          <th scope="col">Created</th>
          <th scope="col">State</th>
          <th scope="col">Service</th>
          <th scope="col">Intent</th>
          <th scope="col">Took</th>
          <th scope="col">Request and error</th>
        </tr>
      </thead>
      <tbody>
        ${data.tasks.map(
          (task) => html`<tr>
            <td><a href=${actions.href({ task: task.task_id })} data-task=${task.task_id}>${task.created_at}</a></td>
            <td>${task.status}</td>
            <td>${task.services_touched.join(", ")}</td>
            <td>${task.outcome?.action_type}</td>
            <td>${task.completed_at && duration(secondsBetween(task.created_at, task.completed_at))}</td>
            <td>${task.request_text} ${task.error_message}</td>
          </tr>`,
        )}
      </tbody>
    </table>`;
}
