"""The dashboard and the alert rules, held to the metrics that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import parser

from audit.settings import Settings
from audit.telemetry.metrics import LogSize, Replication
from audit.web.app import create_app
from audit.web.state import METRICS

DOCS = Path(__file__).parents[2] / "docs"
DASHBOARD = json.loads((DOCS / "operations/dashboard.json").read_text())
(GROUP,) = yaml.safe_load((DOCS / "operations/alerts.yml").read_text())["groups"]
RULES: list[dict[str, Any]] = GROUP["rules"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
#: What Prometheus adds to every series that it scrapes.
ADDED = {"instance", "job"}


REPLICATION = Replication(0, 0, 0, 0, ["standby1"], [0], [0.0])


def existing() -> dict[str, dict[str, set[str]]]:
    """All series that the service tells: by name, the values of each label."""
    dsn = "postgresql://unused"
    given: dict[str, Any] = {"dsn": dsn, "read_dsn": "postgresql://standby"}
    metrics = create_app(Settings(**given), dsn)[METRICS]
    for status in (200, 429, 500):
        metrics.request("/api/v1/audit/query", "GET", status, 0.1)
    text = metrics.render("", 0, LogSize(0, 0, 0, 0, 0.0), 0.0, REPLICATION)[0].decode()
    found: dict[str, dict[str, set[str]]] = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found


SERIES = existing()


def expressions() -> Iterator[tuple[str, str]]:
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            # Grafana fills these in.
            yield (
                f"{panel['title']} {target['refId']}",
                target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*"),
            )


EXPRESSIONS = [pytest.param(text, id=name) for name, text in expressions()]


def parts(expression: promql_parser.Expr) -> Iterator[Any]:
    """An expression and all within it, that of a range too."""
    found: list[Any] = []

    def visit(part: Any) -> bool:
        found.append(part)
        return True

    promql_parser.walk(expression, visit)
    return iter(found)


def selectors(expression: promql_parser.Expr) -> list[Any]:
    return [
        getattr(part, "vector_selector", part)
        for part in parts(expression)
        if isinstance(part, (promql_parser.VectorSelector, promql_parser.MatrixSelector))
    ]


def matches(matcher: Any, value: str) -> bool:
    operator = str(matcher.op).rpartition(".")[2]
    is_same = bool(value == matcher.value)
    is_like = re.fullmatch(matcher.value, value) is not None
    held = {
        "Equal": is_same,
        "NotEqual": not is_same,
        "Re": is_like,
        "NotRe": not is_like,
    }
    return held[operator]


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_expression_asks_for_series_that_exist(text: str) -> None:
    asked = selectors(promql_parser.parse(text))

    assert asked
    for selector in asked:
        labels = SERIES[selector.name]
        for matcher in selector.matchers.matchers:
            if matcher.name not in ADDED:
                assert any(matches(matcher, value) for value in labels[matcher.name])


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_expression_groups_by_labels_that_exist(text: str) -> None:
    for part in parts(promql_parser.parse(text)):
        if isinstance(part, promql_parser.AggregateExpr) and part.modifier:
            for selector in selectors(part.expr):
                assert set(part.modifier.labels) <= {*SERIES[selector.name], *ADDED}


def test_every_metric_is_on_the_dashboard_and_in_the_manual() -> None:
    shown = {
        re.sub("_(bucket|sum|count)$", "", selector.name)
        for panel in PANELS
        for target in panel["targets"]
        for selector in selectors(
            promql_parser.parse(target["expr"].replace("$__rate_interval", "5m"))
        )
    }
    told = set(
        re.findall(
            r"^\| `(task_audit_\w+)` \|", (DOCS / "observability.md").read_text(), re.MULTILINE
        )
    )
    existing = {re.sub("_(bucket|sum|count)$", "", name) for name in SERIES}

    assert existing == shown
    assert existing == told


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alert_says_what_it_means_and_what_to_do(rule: dict[str, Any]) -> None:
    assert {"alert", "expr", "for", "labels", "annotations"} == set(rule)
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert {"summary", "description", "action"} == set(rule["annotations"])
    options = {name.replace("_", "-") for name in Settings.model_fields}
    text = " ".join(rule["annotations"].values())
    named = set(re.findall(r"(?<![\w-])--([a-z-]+)", text)) - {"check"}
    assert named <= options
    assert set(re.findall(r"task_audit_\w+", text)) <= set(SERIES)


def test_the_guide_for_operators_has_every_alert() -> None:
    guide = (DOCS / "operations.md").read_text()
    assert [] == [rule["alert"] for rule in RULES if f"`{rule['alert']}`" not in guide]


def test_names_of_alerts_and_places_of_panels_are_unique() -> None:
    names = [rule["alert"] for rule in RULES]
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]

    assert len(names) == len(set(names))
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
