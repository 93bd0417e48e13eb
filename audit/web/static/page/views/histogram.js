/** Tasks over time: stacked bars that can be brushed, and the same numbers as a table. */

import { html, nothing, svg } from "../../lit-html/lit-html.js";
import { intervalWords, range, xTicks } from "../time.js";
import { all, one } from "../url.js";
import { tooMany } from "./facets.js";
import { count, counted, failed, icon, percent, STATUSES } from "./parts.js";

/** The height of the bars and of the labels below them, in px. */
const HEIGHT = 120;
const LABELS = 22;
/** A bar of few tasks beside one of many must stay visible. */
const LEAST = 2;

/** Shown while a bar has the focus of the keyboard. */
const KEYS = html`<span class="keys muted">arrow keys move, Shift selects, Enter zooms in</span>`;

const INTERVALS = ["1m", "5m", "15m", "1h", "3h", "6h", "12h", "1d", "1w", "1mo", "1y"];

/**
 * @param {State} state
 * @param {Actions} actions
 */
export function histogram(state, actions) {
  const { data, problem, loading } = state.parts.histogram;
  const failure = problem && problem.errors.length === 0;
  if (problem && !failure && !data) return nothing;
  return html`
    <section class="card histogram" aria-label="Tasks over time" aria-busy=${loading}>
      <div class="card-head">
        <p class="readout">${data ? readout(state, data) : "Tasks over time"}</p>
        ${data ? controls(state, actions, data) : nothing}
      </div>
      ${failure ? refused(problem, state, actions) : nothing}
      ${data && !problem ? body(state, actions, data) : nothing}
      ${!data && !problem ? html`<div class="chart skeleton"></div>` : nothing}
    </section>`;
}

/**
 * @param {State} state
 * @param {Actions} actions
 * @param {Histogram} data
 */
function body(state, actions, data) {
  if (data.buckets.length === 0) return html`<p class="chart none">No tasks to draw</p>`;
  if (state.ui.table) return table(state, data);
  return html`<div class="chart ${state.parts.histogram.loading ? "stale" : ""}">${chart(state, actions, data)}</div>`;
}

/**
 * @param {import("../api.js").Problem} problem
 * @param {State} state
 * @param {Actions} actions
 */
function refused(problem, state, actions) {
  if (!problem.tooMany) return failed(problem, actions.reload);
  return html`<div class="refused">${tooMany(problem.tooMany, state, actions)}</div>`;
}

/**
 * What the bar under the pointer or the selection says, else the whole range.
 * @param {State} state
 * @param {Histogram} data
 */
function readout(state, data) {
  const { bar, selection } = state.ui;
  const [from, to] = selection ?? [bar, bar];
  const buckets = data.buckets.slice(Math.min(from, to), Math.max(from, to) + 1);
  if (bar < 0 || buckets.length === 0) {
    if (data.buckets.length === 0) return "Tasks over time";
    return html`<span class="range">${range(data.since, data.until, state.zone)}</span>
      <span class="muted">by ${intervalWords(data.interval)}${
        state.ui.table || data.total === 0
          ? nothing
          : html`<span class="hint"> · drag to zoom</span>`
      }</span>${KEYS}`;
  }
  const total = sum(buckets, (each) => each.total);
  const parts = STATUSES.map((status) => ({
    status,
    n: sum(buckets, (each) => each.status[status]),
  }));
  return html`<span class="range">${range(buckets[0].start, buckets[buckets.length - 1].end, state.zone)}</span>
    <strong>${counted(total, "task")}</strong>
    ${parts
      .filter(({ n }) => n > 0)
      .map(
        ({ status, n }) =>
          html`<span class="part"><i class="swatch ${status}"></i>${count(n)} ${status}</span>`,
      )}${KEYS}`;
}

/**
 * @template T
 * @param {T[]} items
 * @param {(item: T) => number} value
 */
function sum(items, value) {
  return items.reduce((total, item) => total + value(item), 0);
}

/**
 * @param {State} state
 * @param {Actions} actions
 * @param {Histogram} data
 */
