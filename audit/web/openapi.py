"""The OpenAPI 3.1 document, generated from the table of routes and the models."""

from __future__ import annotations

import inspect
import json
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema
from pydantic_core import core_schema

from audit import errors
from audit.access.identity import Scope
from audit.history.parsing import MAX_TASKS_IN_ARRAY
from audit.history.query import AuditQuery, NoParams, TaskPath
from audit.history.task import NewTask
from audit.web.handlers.recording import NDJSON
from audit.web.routes import ROUTES, Content, Response, Route

_REF: Final = "#/components/schemas/{model}"
_EXAMPLES: Final = json.loads((files("audit.web") / "examples.json").read_text("utf-8"))
_TAGS: Final[dict[Scope | None, str]] = {Scope.READ: "ask", Scope.RECORD: "record"}

_DESCRIPTION: Final = """\
Records the tasks of an orchestrator and answers queries about them, exactly and newest first.

A task is recorded once and moves forwards through its states. Once it is `completed`, `failed` or
`rejected`, it never changes again. No task is ever deleted.

**Lists.** Filters combine with AND. `total` is the number of all tasks that match, on all pages
together. To read the next page, send the same filters with the `next_cursor` of this page as
`cursor`. On the last page, `next_cursor` is `null`. `limit` may change from page to page.

**Caching.** Send the `ETag` of a response as `If-None-Match`. As long as nothing has changed, the
response is 304 and costs next to nothing. No response is ever older than its request.

**Errors.** Every response with status 400 or higher is `application/problem+json` (RFC 9457), also
for unknown routes (404) and methods (405, with `Allow`). A parameter or member that is unknown, out
of bounds or repeated without permission is an error and never ignored. `errors` lists each of them.

**Limits.** A task has at most 1 MiB, a number at most 1,000 digits when written out, and JSON is
nested at most 64 levels deep. Each limit is a setting of the service, and the error names it.

**Text.** No text may contain a NUL character (`\\u0000`), and all text is valid Unicode.

**Compatibility.** Ignore members of responses that you do not know, because later versions may add
some. Requests must not have unknown members.

**API keys.** Send `Authorization: Bearer <key>` with a key that has the scope of the operation. A
key can be bound to one project. It then reads and records only the tasks of that project, totals
count only these tasks, and other tasks do not exist for it. If a key has a rate limit,
`RateLimit-Policy` and `RateLimit` show the limit and what is left of it.

**Request ids.** Every response has an `X-Request-ID`. It is the one of the request, if that has 1
to 128 letters, digits, `.`, `_`, `~` and `-`; otherwise it is a new one.
"""

_TEXT: Final = {"type": "string"}
_REQUEST_HEADERS: Final = {
    "If-None-Match": (
        "The `ETag` of a response that the client has. The response is 304 if it is still current."
    ),
    "If-Match": (
        "The `ETag` of the task that the change is based on. If the task has another one by now,"
        " the response is 412 and nothing is written."
    ),
}
#: For each header of responses: its description, its schema, and whether it is always there.
_RESPONSE_HEADERS: Final[dict[str, tuple[str, dict[str, Any], bool]]] = {
    "X-Request-ID": ("The id of the request.", _TEXT, True),
    "ETag": ("Changes whenever the task or the page may have changed.", _TEXT, False),
    "Cache-Control": (
        "The client may store the page and must validate it before each use.",
        {"const": "private, no-cache"},
        True,
    ),
    "Vary": (
        "The response depends on the compression and on the key.",
        {"const": "Accept-Encoding, Authorization"},
        True,
    ),
    "Link": (
        "URLs of the first and the next page, relative to this page (RFC 8288).",
        _TEXT,
        False,
    ),
    "X-Total-Count": (
        "The `total` of the page. Missing with `total=none`.",
        {"type": "integer", "minimum": 0},
        False,
    ),
    "WWW-Authenticate": (
        "How to authenticate, and what is wrong with the key (RFC 6750).",
        _TEXT,
        True,
    ),
    "Retry-After": (
        "The number of seconds to wait before the next attempt.",
        {"type": "integer", "minimum": 1},
        True,
    ),
}
#: The body that `audit.web.problems` writes.
_PROBLEM: Final = {
    "description": "Why a request was refused or has failed (RFC 9457).",
    "type": "object",
    "properties": {
        "type": {
            "type": "string",
            "description": "`urn:task-audit:problem:` and a fixed name, or `about:blank`.",
        },
        "title": {"type": "string", "description": "The same text for all problems of a type."},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong with this request."},
        "instance": {
            "type": "string",
            "description": "The id of the request, as in `X-Request-ID`.",
        },
        "errors": {
            "type": "array",
            "items": {"$ref": _REF.format(model="FieldError")},
            "description": "With status 422, each parameter or member that is wrong.",
        },
    },
    "required": ["type", "title", "status", "detail", "instance"],
}
_FIELD_ERROR: Final = {
    "description": "What is wrong with one parameter or member.",
    "type": "object",
    "properties": {
        "field": {
            "type": "string",
            "description": (
                "The name of the parameter or member: `status`, or `3.status` in an array of tasks,"
                " or `line 4: status` in NDJSON."
            ),
        },
        "detail": {"type": "string"},
    },
    "required": ["field", "detail"],
}


