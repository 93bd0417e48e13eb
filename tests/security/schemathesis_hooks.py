"""What schemathesis cannot learn from the document: NDJSON, and rules that OpenAPI cannot express.

OpenAPI 3.1 has no words for parameters that exclude each other, for a cursor that has to come from
a page, for a position that has to come from a write, for JSON or a list of columns inside a
parameter, for bounds of a time, for names of time zones, for a response that does not end, or for
the lines of NDJSON. Data that is meant to be valid is made to follow these rules here; data that is
meant to be invalid is sent as it is.
"""

from __future__ import annotations

import json
import re
from typing import Any

import schemathesis

NDJSON = "application/x-ndjson"
OFFSET = re.compile(r"[+-]\d\d:\d\d$|[zZ]$")
#: How long a request for changes may wait.
SECONDS = {str(seconds) for seconds in range(26)}
#: The first of those given stays.
EXCLUSIVE = (
    *(("days", "since"), ("days", "until"), ("days", "last")),
    *(("since", "last"), ("until", "last")),
    ("offset", "cursor"),
)


@schemathesis.serializer(NDJSON)
def lines(_context: object, value: object) -> bytes:
    """Text is sent as it is."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


@schemathesis.hook
def before_call(
    _context: schemathesis.HookContext, case: schemathesis.Case[Any], _kwargs: dict[str, Any]
) -> None:
    """Let data that is meant to be valid follow the rules above."""
    end_at_once(case)
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    follow_in_query(case.query)
    case.headers.pop("Audit-Position-At-Least", None)
    if "/statistics/" in case.path:
        follow_in_statistics(case.path, case.query)
    if case.path.endswith("/export"):
        follow_in_export(case.query)
    if case.path.endswith(("/changes", "/feed")):
        for name in ("position", "wait"):
            case.query.pop(name, None)
        case.headers.pop("Last-Event-ID", None)
        end_at_once(case)
    if case.media_type == NDJSON and isinstance(case.body, str):
        case.body = json.dumps({"request_text": case.body[:65_536] or "x"})
    for task in case.body if isinstance(case.body, list) else [case.body]:
        if isinstance(task, dict):
            follow_in_task(task)


def end_at_once(case: schemathesis.Case[Any]) -> None:
    """Do not wait for changes, and ask for a stream that ends at once: its position is gone."""
    if case.path.endswith("/changes") and str(case.query.get("wait", 0)) in SECONDS:
        case.query["wait"] = 0
    if case.path.endswith("/feed"):
        case.query.setdefault("position", str(2**62))


def follow_in_query(query: dict[str, Any]) -> None:
    query.pop("cursor", None)
    for kept, dropped in EXCLUSIVE:
        if kept in query:
            query.pop(dropped, None)
    for name in {"since", "until"} & set(query):
        query[name] = in_utc(str(query[name]))
    if "since" in query and "until" in query:
        query["since"], query["until"] = sorted((query["since"], query["until"]))
    if "last" in query:
        query["last"] = "7d"
    if "outcome" in query:
        query["outcome"] = json.dumps({"action_type": str(query["outcome"])})


def follow_in_statistics(path: str, query: dict[str, Any]) -> None:
    """Ask for few bars, of a time zone that exists."""
    bars = {"interval", "buckets", "tz"} & set(query)
    if path.endswith("/durations") and query.get("by") != "interval":
        for name in bars:
            del query[name]
        return
    for name in {"since", "until"} & set(query):
        query[name] = f"20{query[name][2:]}"
    if "since" in query and "until" in query:
        query["since"], query["until"] = sorted((query["since"], query["until"]))
    if "tz" in query:
        query["tz"] = "Europe/Berlin"
    if "buckets" in query:
        query["buckets"] = 400
        query.pop("interval", None)
    elif query.get("interval", "auto") != "auto":
        query["interval"] = "1y"


def follow_in_export(query: dict[str, Any]) -> None:
    """Name columns that exist, of CSV only, and no task to continue after."""
    query.pop("after", None)
    if query.get("format") != "csv":
        query.pop("columns", None)
        query.pop("raw", None)
    if "columns" in query:
        query["columns"] = "status,task_id"
    if "raw" in query:
        query["raw"] = "true"


def in_utc(time: str) -> str:
    """Drop the offset, which could lead out of the years 1 to 9999."""
    return OFFSET.sub("", time) + "Z"


def follow_in_task(task: dict[str, Any]) -> None:
    """Move times into those that can be recorded."""
    for name in ("created_at", "approved_at", "completed_at"):
        if isinstance(task.get(name), str) and task[name][:4] in {"0001", "9999"}:
            task[name] = in_utc(task[name])
    created_at = task.get("created_at")
    if isinstance(created_at, str) and not "2000" <= created_at[:4] <= "2025":
        task["created_at"] = f"2024{created_at[4:]}"
