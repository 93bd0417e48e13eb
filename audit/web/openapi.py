"""The OpenAPI 3.1 document, made from the same models that judge requests and shape answers."""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import version
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from pydantic_core import core_schema

from audit import errors
from audit.access.identity import Scope
from audit.history.parsing import MAX_TASKS_IN_ARRAY
from audit.history.query import AuditQuery, FailuresQuery, NoParams, TaskPath, TaskQuery
from audit.history.task import NewTask, RecordedBody, Task, TaskChange, TaskPageBody

_API: Final = "/api/v1/audit"
_REF: Final = "#/components/schemas/{model}"
_REQUEST_ID: Final = "0b5c2f4e8a7d4c1f9e3a6b2d1c0f8e7a"

# --- what an error holds --------------------------------------------------------------------------


class FieldError(BaseModel):
    """What is wrong with one parameter or member."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    field: str
    """Its name; in an array of tasks such as `3.status`, in NDJSON such as `line 4: status`."""
    detail: str


class Problem(BaseModel):
    """Why a request was refused, or failed (RFC 9457)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    """`urn:task-audit:problem:` and a name that never changes, or `about:blank`."""
    title: str
    """The same for all problems of a type."""
    status: int
    detail: str
    """About this problem."""
    instance: str
    """The id of the request, as in `X-Request-ID`."""
    errors: list[FieldError] = []
    """With status 422, every parameter or member that is wrong."""


# What the service says, for each problem that a route may answer with.
_DETAILS: Final[dict[type[errors.Problem], str]] = {
    errors.Malformed: "the URL holds a % that two hexadecimal digits do not follow",
    errors.Unauthenticated: "the key deploy-bot has expired",
    errors.Forbidden: "this needs the scope record; deploy-bot has read",
    errors.TaskNotFound: "no task has the id 7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11",
    errors.BodyTooSlow: "the body did not arrive within 30 seconds",
    errors.PreconditionFailed: (
        '7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11: its ETag is "0d1b8f0f4ef6a43c0a9d3b3f1c9a7e52"; read'
        " the task, and send the change that it still needs"
    ),
    errors.Conflict: (
        "7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11: "
        "the task is in a terminal state and can no longer change"
    ),
    errors.BodyTooLarge: "the body is over 33554432 bytes; send it in parts",
    errors.UrlTooLong: "the URL is over 65536 bytes",
    errors.HeadersTooLarge: "a header field is over 32768 bytes",
    errors.UnsupportedMedia: "the content type is text/plain; send application/json",
    errors.Invalid: "limit: must be a whole number from 1 to 1000 (and 1 more)",
    errors.TooManyRequests: "this key may send 1000 requests a second",
    errors.Problem: f"the log has it under {_REQUEST_ID}",
    errors.Unavailable: "the database does not answer",
    errors.TimedOut: "the query ran into its time limit; ask for less, or narrow the time",
}
_WRONG: Final = [
    {"field": "limit", "detail": "must be a whole number from 1 to 1000"},
    {
        "field": "status",
        "detail": "must be one of pending, approved, executing, completed, failed, rejected",
    },
]
_RETRIED: Final = (errors.TooManyRequests, errors.Unavailable)
_KEYED: Final = (errors.Unauthenticated,)
_ASKING: Final = (
    errors.Malformed,
    errors.Unauthenticated,
    errors.Forbidden,
    errors.UrlTooLong,
    errors.Invalid,
    errors.TooManyRequests,
    errors.HeadersTooLarge,
    errors.Problem,
    errors.Unavailable,
    errors.TimedOut,
)
_SENDING: Final = (
    *_ASKING,
    errors.BodyTooSlow,
    errors.Conflict,
    errors.BodyTooLarge,
    errors.UnsupportedMedia,
)

# --- examples -------------------------------------------------------------------------------------