function controls(state, actions, data) {
  const { log, table, selection } = state.ui;
  const chosen = one(state.view, "interval");
  return html`
    <div class="controls">
      ${
        selection
          ? html`<button type="button" class="small primary" @click=${() => actions.zoom(...selection)}>Zoom in</button>`
          : nothing
      }
      <button type="button" class="small" title="Zoom out (0)" @click=${() => actions.zoomOut()}>${icon("zoomOut")}Zoom out</button>
      <label class="small select">
        <span class="hidden">Width of a bar</span>
        <select @change=${(/** @type {Event} */ event) => {
          const { value } = /** @type {HTMLSelectElement} */ (event.target);
          actions.go({ interval: value || null });
        }}>
          <option value="" ?selected=${!chosen}>auto (${data.interval})</option>
          ${INTERVALS.map((each) => html`<option value=${each} ?selected=${chosen === each}>${each}</option>`)}
        </select>
      </label>
      ${
        table
          ? nothing
          : html`<button type="button" class="small" aria-pressed=${log} title="Logarithmic scale (y)" @click=${() => actions.set({ log: !log })}>Log</button>`
      }
      <button type="button" class="small" aria-pressed=${table} @click=${() => actions.set({ table: !table })}>Table</button>
    </div>`;
}

/**
 * @param {State} state
 * @param {Actions} actions
 * @param {Histogram} data
 */
function chart(state, actions, data) {
  const { buckets } = data;
  const { log, selection } = state.ui;
  const ticks = yTicks(Math.max(...buckets.map((each) => each.total)), log);
  const top = ticks[ticks.length - 1];
  const scale = log
    ? (/** @type {number} */ n) => (HEIGHT * Math.log1p(n)) / Math.log1p(top)
    : (/** @type {number} */ n) => (HEIGHT * n) / top;
  const width = 100 / buckets.length;
  const focusable = Math.min(Math.max(state.ui.bar, 0), buckets.length - 1);
  const [from, to] = selection ? [Math.min(...selection), Math.max(...selection)] : [0, -1];
  return html`
    <svg class="scale" width="44" height=${HEIGHT + LABELS + 8} aria-hidden="true">
      ${ticks.map((n) => svg`<text x="38" y=${HEIGHT - scale(n) + 12} text-anchor="end">${compact(n)}</text>`)}
    </svg>
    <svg class="bars" height=${HEIGHT + LABELS + 8} role="group" aria-roledescription="histogram"
      aria-label="Bars. Arrow keys move, Shift and arrow keys select, Enter zooms in, 0 zooms out."
      @pointerdown=${(/** @type {PointerEvent} */ event) => press(event, actions, buckets.length)}
      @pointermove=${(/** @type {PointerEvent} */ event) => move(event, state, actions, buckets.length)}
      @pointerup=${(/** @type {PointerEvent} */ event) => release(event, state, actions)}
      @click=${(/** @type {MouseEvent} */ event) => click(event, state, actions)}
      @pointercancel=${() => drop(actions)}
      @pointerleave=${() => state.ui.selection ?? actions.set({ bar: -1 })}
      @keydown=${(/** @type {KeyboardEvent} */ event) => key(event, state, actions, buckets.length)}>
      <defs>
        <pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
          <rect class="hatch" width="2" height="5"/>
        </pattern>
      </defs>
      <svg y="8" overflow="visible">
        ${ticks.map((n) => svg`<line class="grid" x1="0" x2="100%" y1=${HEIGHT - scale(n)} y2=${HEIGHT - scale(n)}/>`)}
        ${selection ? svg`<rect class="selection" x="${from * width}%" width="${(to - from + 1) * width}%" y="0" height=${HEIGHT}/>` : nothing}
        ${buckets.map((bucket, i) => bar(bucket, i, width, scale, state, i === focusable))}
        ${xTicks(buckets, state.zone, state.ui.narrow).map(
          ({ index, label }) => svg`
            <line class="tick" x1="${index * width}%" x2="${index * width}%" y1=${HEIGHT} y2=${HEIGHT + 4}/>
            <text x="${index * width}%" y=${HEIGHT + 17} text-anchor=${anchor(index * width)}>${label}</text>`,
        )}
      </svg>
    </svg>`;
}

/** @param {number} at  In percent of the width. */
function anchor(at) {
  if (at < 3) return "start";
  return at > 97 ? "end" : "middle";
}

/** @param {number} n */
function compact(n) {
  return n < 10000 ? count(n) : Intl.NumberFormat("en-US", { notation: "compact" }).format(n);
}

/**
 * @param {Bucket} bucket
 * @param {number} index
 * @param {number} width  In percent.
 * @param {(n: number) => number} scale
 * @param {State} state
 * @param {boolean} focusable
 */
