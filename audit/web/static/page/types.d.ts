/**
 * The types of the page, for the compiler and for readers. Browsers do not load this file.
 */

// --- what the API answers -------------------------------------------------------------------------

type Status = "pending" | "approved" | "executing" | "completed" | "failed" | "rejected";
type Counts = Record<Status, number>;

/** A task of a list. */
interface Row {
  task_id: string;
  status: Status;
  request_text: string;
  services_touched: string[];
  outcome: Record<string, unknown> | null;
  created_at: string;
  completed_at: string | null;
  error_message: string | null;
}

/** A task with all its members. */
interface Task extends Row {
  project_id: string | null;
  created_by: string | null;
  recorded_at: string;
  approved_at: string | null;
  estimated_resources: unknown;
  actual_resources: unknown;
  external_ai_used: unknown;
  suggestions: unknown[] | null;
}

/** A list. */
interface Page {
  tasks: Row[];
  total: number;
  limit: number;
  offset: number | null;
  next_cursor: string | null;
}

interface Bucket {
  start: string;
  end: string;
  partial: boolean;
  total: number;
  status: Counts;
}

interface Histogram {
  interval: string;
  tz: string;
  since: string;
  until: string;
  total: number;
  status: Counts;
  failure_rate: number | null;
  buckets: Bucket[];
}

/** Why a statistic groups no tasks one by one, and from when on it would. */
interface TooMany {
  matching?: number;
  at_most?: number;
  fits?: string | null;
}

interface Facet extends TooMany {
  values: { value: string | null; total: number }[] | null;
  more?: boolean;
}

interface Facets {
  total: number;
  facets: Record<string, Facet>;
}

interface TaskEvent {
  position: number | null;
  at: string;
  kind: string;
  status: Status;
  actor: string | null;
  role: string | null;
  request_id: string | null;
  changed: Record<string, { from: unknown; to: unknown }> | null;
}

interface History {
  task_id: string;
  events: TaskEvent[];
  next_cursor: string | null;
}

interface Whoami {
  name: string | null;
  scopes: string[];
  project_id: string | null;
  expires_at: string | null;
  via: "key" | "token" | "session" | "nobody";
  version: string;
  trace_url?: string | null;
}

/** The body of a refusal (RFC 9457). */
interface Refusal extends TooMany {
  title?: string;
  detail?: string;
  instance?: string;
  errors?: { field: string; detail: string }[];
}

/** A response of the API. */
interface Answer<T> {
  data: T;
  /** The body as it was sent, for numbers that a double cannot hold. */
  text: string;
  /** The time of the server when it answered. */
  at: Date;
  /** Where the feed continues after this answer. */
  position: string | null;
}

/** An event of the feed. */
interface FeedChange {
  n: number;
  task_id: string;
  status: Status;
  changed_at: string;
  by: string | null;
  changed: Record<string, unknown> | null;
  task: Row;
}

type Params = URLSearchParams | Record<string, string>;

// --- the state of the page ------------------------------------------------------------------------

/** What the URL says. */
interface View {
  page: "list" | "task";
  /** The task of the page `task`. */
  id: string | null;
  /** Every parameter, by name. */
  params: Record<string, string[]>;
}

/** A change of parameters: a new value, several values, or null to remove the parameter. */
type Change = Record<string, string | string[] | null>;

/** One answer of the API, and how it is doing. */
interface Part<T> {
  /** The path and the parameters that were asked for last. */
  question: string;
  /** The last answer. While another question loads, the answer before. */
  data: T | null;
  text: string;
  at: Date | null;
  position: string | null;
  loading: boolean;
  /** Why the last question has no answer. */
  problem: import("./api.js").Problem | null;
  request: AbortController | null;
}

/** Answers by name. */
interface Parts {
  list: Part<Page>;
  histogram: Part<Histogram>;
  facets: Part<Facets>;
  /** One task. */
  task: Part<Task>;
  history: Part<History>;
  /** What ran on the same service within half an hour. */
  around?: Part<Page>;
  /** What ran on the same service just before. */
  before?: Part<Page>;
  /** The last success of the same kind. */
  success?: Part<Page>;
  durations?: Part<{ p95: number | null }>;
  /** The newest task at any time, if none is in the window. */
  outside?: Part<Page>;
}