_FAILED: Final[dict[str, Any]] = {
    "task_id": "7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11",
    "status": "failed",
    "request_text": "Deploy checkout 2.14.0 to production",
    "services_touched": ["checkout", "payments"],
    "outcome": {"action_type": "deploy", "version": "2.14.0", "rolled_back": True},
    "created_at": "2026-06-21T09:14:03.218734Z",
    "completed_at": "2026-06-21T09:16:47.902115Z",
    "error_message": "payments: 2 of 6 instances did not become healthy",
}
_ROTATED: Final[dict[str, Any]] = {
    "task_id": "1f0c8a52-5b7e-4f0b-8d55-2a9c4f1e7b60",
    "status": "completed",
    "request_text": "Rotate the database password of payments",
    "services_touched": ["payments"],
    "outcome": {"action_type": "rotate_secret", "secret": "payments/database"},
    "created_at": "2026-06-20T22:05:11.000000Z",
    "completed_at": "2026-06-20T22:05:19.441092Z",
    "error_message": None,
}
_FAILED_WHOLE: Final[dict[str, Any]] = {
    **_FAILED,
    "project_id": "c2a5e7d4-91b3-4b6e-8f0a-3d7c6e5b4a29",
    "created_by": "maria@example.com",
    "recorded_at": "2026-06-21T09:14:03.231406Z",
    "approved_at": "2026-06-21T09:14:30.000000Z",
    "estimated_resources": {"cpu_seconds": 40},
    "actual_resources": {"cpu_seconds": 163.5},
    "external_ai_used": None,
    "suggestions": ["Raise the memory limit of payments"],
}
_CURSOR: Final = "AQAGVOclSUAAAAZUv_Jwoy59nxyeDD9NDppja28LfC0RAAAAAAAAEKB7pF2UdQMtFA"
_FIRST_PAGE: Final = {
    "tasks": [_FAILED],
    "total": 4256,
    "limit": 1,
    "offset": 0,
    "next_cursor": _CURSOR,
}
_LAST_PAGE: Final = {
    "tasks": [_FAILED],
    "total": 4256,
    "limit": 100,
    "offset": None,
    "next_cursor": None,
}
_NO_MATCH: Final = {"tasks": [], "total": 0, "limit": 100, "offset": 0, "next_cursor": None}

_STARTED: Final = {
    "request_text": "Deploy checkout 2.14.0 to production",
    "created_by": "maria@example.com",
    "services_touched": ["checkout", "payments"],
    "outcome": {"action_type": "deploy", "version": "2.14.0"},
}
_SENT: Final = [
    {
        "task_id": "5e2b9d7c-4a1f-4c83-b6d0-9f8e7a6b5c41",
        "status": "approved",
        "created_at": "2026-06-22T06:00:00Z",
        **_STARTED,
    },
    {
        "task_id": _ROTATED["task_id"],
        "status": "completed",
        "request_text": _ROTATED["request_text"],
        "created_by": "night-shift",
        "services_touched": _ROTATED["services_touched"],
        "outcome": _ROTATED["outcome"],
        "created_at": "2026-06-20T23:05:11+01:00",
        "completed_at": _ROTATED["completed_at"],
    },
]
_IDS: Final = [task["task_id"] for task in _SENT]
_FINISHED: Final = {
    "status": "failed",
    "outcome": _FAILED["outcome"],
    "actual_resources": {"cpu_seconds": 163.5},
    "error_message": _FAILED["error_message"],
}
_ETAG: Final = 'W/"554d68e0969d5339b3fa60b2"'
_IF_NONE_MATCH: Final = {
    "name": "If-None-Match",
    "in": "header",
    "description": "The ETag of a page that the client has: 304 if it is still the answer.",
    "schema": {"type": "string", "examples": [_ETAG]},
}
_TASK_ETAG: Final = '"0d1b8f0f4ef6a43c0a9d3b3f1c9a7e52"'
_IF_NONE_MATCH_TASK: Final = {
    "name": "If-None-Match",
    "in": "header",
    "description": "The ETag of the task as the client has it: 304 if it is still so.",
    "schema": {"type": "string", "examples": [_TASK_ETAG]},
}
_IF_MATCH: Final = {
    "name": "If-Match",
    "in": "header",
    "description": (
        "The ETag of the task that the change was made for: 412, and nothing is written, if the"
        " task has another one by now."
    ),
    "schema": {"type": "string", "examples": [_TASK_ETAG]},
}
_PARAMETER_EXAMPLES: Final = {
    "since": "2026-06-01T00:00:00Z",
    "until": "2026-07-01T00:00:00+01:00",
    "outcome": '{"action_type": "rotate_secret"}',
}

# --- the document ---------------------------------------------------------------------------------