function bar(bucket, index, width, scale, state, focusable) {
  const x = `${index * width}%`;
  let below = 0;
  let floor = HEIGHT;
  const segments = STATUSES.filter((status) => bucket.status[status] > 0).map((status) => {
    const height = Math.max(scale(below + bucket.status[status]) - scale(below), LEAST);
    below += bucket.status[status];
    floor -= height;
    return svg`<rect class=${status} x=${x} y=${floor} width="${width}%" height=${height}/>`;
  });
  return svg`
    <g class="bar" data-bar=${index} role="button" tabindex=${focusable ? 0 : -1} aria-label=${barLabel(bucket, state.zone)}>
      <rect class="hit" x=${x} y="0" width="${width}%" height=${HEIGHT}/>
      ${segments}
      ${bucket.partial && below > 0 ? svg`<rect class="partial" x=${x} y=${floor} width="${width}%" height=${HEIGHT - floor}/>` : nothing}
    </g>`;
}

/**
 * @param {State} state
 * @param {Histogram} data
 */
function table(state, data) {
  // Where states are chosen, the others are not counted.
  const hasRates = all(state.view, "status").length === 0;
  return html`
    <div class="twin" tabindex="0" role="region" aria-label="Tasks over time as a table">
      <table>
        <thead>
          <tr>
            <th scope="col">From</th>
            <th scope="col">Tasks</th>
            ${STATUSES.map((status) => html`<th scope="col">${status}</th>`)}
            ${hasRates ? html`<th scope="col">% failed</th>` : nothing}
          </tr>
        </thead>
        <tbody>
          ${data.buckets.map(
            (bucket) => html`
              <tr>
                <th scope="row">${range(bucket.start, bucket.end, state.zone)}${bucket.partial ? " (part)" : ""}</th>
                <td>${count(bucket.total)}</td>
                ${STATUSES.map((status) => html`<td>${count(bucket.status[status])}</td>`)}
                ${hasRates ? html`<td>${failureRate(bucket)}</td>` : nothing}
              </tr>`,
          )}
        </tbody>
      </table>
    </div>`;
}

/** @param {Bucket} bucket */
function failureRate({ status }) {
  const ended = status.failed + status.completed;
  return percent(ended ? status.failed / ended : null);
}

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
function press(event, actions, bars) {
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
function move(event, state, actions, bars) {
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
function release(event, state, actions) {
  const target = /** @type {Element} */ (event.currentTarget);
  const { selection } = state.ui;
  if (!selection || !target.hasPointerCapture(event.pointerId)) return;
  if (selection[0] !== selection[1]) actions.zoom(...selection);
}

/**
 * A click zooms in to one bar. The second click of a double click undoes that, and zooms out.
 * @param {MouseEvent} event
 * @param {State} state
 * @param {Actions} actions
 */
function click({ detail }, { ui: { selection } }, actions) {
  if (detail === 2) actions.zoomOut({ undo: true });
  else if (detail === 1 && selection && selection[0] === selection[1]) actions.zoom(...selection);
}

/** @param {Actions} actions */
function drop(actions) {
  actions.set({ bar: -1, selection: null });
}

/**
 * @param {KeyboardEvent} event
 * @param {State} state
 * @param {Actions} actions
 * @param {number} bars
 */
function key(event, state, actions, bars) {
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

/**
 * What a screen reader says about a bar.
 * @param {Bucket} bucket
 * @param {string} zone
 */
function barLabel(bucket, zone) {
  const parts = STATUSES.filter((status) => bucket.status[status] > 0).map(
    (status) => `${count(bucket.status[status])} ${status}`,
  );
  const part = bucket.partial ? ", only a part of it" : "";
  return `${range(bucket.start, bucket.end, zone)}${part}: ${parts.join(", ") || "no tasks"}`;
}

/**
 * Return round numbers from the lowest line to the one at or above the highest bar.
 * @param {number} highest
 * @param {boolean} log
 */
function yTicks(highest, log) {
  if (log) {
    const ticks = [1];
    while (ticks[ticks.length - 1] < highest) ticks.push(ticks[ticks.length - 1] * 10);
    return ticks.length > 1 ? ticks : [1, 10];
  }
  const rough = Math.max(highest, 1) / 3;
  const magnitude = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * magnitude).find((n) => n >= rough) ?? 1;
  const whole = Math.max(1, Math.ceil(step));
  const lines = Math.max(1, Math.ceil(highest / whole));
  return Array.from({ length: lines }, (_, i) => (i + 1) * whole);
}