@cache
def document_json() -> bytes:
    """Return the document as JSON."""
    return json.dumps(document(), ensure_ascii=False, separators=(",", ":")).encode()


def document() -> dict[str, Any]:
    """Return a new copy of the document."""
    described = [route for route in ROUTES if route.responses]
    paths: dict[str, Any] = {}
    for route in described:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    problems = {kind: None for route in described for kind in route.problems}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Task audit",
            "version": version("task-audit"),
            "description": _DESCRIPTION,
            "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        },
        # Relative to the document, so that a proxy can serve everything under a prefix.
        "servers": [{"url": ".", "description": "the folder of this document"}],
        "tags": [
            {"name": "ask", "description": "Read the history"},
            {"name": "record", "description": "Record and change tasks"},
            {"name": "service", "description": "The service itself"},
        ],
        "paths": paths,
        "components": {
            "schemas": _schemas(described),
            "responses": {_name(kind): _problem(kind) for kind in problems},
            "headers": {name: _header(name) for name in _RESPONSE_HEADERS},
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": (
                        "An API key created by `audit keys create`, or a JSON Web Token of the"
                        " configured issuer. A service without keys and without an issuer needs"
                        " neither."
                    ),
                }
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    summary, _, description = (inspect.getdoc(route.handler) or "").partition("\n\n")
    parameters = [*_path_parameters(route), *_query_parameters(route)]
    parameters += [
        {
            "name": name,
            "in": "header",
            "description": _REQUEST_HEADERS[name],
            "schema": _with_example("headers", name, _TEXT),
        }
        for name in route.headers
    ]
    content = {each.media_type: _content(each) for each in route.body}
    operation = {
        "operationId": route.handler.__name__,
        "tags": [_TAGS.get(route.scope, "service")],
        "summary": summary.removesuffix("."),
        "description": " ".join(description.split()),
        "parameters": parameters,
        "requestBody": {"required": True, "content": content} if content else None,
        "responses": {
            **{str(status): _response(each) for status, each in route.responses.items()},
            **{
                str(kind.status): {"$ref": f"#/components/responses/{_name(kind)}"}
                for kind in sorted(route.problems, key=lambda kind: kind.status)
            },
        },
    }
    # OpenAPI 3.1 allows HTTP schemes to list scopes.
    security = [{"key": [route.scope.value]}] if route.scope else []
    return {**{name: part for name, part in operation.items() if part}, "security": security}


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    known = {
        "service_name": (
            _properties(AuditQuery)["service"]["items"],
            "Matches an element of `services_touched` exactly. Any character, percent-encoded.",
        ),
        "task_id": (_properties(TaskPath)["task_id"], "The id of the task."),
    }
    return [
        {"name": name, "in": "path", "required": True, "description": text, "schema": schema}
        for name, (schema, text) in known.items()
        if f"{{{name}}}" in route.path
    ]


