/**
 * Requests to the API.
 *
 * The browser's own cache sends `If-None-Match` and turns a 304 into the body that it kept, because
 * every list has an ETag and `Cache-Control: no-cache`.
 */

/** The path of the service, which ends with a slash: a proxy may serve it under a prefix. */
export const ROOT = new URL("../../../", import.meta.url).pathname;
const API = `${ROOT}api/v1/audit/`;

/** @typedef {"pending" | "approved" | "executing" | "completed" | "failed" | "rejected"} Status */
/** @typedef {Record<Status, number>} Counts */

/**
 * A task of a list.
 * @typedef {object} Row
 * @property {string} task_id
 * @property {Status} status
 * @property {string} request_text
 * @property {string[]} services_touched
 * @property {Record<string, unknown> | null} outcome
 * @property {string} created_at
 * @property {string | null} completed_at
 * @property {string | null} error_message
 */
/** @typedef {{tasks: Row[], total: number, limit: number, offset: number | null, next_cursor: string | null}} Page */
/** @typedef {{start: string, end: string, partial: boolean, total: number, status: Counts}} Bucket */
/** @typedef {{interval: string, tz: string, since: string, until: string, total: number, status: Counts, failure_rate: number | null, buckets: Bucket[]}} Histogram */
/** @typedef {{values: {value: string | null, total: number}[] | null, more?: boolean, matching?: number, at_most?: number, fits?: string | null}} Facet */
/** @typedef {{total: number, facets: Record<string, Facet>}} Facets */
/**
 * A task with all its members.
 * @typedef {Row & {project_id: string | null, created_by: string | null, recorded_at: string, approved_at: string | null, estimated_resources: unknown, actual_resources: unknown, external_ai_used: unknown, suggestions: unknown[] | null}} Task
 */
/** @typedef {{position: number | null, at: string, kind: string, status: Status, actor: string | null, role: string | null, request_id: string | null, changed: Record<string, {from: unknown, to: unknown}> | null}} TaskEvent */
/** @typedef {{task_id: string, events: TaskEvent[], next_cursor: string | null}} History */
/** @typedef {{name: string | null, scopes: string[], project_id: string | null, expires_at: string | null, via: "key" | "token" | "session" | "nobody", version: string, trace_url?: string | null}} Whoami */

/**
 * A response of the API.
 * @template T
 * @typedef {object} Answer
 * @property {T} data
 * @property {string} text  The body as it was sent, for numbers that a double cannot hold.
 * @property {Date} at  The time of the server when it answered.
 */

/** Says why the API did not answer a request (RFC 9457). */
export class Problem extends Error {
  /**
   * @param {number} status  0 if the server could not be reached.
   * @param {{title?: string, detail?: string, instance?: string, errors?: {field: string, detail: string}[], matching?: number, at_most?: number, fits?: string | null}} body
   * @param {number | null} retryAfterSeconds
   */
  constructor(status, body, retryAfterSeconds) {
    super(body.detail ?? body.title ?? "");
    this.status = status;
    this.title = body.title ?? `The server answered ${status}`;
    this.detail = body.detail ?? "";
    this.requestId = body.instance ?? "";
    this.errors = body.errors ?? [];
    /** Set if more tasks match than a statistic groups one by one. */
    this.tooMany = body.matching === undefined ? null : body;
    this.retryAfterSeconds = retryAfterSeconds;
    this.at = Date.now();
  }
}

/**
 * Ask the API.
 * @param {string} path  Below `/api/v1/audit/`.
 * @param {URLSearchParams | Record<string, string>} [params]
 * @param {AbortSignal} [signal]
 * @returns {Promise<Answer<any>>}
 * @throws {Problem} if the API refuses the request or cannot be reached.
 */
export async function get(path, params = {}, signal = undefined) {
  const query = new URLSearchParams(params).toString();
  const response = await send(`${API}${path}${query && `?${query}`}`, { signal });
  const text = await response.text().catch(() => {
    signal?.throwIfAborted();
    throw unreachable();
  });
  const at = new Date(response.headers.get("Date") ?? Date.now());
  return { data: JSON.parse(text), text, at };
}

/**
 * @param {string} url
 * @param {RequestInit} init
 */
async function send(url, init) {
  /** @type {Response} */
  let response;
  try {
    response = await fetch(url, { ...init, credentials: "same-origin" });
  } catch (error) {
    init.signal?.throwIfAborted();
    throw error instanceof TypeError ? unreachable() : error;
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  const wait = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  throw new Problem(response.status, body, Number.isNaN(wait) ? null : wait);
}

function unreachable() {
  const title = "The service cannot be reached";
  return new Problem(0, { title, detail: "The network or the service is down." }, 5);
}

/**
 * @param {AbortSignal} [signal]
 * @returns {Promise<Answer<Whoami>>}
 */
export function whoami(signal) {
  return get("whoami", {}, signal);
}

/**
 * Exchange a key for a session, which the browser keeps in a cookie that no script can read.
 * @param {string} key
 */
export async function login(key) {
  await send(`${ROOT}session`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ key }),
  });
}

export async function logout() {
  await send(`${ROOT}session`, { method: "DELETE" });
}

/**
 * Return the URL of an answer, to show it to people.
 * @param {string} path
 * @param {URLSearchParams} params
 */
export function address(path, params) {
  const query = params.toString();
  return `${location.origin}${API}${path}${query && `?${query}`}`;
}