interface Ui {
  /** The open menu: "time", "zone", "copy", "views", "filter", or "". */
  menu: string;
  help: boolean;
  /** The text in the filter box. */
  draft: string;
  /** The highlighted proposal of the filter box, or -1. */
  option: number;
  /** The bar under the pointer or the focus, or -1. */
  bar: number;
  /** The first and the last selected bar. */
  selection: [number, number] | null;
  /** Show the histogram as a table. */
  table: boolean;
  /** Scale the histogram logarithmically. */
  log: boolean;
  /** How many values a facet shows. */
  top: number;
  /** The text in the find box of each facet. */
  find: Record<string, string>;
  /** On a narrow screen, show the facets. */
  filtersOpen: boolean;
  narrow: boolean;
  theme: "auto" | "light" | "dark";
  /** Shortcuts are on. */
  keys: boolean;
  /** A short message for everyone, such as "Link copied". */
  notice: string;
  /** A message for screen readers. */
  spoken: string;
  /** A part of the page cannot be loaded any more. */
  outdated: boolean;
}

/** What live mode has got and not shown yet. */
interface Live {
  /** The stream is missing for so long that a person should know. */
  lost: boolean;
  /** New rows, and changes that would move the rows below, by task id. */
  waiting: Map<string, Row>;
  /** More came than `waiting` may hold: only another list shows them. */
  overflow: boolean;
  /** The tasks that were inserted last. */
  fresh: Set<string>;
}

interface Session {
  needed: boolean;
  who: Whoami | null;
  asking: boolean;
  /** Why the last try to sign in failed. */
  refusal: string;
}

interface State {
  view: View;
  /** The time zone in which all times are shown. */
  zone: string;
  session: Session;
  parts: Parts;
  ui: Ui;
  live: Live;
}

// --- JSON as it was sent ---------------------------------------------------------------------------

/** A value with its source text. */
interface JsonNode {
  kind: "object" | "array" | "string" | "number" | "word";
  /** The source of the value. */
  text: string;
  /** The members of an object or the elements of an array. */
  items: { name: string; node: JsonNode }[];
  /** Whether the reader opened or closed it; undefined: the default. */
  open?: boolean;
}

// --- what the parts of the page give to each other ------------------------------------------------

interface AskOptions {
  /** Also if the same was asked already. */
  again?: boolean;
  /** Show the answer before until this one is here. */
  keep?: boolean;
  /** Do not show that it loads, and keep the answer before if it fails. */
  quiet?: boolean;
}

interface VisitOptions {
  /** Back does not return to the view before. */
  replace?: boolean;
  /** Stored with the entry of the browser's history. */
  mark?: object | null;
}

/** The parts of the page that are loaded when they are needed first. */
interface Later {
  help: typeof import("./views/help.js");
  live: typeof import("./live.js");
  login: typeof import("./views/login.js");
  menus: typeof import("./views/menus.js");
  task: typeof import("./views/task.js");
}

type Ask = (
  name: keyof Parts,
  path: string,
  params?: Params,
  options?: AskOptions,
) => Promise<boolean>;

/** What `main.js` gives to the actions. */
interface Main {
  ask: Ask;
  checkSession: () => Promise<void>;
  draw: () => void;
  drawPending: () => void;
  isLive: () => boolean;
  /** Return a part of the page, or undefined until it is loaded. */
  later: <N extends keyof Later>(name: N) => Later[N] | undefined;
  /** Load a part of the page. */
  need: <N extends keyof Later>(name: N) => Promise<Later[N] | undefined>;
  load: (options?: { again?: boolean }) => void;
  /** Ask again for the numbers above the list. */
  loadCounts: (options: AskOptions) => Promise<boolean[]>;
  /** Ask again for the open task. */
  loadTask: (options: AskOptions) => Promise<boolean[]>;
  visit: (view: View, options?: VisitOptions) => void;
}

type Actions = ReturnType<typeof import("./actions.js").makeActions>;

/** Where a page of the list lies. Both are null where the page was opened by a link. */
interface Place {
  /** The number of its first task, counted from 1. */
  first: number | null;
  /** The change that leads to the page before. */
  previous: Change | null;
}
