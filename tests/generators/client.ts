// A program that uses the types which openapi-typescript generates; prints JSON.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

declare const process: { argv: string[] };
declare const console: { log(text: string): void };

type NewTask = components["schemas"]["NewTask"];
type TaskSummary = components["schemas"]["TaskSummary"];

const [, , baseUrl = "", key = ""] = process.argv;
const client = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${key}` } });
const ago = (hours: number) => new Date(Date.now() - hours * 3_600_000).toISOString();

function found<T>(answer: { data?: T; error?: { detail: string } }): T {
  if (answer.data === undefined) throw new Error(answer.error?.detail ?? "no answer");
  return answer.data;
}

// Record one task, then several.
const first: NewTask = { request_text: "Deploy 1", services_touched: ["typescript"] };
const one = found(await client.POST("/api/v1/audit/tasks", { body: first }));
const several: NewTask[] = [2, 3, 4, 5, 6].map((number) => ({
  request_text: `Deploy ${number}`,
  status: "executing",
  services_touched: ["typescript"],
  created_at: ago(number),
  created_by: null,
}));
const many = found(await client.POST("/api/v1/audit/tasks", { body: several }));

// List.
const listed = found(
  await client.GET("/api/v1/audit/by-service/{service_name}", {
    params: { path: { service_name: "typescript" }, query: { limit: 4 } },
  }),
);

// Crawl by cursor.
const crawled: TaskSummary[] = [];
let cursor: string | null | undefined;
do {
  const query = { service: ["typescript"], limit: 4, ...(cursor ? { cursor } : {}) };
  const page = found(await client.GET("/api/v1/audit/query", { params: { query } }));
  crawled.push(...page.tasks);
  cursor = page.next_cursor;
} while (cursor !== null);

// Update, and find the failure with `since`.
const task_id = many.task_ids[0];
if (task_id === undefined) throw new Error("no id");
const changed = found(
  await client.PATCH("/api/v1/audit/tasks/{task_id}", {
    params: { path: { task_id } },
    body: { status: "failed", error_message: "no space left" },
  }),
);
const failures = found(
  await client.GET("/api/v1/audit/failures", {
    params: { query: { since: ago(24 * 60), service: ["typescript"] } },
  }),
);

// Who changed it.
const history = found(
  await client.GET("/api/v1/audit/tasks/{task_id}/history", { params: { path: { task_id } } }),
);
const event = history.events.at(-1);
const status = event?.changed["status"];

// A typed 404, and a typed 422.
const missing = await client.GET("/api/v1/audit/tasks/{task_id}", {
  params: { path: { task_id: "00000000-0000-0000-0000-000000000000" } },
});
const notFound: components["schemas"]["Problem"] | undefined = missing.error;
const refused = await client.GET("/api/v1/audit/query", {
  params: { query: { days: 3, since: ago(1) } },
});

console.log(
  JSON.stringify({
    recorded: [one.recorded, many.recorded],
    listed: [listed.tasks.length, listed.total],
    crawled: crawled.map((task) => task.request_text),
    changed: [changed.status, changed.error_message],
    history: [event?.actor, status?.from, status?.to],
    failures: failures.tasks.map((task) => task.request_text),
    missing: [missing.response.status, notFound?.type],
    refused: refused.error?.errors?.map((error) => error.field),
  }),
);