def _query_parameters(route: Route) -> list[dict[str, Any]]:
    parameters = []
    properties = _properties(route.query) if route.query else {}
    # `status` is the last field of its model, and the most used parameter.
    for name, schema in sorted(properties.items(), key=lambda item: item[0] != "status"):
        description = schema.pop("description")
        # A URL cannot contain null.
        sent = schema.get("anyOf", [schema])[0]
        if name in _EXAMPLES["parameters"]:
            description += f" For example `{_EXAMPLES['parameters'][name]}`."
            sent = _with_example("parameters", name, sent)
        parameter = {"name": name, "in": "query", "description": description, "schema": sent}
        if schema.get("type") == "array":
            parameter |= {"style": "form", "explode": True}
        if name == "service" and "{service_name}" in route.path:
            sent["maxItems"] -= 1  # the path names one more
        parameters.append(parameter)
    return parameters


def _response(response: Response) -> dict[str, Any]:
    described = _with_headers(response.description, response.headers)
    if response.content:
        described["content"] = {response.content.media_type: _content(response.content)}
    if response.links:
        described["links"] = response.links
    return described


def _with_headers(description: str, names: tuple[str, ...]) -> dict[str, Any]:
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-ID", *names)}
    return {"description": description, "headers": headers}


def _header(name: str) -> dict[str, Any]:
    description, schema, is_required = _RESPONSE_HEADERS[name]
    header = {"description": description, "schema": _with_example("headers", name, schema)}
    return {**header, "required": True} if is_required else header


def _with_example(kind: str, name: str, schema: dict[str, Any]) -> dict[str, Any]:
    example = _EXAMPLES[kind].get(name)
    return schema if example is None else {**schema, "examples": [example]}


def _content(content: Content) -> dict[str, Any]:
    schema = content.schema
    if not isinstance(schema, dict):
        schema = {"$ref": _REF.format(model=schema.__name__)}
    if content.schema is NewTask:
        several = {"type": "array", "minItems": 1, "maxItems": MAX_TASKS_IN_ARRAY}
        schema = {"oneOf": [schema, {**several, "items": schema}]}
    examples = {name: dict(_EXAMPLES["bodies"][name]) for name in content.examples}
    if content.media_type == NDJSON:
        for example in examples.values():
            tasks = example["value"] if isinstance(example["value"], list) else [example["value"]]
            example["value"] = "".join(f"{json.dumps(task)}\n" for task in tasks)
    return {"schema": schema, "examples": examples}


def _name(kind: type[errors.Problem]) -> str:
    return "Failed" if kind is errors.Problem else kind.__name__


def _problem(kind: type[errors.Problem]) -> dict[str, Any]:
    value = {
        "type": f"urn:task-audit:problem:{kind.name}",
        "title": kind.title,
        "status": kind.status,
        "instance": _EXAMPLES["headers"]["X-Request-ID"],
        **_EXAMPLES["problems"][kind.name],
    }
    content = {
        "schema": {"$ref": _REF.format(model="Problem")},
        "examples": {kind.name.replace("-", "_"): {"summary": kind.title, "value": value}},
    }
    headers: tuple[str, ...] = ()
    if kind in (errors.TooManyRequests, errors.Unavailable):
        headers = ("Retry-After",)
    if kind is errors.Unauthenticated:
        headers = ("WWW-Authenticate",)
    return {
        **_with_headers(kind.title, headers),
        "content": {"application/problem+json": content},
    }


class _Schemas(GenerateJsonSchema):
    """Omits defaults, and titles that repeat the name of a field.

    Generated clients send every default that they know. The default of one parameter can exclude
    another parameter, so only the descriptions name the defaults.
    """

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002 - pydantic's
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> dict[str, Any]:
        described = super().default_schema(schema)
        described.pop("default", None)
        return described


def _schemas(routes: list[Route]) -> dict[str, Any]:
    used: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {}
    for route in routes:
        for content in route.body:
            if not isinstance(content.schema, dict):
                used[content.schema, "validation"] = None
        for response in route.responses.values():
            if response.content and not isinstance(response.content.schema, dict):
                used[response.content.schema, "serialization"] = None
    _, generated = models_json_schema(list(used), ref_template=_REF, schema_generator=_Schemas)
    return {**generated["$defs"], "Problem": _PROBLEM, "FieldError": _FIELD_ERROR}


def _properties(model: type[NoParams]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template=_REF, schema_generator=_Schemas)
    properties: dict[str, Any] = schema["properties"]
    return properties
