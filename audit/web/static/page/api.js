/**
 * Requests to the API.
 *
 * The browser's own cache sends `If-None-Match` and turns a 304 into the body that it kept, because
 * every list has an ETag and `Cache-Control: no-cache`.
 */

/** The path of the service, which ends with a slash: a proxy may serve it under a prefix. */
export const ROOT = new URL("../../../", import.meta.url).pathname;
export const API = `${ROOT}api/v1/audit/`;

/** Says why the API did not answer a request (RFC 9457). */
export class Problem extends Error {
  /**
   * @param {number} status  0 if the server could not be reached.
   * @param {Refusal} body
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
    /** Whether the same request may succeed later. */
    this.mayPass = status === 0 || status === 408 || status === 429 || status >= 500;
    this.at = Date.now();
  }
}

/**
 * Ask the API.
 * @param {string} path  Below `/api/v1/audit/`.
 * @param {Params} [params]
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
  const position = response.headers.get("Feed-Position");
  return { data: JSON.parse(text), text, at, position };
}

/**
 * @param {string} url
 * @param {RequestInit} init
 * @throws {Problem}
 */
export async function send(url, init) {
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
 * Return the URL of an answer, to show it to people.
 * @param {string} path
 * @param {URLSearchParams} params
 */
export function address(path, params) {
  const query = params.toString();
  return `${location.origin}${API}${path}${query && `?${query}`}`;
}