_DESCRIPTION: Final = """\
Records the tasks of an orchestrator and answers questions about them: exactly, and newest first.

A task is recorded once and moves forwards through its states. From `completed`, `failed` or
`rejected` on it never changes again. No task is ever deleted.

**Lists.** Filters combine with AND. `total` counts every task that matches them, on all pages
together. To read the next page, send the same filters with the `next_cursor` of this page as
`cursor`. A `next_cursor` of `null` marks the last page. `limit` may change from page to page.

**Caching.** Send the `ETag` of an answer as `If-None-Match`: the answer is 304, at next to no cost,
for as long as nothing changes. No answer is ever older than its request.

**Errors.** Every answer with status 400 or higher is `application/problem+json` (RFC 9457), also
for unknown routes (404) and methods (405, with `Allow`). A parameter or member that is unknown, out
of bounds or repeated without being allowed to is an error, never ignored; `errors` names each.

**Limits.** A task has at most 1 MiB, a number at most 1,000 digits when written out, and JSON is
nested at most 64 levels deep. Each limit is a setting of the service, and an error names it.

**Text.** No text may contain a NUL character (`\\u0000`), and all text is valid Unicode.

**Compatibility.** Ignore members of answers that you do not know: later versions may add some.
Requests have no unknown members.

**API keys.** Send `Authorization: Bearer <key>` with a key that has the scope of the operation. A
key can be bound to one project: it reads and records only the tasks of that project, totals count
only these, and any other task is unknown to it. If a key has a rate limit, `RateLimit-Policy` and
`RateLimit` show the limit and what is left.

**Request ids.** Every answer has an `X-Request-ID`: that of the request, if it sent one of 1 to 128
letters, digits, `.`, `_`, `~` and `-`; otherwise a new one.
"""


@cache
def document_json() -> bytes:
    """Return the document as JSON."""
    return json.dumps(document(), ensure_ascii=False, separators=(",", ":")).encode()


