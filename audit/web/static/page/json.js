/** JSON as it was sent: numbers of any length, members in their order, and repeated names survive. */

import { html, nothing } from "../lit-html/lit-html.js";

/**
 * What to show after a value. The path has null for an element of an array.
 * @typedef {(path: (string | null)[], node: JsonNode) => unknown} After
 */

const TOKEN = /\s*([{}[\],:]|"(?:[^"\\]|\\.)*"|[^\s{}[\],:"]+)/y;
/** Arrays and objects with more items than this begin closed. */
const OPEN_AT_MOST = 20;
/** Items that a node shows before it offers to show the rest. */
const SHOWN_AT_MOST = 500;

/**
 * Parse a JSON text that a JSON parser has accepted before.
 * @param {string} text
 * @returns {JsonNode}
 */
export function parse(text) {
  TOKEN.lastIndex = 0;
  const next = () => {
    const match = TOKEN.exec(text);
    if (!match) {
      throw new SyntaxError("The JSON text is incomplete");
    }
    return match[1];
  };
  /** @param {string} token @returns {JsonNode} */
  const value = (token) => {
    const start = TOKEN.lastIndex - token.length;
    /** @type {JsonNode["items"]} */
    const items = [];
    if (token !== "{" && token !== "[") {
      const kind = token[0] === '"' ? "string" : /[-\d]/.test(token[0]) ? "number" : "word";
      return { kind, text: token, items };
    }
    const isObject = token === "{";
    for (let item = next(); item !== "}" && item !== "]"; item = next()) {
      if (item === ",") {
        continue;
      }
      let name = String(items.length);
      if (isObject) {
        name = JSON.parse(item);
        next();
      }
      items.push({ name, node: value(isObject ? next() : item) });
    }
    return {
      kind: isObject ? "object" : "array",
      text: text.slice(start, TOKEN.lastIndex),
      items,
    };
  };
  return value(next());
}

/**
 * The member of an object, or undefined. Of repeated names, the last counts, as in JSON.parse.
 * @param {JsonNode} node
 * @param {string} name
 */
export function member(node, name) {
  return node.items.findLast((item) => item.name === name)?.node;
}

/**
 * A value as a tree that opens and closes.
 * @param {JsonNode} node
 * @param {() => void} redraw
 * @param {After} [after]
 * @param {(string | null)[]} [path]
 * @returns {unknown}
 */
export function tree(node, redraw, after, path = []) {
  if (!node.items.length) {
    return html`<code class="json-${node.kind}">${node.text}</code>${after?.(path, node)}`;
  }
  const open = node.open ?? (path.length < 3 && node.items.length <= OPEN_AT_MOST);
  /** @param {Event} event */
  const toggled = (event) => {
    const now = /** @type {HTMLDetailsElement} */ (event.currentTarget).open;
    if (now !== open) {
      node.open = now;
      redraw();
    }
  };
  return html`<details class="json" ?open=${open} @toggle=${toggled}>
    <summary>${summary(node)}</summary>
    ${open ? children(node, redraw, after, path) : nothing}
  </details>`;
}

/** @param {JsonNode} node */
function summary({ kind, items }) {
  const count = items.length;
  return kind === "object"
    ? `${count} ${count === 1 ? "member" : "members"}`
    : `${count} ${count === 1 ? "element" : "elements"}`;
}

/**
 * @param {JsonNode} node
 * @param {() => void} redraw
 * @param {After | undefined} after
 * @param {(string | null)[]} path
 */
function children(node, redraw, after, path) {
  const shown = node.items.slice(0, SHOWN_AT_MOST);
  const rest = node.items.length - shown.length;
  return html`<ul>
    ${shown.map(
      ({ name, node: child }) =>
        html`<li><span class="json-name">${name}</span> ${tree(child, redraw, after, [...path, node.kind === "array" ? null : name])}</li>`,
    )}
    ${rest ? html`<li class="quiet">${rest} more. “Copy JSON” copies all of them.</li>` : nothing}
  </ul>`;
}
