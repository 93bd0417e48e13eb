"""The OpenAPI document describes what the service does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import pytest
from aiohttp import ClientResponse, web
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from pytest_aiohttp.plugin import AiohttpClient

from audit import errors
from audit.errors import Invalid
from audit.history.parsing import parse_change, parse_lines, parse_tasks
from audit.history.query import AuditQuery, FailuresQuery, TaskPath, TaskQuery, parse_query
from audit.settings import Settings
from audit.web import openapi
from audit.web.app import create_app
from audit.web.problems import problem_response, request_id_of
from audit.web.routes import ROUTES
from tests.conftest import Client

API = "/api/v1/audit"
LISTS: list[tuple[str, type[TaskQuery]]] = [
    (f"{API}/failures", FailuresQuery),
    (API + "/by-service/{service_name}", AuditQuery),
    (f"{API}/query", AuditQuery),
]
DOCUMENT = openapi.document()
OPERATIONS = [
    pytest.param(operation, id=f"{method} {path}")
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "name")]
STATIC = files("audit.web") / "static"
VENDORED = STATIC / "swagger-ui"


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in part:
        found = DOCUMENT
        for name in part["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        part = found
    return part


def objects(part: Any = DOCUMENT, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the document with its place, except for those inside examples."""
    if isinstance(part, list):
        for position, inner in enumerate(part):
            yield from objects(inner, f"{where}/{position}")
    elif isinstance(part, dict):
        yield where, part
        for name, inner in part.items():
            if name != "examples":
                yield from objects(inner, f"{where}/{name}")