def document() -> dict[str, Any]:
    """Return the document, anew at each call."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Task audit",
            "version": version("task-audit"),
            "description": _DESCRIPTION,
            "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        },
        # Relative to the document, so that a proxy may serve all of it under a prefix.
        "servers": [{"url": ".", "description": "where this document is"}],
        "tags": [
            {"name": "ask", "description": "Questions about the history"},
            {"name": "record", "description": "Tasks as they happen"},
            {"name": "service", "description": "The service itself"},
        ],
        "paths": {
            f"{_API}/failures": {"get": _needs(Scope.READ, _get_failures())},
            _API + "/by-service/{service_name}": {"get": _needs(Scope.READ, _get_by_service())},
            f"{_API}/query": {"get": _needs(Scope.READ, _audit_query())},
            f"{_API}/tasks": {"post": _needs(Scope.RECORD, _record())},
            _API + "/tasks/{task_id}": {
                "get": _needs(Scope.READ, _get_task()),
                "patch": _needs(Scope.RECORD, _update()),
            },
            "/healthz": {"get": _open(_healthz())},
            "/readyz": {"get": _open(_readyz())},
            "/metrics": {"get": _needs(Scope.ADMIN, _metrics())},
            "/openapi.json": {"get": _open(_openapi_json())},
            "/docs": {"get": _open(_docs())},
        },
        "components": {
            "schemas": _schemas(),
            "responses": {_name(kind): _problem(kind) for kind in _DETAILS},
            "headers": _headers(),
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": (
                        "An API key made by `audit keys create`, or a JSON Web Token of the"
                        " issuer that is configured. A service without either needs no key."
                    ),
                }
            },
        },
    }


def _needs(scope: Scope, operation: dict[str, Any]) -> dict[str, Any]:
    """A key of this scope is to be sent; OpenAPI 3.1 lets HTTP schemes name what it is for."""
    return {**operation, "security": [{"key": [scope.value]}]}


def _open(operation: dict[str, Any]) -> dict[str, Any]:
    """Anyone may call this operation, with or without a key."""
    return {**operation, "security": []}


def _get_failures() -> dict[str, Any]:
    return {
        "operationId": "get_failures",
        "tags": ["ask"],
        "summary": "The tasks that failed",
        "description": "Newest first; by default, those created in the last 7 days.",
        "parameters": _query(FailuresQuery),
        "responses": _page_or_problem(),
    }


def _get_by_service() -> dict[str, Any]:
    name = _properties(AuditQuery)["service"]["items"]
    path = _path(
        "service_name",
        name,
        "Matches an element of `services_touched` exactly. Any character, percent-encoded.",
    )
    others = _query(AuditQuery)
    for parameter in others:
        if parameter["name"] == "service":
            # The one in the path is counted with them.
            parameter["schema"]["maxItems"] -= 1
    return {
        "operationId": "get_by_service",
        "tags": ["ask"],
        "summary": "The tasks that touched a service",
        "description": "Newest first. Each `service` given has to be touched too.",
        "parameters": [path, *others],
        "responses": _page_or_problem(),
    }


def _audit_query() -> dict[str, Any]:
    return {
        "operationId": "audit_query",
        "tags": ["ask"],
        "summary": "The tasks that match",
        "description": "Newest first; without any filter, all of them.",
        "parameters": _query(AuditQuery),
        "responses": _page_or_problem(),
    }


def _page_or_problem() -> dict[str, Any]:
    page = _json(
        _ref("TaskPageBody"),
        first_page=("A page, with more to follow", _FIRST_PAGE),
        last_page=("The page after a cursor, and the last one", _LAST_PAGE),
        no_match=("No task matches", _NO_MATCH),
    )
    kept = ("ETag", "Cache-Control", "Vary")
    return {
        "200": _answer("A page of tasks", page, *kept, "Link", "X-Total-Count"),
        "304": _answer("The page is still as it was under one of the ETags sent", None, *kept),
        **_problems(*_ASKING),
    }


def _get_task() -> dict[str, Any]:
    return {
        "operationId": "get_task",
        "tags": ["ask"],
        "summary": "One task whole",
        "parameters": [_task_id(), _IF_NONE_MATCH_TASK],
        "responses": {
            "200": _answer("The task", _json(_ref("Task"), task=("A task", _FAILED_WHOLE)), "ETag"),
            "304": _answer("The task is still as it was under the ETag sent", None, "ETag"),
            **_problems(*_ASKING, errors.TaskNotFound, errors.PreconditionFailed),
        },
    }


def _record() -> dict[str, Any]:
    several = {
        "type": "array",
        "items": _ref("NewTask"),
        "minItems": 1,
        "maxItems": MAX_TASKS_IN_ARRAY,
    }
    lines = {
        "type": "string",
        "description": "A NewTask on each line; as many as the limit of the body allows.",
    }
    new = {"recorded": 2, "duplicates": 0, "task_ids": _IDS}
    known = {"recorded": 0, "duplicates": 2, "task_ids": _IDS}
    return {
        "operationId": "record",
        "tags": ["record"],
        "summary": "Record tasks",
        "description": (
            "All of them, or none. `task_id` is the idempotency key: the same id with the same "
            "content again is a duplicate and changes nothing; with other content it is refused."
        ),
        "requestBody": {
            "required": True,
            "content": {
                **_json(
                    {"oneOf": [_ref("NewTask"), several]},
                    one=("A task, whose id the server makes", _STARTED),
                    several=("Several tasks", _SENT),
                ),
                "application/x-ndjson": {
                    "schema": lines,
                    "examples": _examples(
                        one=("A task on a line", _lines(_STARTED)),
                        several=("Several tasks, each on a line", _lines(*_SENT)),
                    ),
                },
            },
        },
        "responses": {
            "200": _answer(
                "All were recorded before, with the same content",
                _json(_ref("RecordedBody"), duplicates=("Two duplicates", known)),
            ),
            "201": {
                **_answer(
                    "Recorded, and durable",
                    _json(_ref("RecordedBody"), recorded=("Two tasks", new)),
                ),
                "links": {
                    "first_task": _link("get_task", "The first of them"),
                    "change_of_first_task": _link("update", "Moves the first of them on"),
                },
            },
            **_problems(*_SENDING),
        },
    }


def _link(operation: str, description: str) -> dict[str, Any]:
    return {
        "operationId": operation,
        "parameters": {"task_id": "$response.body#/task_ids/0"},
        "description": description,
    }


def _lines(*tasks: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(task)}\n" for task in tasks)


def _update() -> dict[str, Any]:
    change = _json(_ref("TaskChange"), failed=("The task failed", _FINISHED))
    return {
        "operationId": "update",
        "tags": ["record"],
        "summary": "Move an open task on",
        "description": (
            "Fills in what is known: a member that is not sent stays as it is, `null` clears it. "
            "A change that leaves the task as it is writes nothing and is answered with 200, also "
            "when the task is terminal, so it may be sent again after a lost answer."
        ),
        "parameters": [_task_id(), _IF_MATCH],
        "requestBody": {
            "required": True,
            "content": {**change, "application/merge-patch+json": change["application/json"]},
        },
        "responses": {
            "200": _answer(
                "The task as it is now",
                _json(_ref("Task"), task=("A task", _FAILED_WHOLE)),
                "ETag",
            ),
            **_problems(*_SENDING, errors.TaskNotFound, errors.PreconditionFailed),
        },
    }


def _healthz() -> dict[str, Any]:
    return {
        "operationId": "healthz",
        "tags": ["service"],
        "summary": "Whether the process lives",
        "description": "Touches nothing else.",
        "responses": {"200": _answer("It lives", _status("ok"))},
    }


def _readyz() -> dict[str, Any]:
    return {
        "operationId": "readyz",
        "tags": ["service"],
        "summary": "Whether the service can answer",
        "description": "It can where the database answers and its migrations are current.",
        "responses": {
            "200": _answer("It can", _status("ready")),
            **_problems(errors.Problem, errors.Unavailable, errors.TimedOut),
        },
    }


def _metrics() -> dict[str, Any]:
    line = 'task_audit_http_requests_total{route="/healthz",method="GET",status="200"} 7.0\n'
    text = {"schema": {"type": "string"}, "examples": _examples(text=("Text", line))}
    return {
        "operationId": "metrics",
        "tags": ["service"],
        "summary": "What the service has done, for Prometheus",
        "description": "Of all workers. Also in the format of OpenMetrics, where it is asked for.",
        "responses": {
            "200": _answer("All metrics", {"text/plain": text}),
            **_problems(
                errors.Unauthenticated,
                errors.Forbidden,
                errors.TooManyRequests,
                errors.Problem,
                errors.Unavailable,
            ),
        },
    }


def _openapi_json() -> dict[str, Any]:
    beginning = {"openapi": "3.1.0", "info": {"title": "Task audit"}}
    return {
        "operationId": "openapi_json",
        "tags": ["service"],
        "summary": "This document",
        "responses": {
            "200": _answer(
                "An OpenAPI 3.1 document",
                _json({"type": "object"}, beginning=("Its beginning", beginning)),
            )
        },
    }


def _docs() -> dict[str, Any]:
    html = {"schema": {"type": "string"}, "examples": _examples(html=("HTML", "<!doctype html>"))}
    return {
        "operationId": "docs",
        "tags": ["service"],
        "summary": "A page to read this document and try the routes",
        "responses": {"200": _answer("The page", {"text/html": html})},
    }


# --- parts ----------------------------------------------------------------------------------------


class _Schemas(GenerateJsonSchema):
    """Without titles that repeat a field's name, and without defaults.

    Generated clients send each default that they know. That of one parameter would exclude another
    one, so descriptions name the defaults instead.
    """

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002 - pydantic's
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> dict[str, Any]:
        described = super().default_schema(schema)
        described.pop("default", None)
        return described


def _schemas() -> dict[str, Any]:
    _, generated = models_json_schema(
        [
            (NewTask, "validation"),
            (TaskChange, "validation"),
            (Task, "serialization"),
            (TaskPageBody, "serialization"),
            (RecordedBody, "serialization"),
            (Problem, "serialization"),
        ],
        ref_template=_REF,
        schema_generator=_Schemas,
    )
    schemas: dict[str, Any] = generated["$defs"]
    return schemas


def _properties(model: type[NoParams]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template=_REF, schema_generator=_Schemas)
    properties: dict[str, Any] = schema["properties"]
    return properties


def _query(model: type[TaskQuery]) -> list[dict[str, Any]]:
    parameters = []
    # The state is asked for most, but is the last field, after those that all lists share.
    for name, schema in sorted(_properties(model).items(), key=lambda item: item[0] != "status"):
        parameter: dict[str, Any] = {
            "name": name,
            "in": "query",
            "description": _description(name, schema),
        }
        if schema.get("type") == "array":
            parameter |= {"style": "form", "explode": True}
        # A URL cannot say null.
        sent = schema.get("anyOf", [schema])[0]
        if name in _PARAMETER_EXAMPLES:
            sent["examples"] = [_PARAMETER_EXAMPLES[name]]
        parameters.append({**parameter, "schema": sent})
    return [*parameters, _IF_NONE_MATCH]


def _description(name: str, schema: dict[str, Any]) -> str:
    description: str = schema.pop("description")
    example = _PARAMETER_EXAMPLES.get(name)
    return f"{description} Such as `{example}`." if example else description


def _task_id() -> dict[str, Any]:
    return _path("task_id", _properties(TaskPath)["task_id"], "The id of the task.")


def _path(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": schema,
    }


def _answer(description: str, content: dict[str, Any] | None, *headers: str) -> dict[str, Any]:
    answer = {
        "description": description,
        "headers": {
            name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-ID", *headers)
        },
    }
    return answer if content is None else {**answer, "content": content}


def _status(word: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {"status": {"const": word}},
        "required": ["status"],
    }
    return _json(schema, status=("The only answer", {"status": word}))


def _json(schema: dict[str, Any], **examples: tuple[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema, "examples": _examples(**examples)}}


def _examples(**examples: tuple[str, Any]) -> dict[str, Any]:
    return {
        name: {"summary": summary, "value": value} for name, (summary, value) in examples.items()
    }


def _ref(model: str) -> dict[str, Any]:
    return {"$ref": _REF.format(model=model)}


def _problems(*kinds: type[errors.Problem]) -> dict[str, Any]:
    return {
        str(kind.status): {"$ref": f"#/components/responses/{_name(kind)}"}
        for kind in sorted(kinds, key=lambda kind: kind.status)
    }


def _name(kind: type[errors.Problem]) -> str:
    return "Failed" if kind is errors.Problem else kind.__name__


def _problem(kind: type[errors.Problem]) -> dict[str, Any]:
    example: dict[str, Any] = {
        "type": f"urn:task-audit:problem:{kind.name}",
        "title": kind.title,
        "status": kind.status,
        "detail": _DETAILS[kind],
        "instance": _REQUEST_ID,
    }
    if kind is errors.Invalid:
        example["errors"] = _WRONG
    examples = _examples(**{kind.name.replace("-", "_"): (kind.title, example)})
    answer = _answer(
        kind.title,
        {"application/problem+json": {"schema": _ref("Problem"), "examples": examples}},
    )
    if kind in _RETRIED:
        answer["headers"]["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
    if kind in _KEYED:
        answer["headers"]["WWW-Authenticate"] = {"$ref": "#/components/headers/WWW-Authenticate"}
    return answer


def _headers() -> dict[str, Any]:
    return {
        "X-Request-ID": {
            "description": "The id of the request.",
            "required": True,
            "schema": {"type": "string", "examples": [_REQUEST_ID]},
        },
        "ETag": {
            "description": (
                "Changes whenever the task or the page may. Lists have none if no answer is cached."
            ),
            "schema": {"type": "string", "examples": [_ETAG]},
        },
        "Cache-Control": {
            "description": "The page may be kept, and is to be asked about each time.",
            "required": True,
            "schema": {"const": "private, no-cache"},
        },
        "Vary": {
            "description": "The page may be compressed, and another key may see another one.",
            "required": True,
            "schema": {"const": "Accept-Encoding, Authorization"},
        },
        "Link": {
            "description": (
                "Where the first page is, and the next one if tasks follow (RFC 8288), relative to"
                " this page. Left out if the URL is so long that proxies would refuse the header."
            ),
            "schema": {
                "type": "string",
                "examples": [f'<./query>; rel="first", <./query?cursor={_CURSOR}>; rel="next"'],
            },
        },
        "X-Total-Count": {
            "description": "The `total` of the page; left out with `total=none`.",
            "schema": {"type": "integer", "minimum": 0, "examples": [4256]},
        },
        "WWW-Authenticate": {
            "description": "What to send, and what was wrong with what was sent (RFC 6750).",
            "required": True,
            "schema": {"type": "string", "examples": ['Bearer error="invalid_token"']},
        },
        "Retry-After": {
            "description": "Seconds after which to ask again.",
            "required": True,
            "schema": {"type": "integer", "minimum": 1, "examples": [1]},
        },
    }
