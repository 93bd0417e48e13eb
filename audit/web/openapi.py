"""The OpenAPI 3.1 document, generated from the table of routes and the models.

`openapi.json` has the parts that do not depend on the routes, and `examples.json` all bodies.
"""

from __future__ import annotations

import inspect
import json
from copy import deepcopy
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema
from pydantic_core import core_schema

from audit import errors
from audit.access.identity import Scope
from audit.errors import Problem
from audit.history.export_query import ExportPath
from audit.history.parsing import MAX_TASKS_IN_ARRAY
from audit.history.query import AuditQuery, NoParams, TaskPath
from audit.history.task import NewTask
from audit.web.handlers.recording import NDJSON
from audit.web.routes import ROUTES, Content, Response, Route

_REF: Final = "#/components/schemas/{model}"


def _load(name: str) -> Any:
    return json.loads((files("audit.web") / name).read_text("utf-8"))


_EXAMPLES: Final = _load("examples.json")
_REQUEST_HEADERS: Final = _load("openapi.json")["request_headers"]
_REQUEST_ID: Final = "0b5c2f4e8a7d4c1f9e3a6b2d1c0f8e7a"
_TAGS: Final[dict[Scope | None, str]] = {Scope.READ: "ask", Scope.RECORD: "record"}

_DESCRIPTION: Final = """\
Records the tasks of an orchestrator and answers queries about them, exactly and newest first.
[The web page](tasks?status=failed&last=7d) shows the same history to people.

A task is recorded once and moves forwards through its states. Once it is `completed`, `failed` or
`rejected`, it never changes again. No task is ever deleted.

**Lists.** Filters combine with AND. `total` is the number of all tasks that match, on all pages
together. To read the next page, send the same filters with the `next_cursor` of this page as
`cursor`. On the last page, `next_cursor` is `null`. `limit` may change from page to page.

**Caching.** Send the `ETag` of a response as `If-None-Match`. As long as the response is the
same, you get 304 without a body. No response is ever older than its request.

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

**Reading what was written.** The response to a write has an `Audit-Position`. Send it with a read
as `Audit-Position-At-Least`, and the response contains the write, also from another server of the
cluster. After several writes, one after the other, the last position is enough. After writes at the
same time, send all their positions, separated by commas.

**Request ids.** Every response has an `X-Request-ID`. It is the one of the request, if that has 1
to 128 letters, digits, `.`, `_`, `~` and `-`; otherwise it is a new one.
"""


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
    problems = dict.fromkeys(kind for route in described for kind in route.problems)
    document: dict[str, Any] = _load("openapi.json")["document"]
    document["info"] |= {"version": version("task-audit"), "description": _DESCRIPTION}
    document["paths"] = paths
    document["components"]["schemas"] |= _schemas(described)
    document["components"]["responses"] = {_name(kind): _problem(kind) for kind in problems}
    return document