def media_types(part: Any = DOCUMENT) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every body that the document describes, with its place."""
    for where, inner in objects(part):
        for media_type, content in inner.get("content", {}).items():
            if "/" in media_type:  # otherwise it describes a member with this name
                yield f"{where} {media_type}", content


EXAMPLES = [
    pytest.param(content["schema"], example["value"], id=f"{where} {name}")
    for where, content in media_types()
    for name, example in content.get("examples", {}).items()
] + [
    pytest.param(schema, example, id=where)
    for where, schema in objects()
    if isinstance(schema.get("examples"), list)
    for example in schema["examples"]
]


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator(
        # The target of `#/components/…`.
        {**schema, "components": DOCUMENT["components"]},
        format_checker=Draft202012Validator.FORMAT_CHECKER,
    )


def parameters(path: str, place: str) -> dict[str, dict[str, Any]]:
    return {
        parameter["name"]: parameter
        for parameter in DOCUMENT["paths"][path]["get"]["parameters"]
        if parameter["in"] == place
    }


# --- the document ---------------------------------------------------------------------------------


def test_document_is_valid_openapi_3_1_of_this_version() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()

    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["info"]["version"] == version("task-audit")


def test_document_describes_the_routes_of_the_app() -> None:
    app = create_app(Settings(), "postgresql://unused")
    served = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None
    }
    described = {
        (method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods
    }
    # HEAD comes with GET, and the pages are no part of the API.
    undocumented = {("HEAD", path) for method, path in served if method == "GET"}
    undocumented |= {("GET", "/docs/{asset}"), ("GET", "/docs/"), ("GET", "/")}
    undocumented |= {("GET", "/tasks"), ("GET", "/tasks/{task_id}")}
    undocumented |= {("GET", "/assets/{digest}/{file}")}

    assert described == served - undocumented
    assert undocumented <= served


def test_every_body_has_an_example() -> None:
    bodies = dict(media_types())

    assert [where for where, content in bodies.items() if not content.get("examples")] == []
    assert len(bodies) > len(KINDS)


@pytest.mark.parametrize(("schema", "example"), EXAMPLES)
def test_example_is_valid(schema: dict[str, Any], example: Any) -> None:
    validator(schema).validate(example)


def test_examples_of_bodies_are_valid_for_the_service() -> None:
    sent = DOCUMENT["paths"][f"{API}/tasks"]["post"]["requestBody"]["content"]
    changes = DOCUMENT["paths"][API + "/tasks/{task_id}"]["patch"]["requestBody"]["content"]

    for example in sent["application/json"]["examples"].values():
        assert parse_tasks([json.dumps(example["value"]).encode()])
    for example in sent["application/x-ndjson"]["examples"].values():
        (batch,) = parse_lines([example["value"].encode()])
        assert len(batch.labels) == len(example["value"].splitlines())
    for example in changes["application/json"]["examples"].values():
        assert parse_change([json.dumps(example["value"]).encode()])


def test_examples_satisfy_the_models_and_all_are_used() -> None:
    examples = json.loads((files("audit.web") / "examples.json").read_text("utf-8"))
    contents = [
        content
        for route in ROUTES
        for content in (
            *route.body,
            *(each for answer in route.responses.values() for each in answer.contents),
        )
    ]

    for content in contents:
        for name in content.examples:
            value = examples["bodies"][name]["value"]
            for one in value if isinstance(value, list) else [value]:
                if isinstance(content.schema, type):
                    content.schema.model_validate(one)
    assert {name for content in contents for name in content.examples} == set(examples["bodies"])
    assert set(examples["problems"]) == {kind.name for kind in KINDS}


def test_json_and_ndjson_show_the_same_tasks() -> None:
    content = DOCUMENT["paths"][f"{API}/tasks"]["post"]["requestBody"]["content"]
    as_json = {name: e["value"] for name, e in content["application/json"]["examples"].items()}
    as_lines = {
        name: [json.loads(line) for line in e["value"].splitlines()]
        for name, e in content["application/x-ndjson"]["examples"].items()
    }

    assert as_lines == {"one": [as_json["one"]], "several": as_json["several"]}


@pytest.mark.parametrize(("path", "model"), LISTS)
def test_query_parameters_are_the_fields_of_the_model(path: str, model: type[TaskQuery]) -> None:
    described = parameters(path, "query")

    assert set(described) == set(model.model_fields)
    for name, parameter in described.items():
        assert parameter["description"].startswith(model.model_fields[name].description or "?")
        assert not parameter.get("required", False)


@pytest.mark.parametrize(("path", "model"), LISTS)
def test_parameters_that_may_be_repeated_are_arrays(path: str, model: type[TaskQuery]) -> None:
    for name, parameter in parameters(path, "query").items():
        value = {"status": "failed"}.get(name, "x")
        if parameter["schema"]["type"] == "array":
            assert (parameter["style"], parameter["explode"]) == ("form", True)
            assert parse_query(model, {name: [value, value]})
        else:
            with pytest.raises(Invalid, match="may be given once"):
                parse_query(model, {name: [value, value]})


@pytest.mark.parametrize(("path", "model"), LISTS)
def test_bounds_of_parameters_are_those_of_the_validation(
    path: str, model: type[TaskQuery]
) -> None:
    bounds = {
        name: (parameter["schema"]["minimum"], parameter["schema"]["maximum"])
        for name, parameter in parameters(path, "query").items()
        if parameter["schema"]["type"] == "integer"
    }

    assert bounds == {
        "days": (1, 90 if model is FailuresQuery else 365),
        "limit": (1, 1000),
        "offset": (0, 2**63 - 1),
    }
    for name, (lowest, highest) in bounds.items():
        for taken in (lowest, highest):
            assert getattr(parse_query(model, {name: [str(taken)]}), name) == taken
        for refused in (lowest - 1, highest + 1):
            with pytest.raises(Invalid):
                parse_query(model, {name: [str(refused)]})


def test_document_has_no_defaults() -> None:
    assert [where for where, schema in objects() if "default" in schema] == []


@pytest.mark.parametrize(("path", "model"), LISTS)
def test_descriptions_name_the_defaults(path: str, model: type[TaskQuery]) -> None:
    nothing = parse_query(model, {})
    described = {name: p["description"] for name, p in parameters(path, "query").items()}

    assert f"{nothing.limit} by default" in described["limit"]
    assert "0 by default" in described["offset"]
    assert (f"{nothing.days} by default" in described["days"]) == (model is FailuresQuery)


def test_requests_are_closed_and_responses_are_open() -> None:
    closed = {where for where, schema in objects() if schema.get("additionalProperties") is False}

    assert closed == {
        f"/components/schemas/{name}" for name in ("NewTask", "TaskChange", "NewSession")
    }


def test_open_operations_need_no_key() -> None:
    keyless = {
        path
        for path, methods in DOCUMENT["paths"].items()
        for operation in methods.values()
        if operation["security"] == []
    }

    assert keyless == {"/healthz", "/readyz", "/openapi.json", "/docs", "/session"}


@pytest.mark.parametrize(("path", "model"), LISTS)
def test_examples_of_parameters_are_valid_for_the_service(
    path: str, model: type[TaskQuery]
) -> None:
    shown = {
        name: parameter["schema"]["examples"]
        for name, parameter in parameters(path, "query").items()
        if "examples" in parameter["schema"]
    }

    assert set(shown) == {"since", "until", "outcome"}
    for name, values in shown.items():
        for value in values:
            assert getattr(parse_query(model, {name: [value]}), name) is not None


@pytest.mark.parametrize(("path", "model"), LISTS)
def test_lists_accept_an_etag_and_return_one(path: str, model: type[TaskQuery]) -> None:
    answers = DOCUMENT["paths"][path]["get"]["responses"]

    assert set(parameters(path, "header")) == {"If-None-Match", "Audit-Position-At-Least"}
    for status in ("200", "304"):
        assert {"ETag", "Cache-Control", "Vary"} < set(answers[status]["headers"])
    assert "content" not in answers["304"]


async def test_a_path_and_its_parameters_name_at_most_a_hundred_services(
    client: Client,
) -> None:
    path = API + "/by-service/{service_name}"
    most = parameters(path, "query")["service"]["schema"]["maxItems"]

    for number, expected in ((most, 200), (most + 1, 422)):
        query = "&".join(["service=x"] * number)
        response = await client.get(f"{API}/by-service/x?{query}")
        assert response.status == expected


def test_path_parameters_are_those_of_the_path() -> None:
    by_service = parameters(API + "/by-service/{service_name}", "path")
    by_id = parameters(API + "/tasks/{task_id}", "path")

    assert set(by_service) == {"service_name"}
    assert by_service["service_name"]["schema"]["maxLength"] == 255
    assert set(by_id) == set(TaskPath.model_fields)
    assert by_id["task_id"]["schema"]["format"] == "uuid"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_response_has_a_request_id_and_every_refusal_is_a_problem(
    operation: dict[str, Any],
) -> None:
    for status, answer in operation["responses"].items():
        response = resolved(answer)
        assert "X-Request-ID" in response["headers"]
        assert ("Retry-After" in response["headers"]) == (status in {"429", "503"})
        if int(status) >= 400:
            assert set(response["content"]) == {"application/problem+json"}


@pytest.mark.parametrize(
    ("path", "method", "expected"),
    [
        (f"{API}/failures", "get", {400, 401, 403, 409, 414, 422, 429, 431, 500, 503, 504}),
        (
            API + "/by-service/{service_name}",
            "get",
            {400, 401, 403, 409, 414, 422, 429, 431, 500, 503, 504},
        ),
        (f"{API}/query", "get", {400, 401, 403, 409, 414, 422, 429, 431, 500, 503, 504}),
        (
            API + "/tasks/{task_id}",
            "get",
            {400, 401, 403, 404, 409, 412, 414, 422, 429, 431, 500, 503, 504},
        ),
        (
            API + "/tasks/{task_id}/history",
            "get",
            {400, 401, 403, 404, 409, 412, 414, 422, 429, 431, 500, 503, 504},
        ),
        (
            f"{API}/tasks",
            "post",
            {400, 401, 403, 408, 409, 413, 414, 415, 422, 429, 431, 500, 503, 504},
        ),
        (
            API + "/tasks/{task_id}",
            "patch",
            {400, 401, 403, 404, 408, 409, 412, 413, 414, 415, 422, 429, 431, 500, 503, 504},
        ),
        ("/healthz", "get", set()),
        ("/readyz", "get", {500, 503, 504}),
        ("/openapi.json", "get", set()),
        ("/docs", "get", set()),
    ],
)
def test_every_route_lists_its_problems(path: str, method: str, expected: set[int]) -> None:
    statuses = {int(status) for status in DOCUMENT["paths"][path][method]["responses"]}

    assert {status for status in statuses if status >= 400} == expected


@pytest.mark.parametrize("kind", KINDS)
async def test_example_of_a_problem_is_what_the_service_sends(
    aiohttp_client: AiohttpClient, kind: type[errors.Problem]
) -> None:
    content, example = next(
        (content, content["examples"][name]["value"])
        for _, content in media_types(DOCUMENT["components"]["responses"])
        for name in content["examples"]
        if name == kind.name.replace("-", "_")
    )

    async def fail(request: web.Request) -> web.StreamResponse:
        if kind is errors.TooMany:
            problem: errors.Problem = errors.TooMany.found(
                example["matching"], example["at_most"], example["fits"]
            )
        else:
            members = {
                name: example[name]
                for name in ("position", "log_size", "primary_url")
                if name in example
            }
            problem = kind(example["detail"], errors=example.get("errors"), members=members)
        return problem_response(request, problem, request_id_of(request))

    app = web.Application()
    app.router.add_get("/", fail)
    client = await aiohttp_client(app)
    response = await client.get("/", headers={"X-Request-ID": example["instance"]})

    assert response.content_type == "application/problem+json"
    assert response.status == kind.status
    assert await response.json(content_type=None) == example
    validator(content["schema"]).validate(example)


def test_example_of_an_invalid_query_is_what_the_validation_says() -> None:
    (content,) = DOCUMENT["components"]["responses"]["Invalid"]["content"].values()
    (example,) = (example["value"] for example in content["examples"].values())

    with pytest.raises(Invalid) as refused:
        parse_query(AuditQuery, {"limit": ["0"], "status": ["lost"]})

    assert refused.value.errors == example["errors"]
    assert refused.value.detail == example["detail"]


def test_each_call_returns_a_new_document() -> None:
    openapi.document()["paths"].clear()

    assert openapi.document()["paths"]


# --- real answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("example", ["one", "several"])
@pytest.mark.parametrize("media_type", ["application/json", "application/x-ndjson"])
async def test_examples_can_be_recorded(client: Client, media_type: str, example: str) -> None:
    path = f"{API}/tasks"
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"][media_type]
    value = content["examples"][example]["value"]
    body = value if isinstance(value, str) else json.dumps(value)

    for _ in range(2):
        response = await client.post(path, data=body, headers={"Content-Type": media_type})
        assert response.status in {200, 201}
        await assert_described(response, path)


async def test_responses_are_as_described(client: Client) -> None:
    tasks, one = f"{API}/tasks", API + "/tasks/{task_id}"
    post, patch = DOCUMENT["paths"][tasks]["post"], DOCUMENT["paths"][one]["patch"]
    several = post["requestBody"]["content"]["application/json"]["examples"]["several"]["value"]
    change = patch["requestBody"]["content"]["application/json"]["examples"]["failed"]["value"]
    known = tasks + "/" + several[0]["task_id"]
    other = [{**several[0], "request_text": "Something else"}]
    page = {"Sec-Fetch-Site": "same-origin"}
    nobody = f"{tasks}/00000000-0000-0000-0000-000000000000"

    for expected, path, method, url, sent in [
        (201, tasks, "POST", tasks, {"json": several}),
        (200, tasks, "POST", tasks, {"json": several}),
        (409, tasks, "POST", tasks, {"json": other}),
        (422, tasks, "POST", tasks, {"json": []}),
        (400, tasks, "POST", tasks, {"data": "{", "headers": {"Content-Type": "application/json"}}),
        (415, tasks, "POST", tasks, {"data": "{}", "headers": {"Content-Type": "text/plain"}}),
        (200, one, "GET", known, {}),
        (200, one, "PATCH", known, {"json": change}),
        (200, one, "PATCH", known, {"json": change}),
        (409, one, "PATCH", known, {"json": {"status": "pending"}}),
        (412, one, "PATCH", known, {"json": change, "headers": {"If-Match": '"stale"'}}),
        (304, one, "GET", known, {"headers": {"If-None-Match": "*"}}),
        (200, one + "/history", "GET", known + "/history", {}),
        (200, one + "/history", "GET", known + "/history?limit=1", {}),
        (304, one + "/history", "GET", known + "/history", {"headers": {"If-None-Match": "*"}}),
        (404, one + "/history", "GET", nobody + "/history", {}),
        (422, one + "/history", "GET", known + "/history?limit=0", {}),
        (404, one, "PATCH", nobody, {"json": change}),
        (404, one, "GET", nobody, {}),
        (422, one, "GET", f"{tasks}/7", {}),
        (200, f"{API}/query", "GET", f"{API}/query?limit=1", {}),
        (200, f"{API}/failures", "GET", f"{API}/failures?since=2026-01-01T00:00:00Z", {}),
        (200, API + "/by-service/{service_name}", "GET", f"{API}/by-service/payments", {}),
        (304, f"{API}/query", "GET", f"{API}/query", {"headers": {"If-None-Match": "*"}}),
        (422, f"{API}/query", "GET", f"{API}/query?limit=0&colour=red", {}),
        (400, f"{API}/query", "GET", f"{API}/query?outcome=[", {}),
        (200, f"{API}/whoami", "GET", f"{API}/whoami", {}),
        (422, f"{API}/whoami", "GET", f"{API}/whoami?x=1", {}),
        (401, "/session", "POST", "/session", {"json": {"key": "x"}, "headers": page}),
        (422, "/session", "POST", "/session", {"json": {"key": ""}, "headers": page}),
        (403, "/session", "POST", "/session", {"json": {"key": "x"}}),
        (204, "/session", "DELETE", "/session", {"headers": page}),
        (403, "/session", "DELETE", "/session", {}),
        (200, "/healthz", "GET", "/healthz", {}),
        (200, "/readyz", "GET", "/readyz", {}),
        (200, "/metrics", "GET", "/metrics", {}),
        (200, "/openapi.json", "GET", "/openapi.json", {}),
        (200, "/docs", "GET", "/docs", {}),
    ]:
        response = await client.request(method, url, **sent)
        assert (response.status, url) == (expected, url)
        await assert_described(response, path)


async def assert_described(response: ClientResponse, path: str) -> None:
    operation = DOCUMENT["paths"][path][response.method.lower()]
    described = resolved(operation["responses"][str(response.status)])
    missing = {name for name in described["headers"] if name not in response.headers}
    assert missing <= {"Audit-Staleness-Seconds"}  # which only standbys send
    if "content" not in described:
        assert b"" == await response.read()
        return
    schema = described["content"][response.content_type]["schema"]
    text = await response.text()
    is_text = response.content_type.startswith("text/")
    validator(schema).validate(text if is_text else json.loads(text))
