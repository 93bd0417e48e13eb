"""The direction of imports: each module knows only those that stand below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import audit

PACKAGE = Path(audit.__file__).parent
#: From the top down. Modules on one line do not know each other.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"server", "ingest", "remote"},
    {"workers"},
    {"app", "connections"},
    {"guard"},
    {"handlers.reading", "handlers.writing", "handlers.health", "handlers.docs"},
    {"cors", "problems", "openapi", "watching"},
    {"handlers"},
    {"answers", "provider"},
    {"service", "keys"},
    {"folding", "paging", "upkeep"},
    {"migrate", "embedded", "demo"},
    {"admission", "database"},
    {"connecting"},
    {"logs"},
    {"models", "cursor", "metrics", "tallies", "rates", "access", "tracing"},
    {"coding", "jsontext"},
    {"settings"},
    {"responses"},
    {"buffers"},
    {"addresses", "dsn", "errors", "limits", "states", "statements"},
]
#: Within a line: writing reads a task's id and parameters as reading does.
SIDEWAYS = {("handlers.writing", "handlers.reading")}
THIRD_PARTIES = {
    "aiohttp": {
        "app",
        "connections",
        "cors",
        "guard",
        "handlers",
        "remote",
        "problems",
        "provider",
        "responses",
        "watching",
        "workers",
    },
    "jwt": {"provider"},
    "asyncpg": {"connecting", "database", "service", "paging", "tallies", "keys"},
    "yoyo": {"migrate"},
    "opentelemetry": {"tracing"},
    "prometheus_client": {"metrics"},
    "psycopg": {"dsn", "migrate"},
    "typer": {"cli"},
    "uvloop": {"workers"},
}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "audit"


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def test_every_module_has_its_place() -> None:
    assert set(MODULES) - {"audit"} == set().union(*LAYERS)


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"audit"}))
def test_module_imports_only_downwards(name: str) -> None:
    place = next(index for index, layer in enumerate(LAYERS) if name in layer)
    below = set().union(*LAYERS[place + 1 :])

    for imported in imports_of(MODULES[name]):
        module = imported.removeprefix("audit.")
        if imported.startswith("audit.") and module in MODULES and module != name:
            assert module in below or (name, module) in SIDEWAYS, f"{name} imports {module}"


@pytest.mark.parametrize("third_party", sorted(THIRD_PARTIES))
def test_third_party_is_named_only_where_it_belongs(third_party: str) -> None:
    users = {
        name.partition(".")[0]
        for name, path in MODULES.items()
        if any(imported.partition(".")[0] == third_party for imported in imports_of(path))
    }

    assert users <= THIRD_PARTIES[third_party]


def test_the_command_line_answers_without_loading_what_it_does_not_need() -> None:
    code = "import sys, audit.cli; print(*sorted({'yoyo', 'aiohttp'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


def test_no_sql_stands_in_python() -> None:
    verbs = ("SELECT ", "INSERT ", "UPDATE ", "DELETE ", "CREATE ", "ALTER ")
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not node.value.lstrip().startswith(verbs), f"{name}: {node.value[:40]}"