def _operation(route: Route) -> dict[str, Any]:
    summary, _, description = (inspect.getdoc(route.handler) or "").partition("\n\n")
    parameters = [
        *_path_parameters(route),
        *_query_parameters(route),
        *(_REQUEST_HEADERS[name] for name in route.all_headers),
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
            **{str(status): _response(each, route) for status, each in route.responses.items()},
            **{
                str(kind.status): {"$ref": f"#/components/responses/{_name(kind)}"}
                for kind in sorted(route.problems, key=lambda kind: kind.status)
            },
        },
    }
    # OpenAPI 3.1 allows HTTP schemes to list scopes.
    scopes = [route.scope.value] if route.scope else []
    security = [{"key": scopes}] if route.needs_key else []
    return {**{name: part for name, part in operation.items() if part}, "security": security}


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    known = {
        "service_name": (
            _properties(AuditQuery)["service"]["items"],
            "Matches an element of `services_touched` exactly. Any character, percent-encoded.",
        ),
        "task_id": (_properties(TaskPath)["task_id"], "The id of the task."),
        "export_id": (_properties(ExportPath)["export_id"], "The id of the export."),
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
        if f"{{{name}}}" in route.path:
            continue
        description = schema.pop("description")
        # A URL cannot contain null.
        sent = schema.get("anyOf", [schema])[0]
        if name in _EXAMPLES["parameters"]:
            description += f" For example `{_EXAMPLES['parameters'][name]}`."
            sent["examples"] = [_EXAMPLES["parameters"][name]]
        parameter = {"name": name, "in": "query", "description": description, "schema": sent}
        if route.query and route.query.model_fields[name].is_required():
            parameter["required"] = True
        if schema.get("type") == "array":
            parameter |= {"style": "form", "explode": True}
        if name == "service" and "{service_name}" in route.path:
            sent["maxItems"] -= 1  # the path names one more
        parameters.append(parameter)
    return parameters


def _response(response: Response, route: Route) -> dict[str, Any]:
    of_reads = ("Audit-Staleness-Seconds",) if route.scope is Scope.READ else ()
    described = _with_headers(response.description, (*response.headers, *of_reads))
    if response.contents:
        described["content"] = {each.media_type: _content(each) for each in response.contents}
    if response.links:
        described["links"] = response.links
    return described


def _with_headers(description: str, names: tuple[str, ...]) -> dict[str, Any]:
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-ID", *names)}
    return {"description": description, "headers": headers}


def _content(content: Content) -> dict[str, Any]:
    schema = content.schema
    if not isinstance(schema, dict):
        schema = {"$ref": _REF.format(model=schema.__name__)}
    if content.schema is NewTask:
        several = {"type": "array", "minItems": 1, "maxItems": MAX_TASKS_IN_ARRAY}
        schema = {"oneOf": [schema, {**several, "items": schema}]}
    examples = {name: deepcopy(_EXAMPLES["bodies"][name]) for name in content.examples}
    if content.media_type == NDJSON:
        for example in examples.values():
            tasks = example["value"] if isinstance(example["value"], list) else [example["value"]]
            example["value"] = "".join(f"{json.dumps(task)}\n" for task in tasks)
    return {"schema": schema, "examples": examples}


def _name(kind: type[errors.Problem]) -> str:
    return "Failed" if kind is errors.Problem else kind.__name__


def _problem(kind: type[Problem]) -> dict[str, Any]:
    """Describe a problem, with examples of it and of those of the same status that it extends."""
    kinds = [
        each for each in kind.__mro__ if issubclass(each, Problem) and each.status == kind.status
    ]
    content = {
        "schema": {"$ref": _REF.format(model="Problem")},
        "examples": {each.name.replace("-", "_"): _example_of(each) for each in kinds},
    }
    headers: tuple[str, ...] = ()
    if issubclass(kind, errors.TooManyRequests | errors.Unavailable):
        headers = ("Retry-After",)
    if kind is errors.Conflict:
        headers = ("Audit-Position",)
    if kind is errors.Unauthenticated:
        headers = ("WWW-Authenticate",)
    return {
        **_with_headers("; or: ".join(each.title for each in kinds), headers),
        "content": {"application/problem+json": content},
    }


def _example_of(kind: type[Problem]) -> dict[str, Any]:
    value = {
        "type": errors.TYPE + kind.name,
        "title": kind.title,
        "status": kind.status,
        "instance": _REQUEST_ID,
        **_EXAMPLES["problems"][kind.name],
    }
    return {"summary": kind.title, "value": value}


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
            for content in response.contents:
                if not isinstance(content.schema, dict):
                    used[content.schema, "serialization"] = None
    _, generated = models_json_schema(list(used), ref_template=_REF, schema_generator=_Schemas)
    schemas: dict[str, Any] = generated["$defs"]
    return schemas


def _properties(model: type[NoParams]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template=_REF, schema_generator=_Schemas)
    properties: dict[str, Any] = schema["properties"]
    return properties
