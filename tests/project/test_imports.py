"""The direction of imports: each package imports only those below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import audit

PACKAGE = Path(audit.__file__).parent
#: The packages, each of which imports only those below it. Modules that stand directly in `audit`
#: are the ground: every package imports them. Packages on one line do not import each other.
LAYERS = [
    {"commands"},
    {"process"},
    {"integrations"},
    {"recorder"},
    {"web", "client"},
    {"history", "access"},
    {"postgres"},
    {"telemetry"},
]
GROUND = {
    "settings",
    "errors",
    "files",
    "deadlines",
    "once",
    "addresses",
    "dsn",
    "limits",
    "profiles",
    "resources",
}
#: What only the service needs. A program that records tasks through a running one does without.
OF_THE_SERVICE = {
    "aiohttp",
    "asyncpg",
    "jwt",
    "prometheus_client",
    "psycopg",
    "uvloop",
    "yoyo",
}
#: Where each third-party package is used: in a package, or in one module.
THIRD_PARTIES = {
    "aiohttp": {"web", "process", "access.provider"},
    "aiohttp.web": {"web", "process"},
    "asyncpg": {"postgres", "history", "access.keys"},
    "httpx2": {"client"},
    "jwt": {"access.provider"},
    "opentelemetry": {"telemetry.tracing", "client.wire"},
    "prometheus_client": {"telemetry.metrics"},
    "psycopg": {"dsn", "postgres.migrate"},
    "typer": {"commands"},
    "uvloop": {"process.loop"},
    "yoyo": {"postgres.migrate"},
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


def imported_modules(name: str) -> set[str]:
    """Return the modules of the service that the module `name` imports, also within functions."""
    imported = {each.removeprefix("audit.") for each in imports_of(MODULES[name])}
    own_package = name.rpartition(".")[0]  # which is always imported first
    return (imported & set(MODULES)) - {name, "audit", own_package}


def layer_of(name: str) -> int:
    package = name.partition(".")[0]
    return next((at for at, layer in enumerate(LAYERS) if package in layer), len(LAYERS))


def test_every_module_has_its_place() -> None:
    outside = {name.partition(".")[0] for name in MODULES} - set().union(*LAYERS)

    assert outside == {"audit", "__main__"} | GROUND


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"audit", "__main__"}))
def test_module_imports_only_its_own_package_and_lower_ones(name: str) -> None:
    for imported in imported_modules(name):
        assert (
            layer_of(imported) > layer_of(name)
            or imported.partition(".")[0] == name.partition(".")[0]
            or {name, imported} <= GROUND
        ), f"{name} imports {imported}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: imported_modules(name) for name in MODULES if name != "audit"}

    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("third_party", sorted(THIRD_PARTIES))
def test_third_party_is_used_only_where_it_belongs(third_party: str) -> None:
    places = THIRD_PARTIES[third_party]
    for name, path in MODULES.items():
        if any(f"{imported}.".startswith(f"{third_party}.") for imported in imports_of(path)):
            assert {name, name.partition(".")[0]} & places, name


@pytest.mark.parametrize("package", ["client", "recorder"])
def test_client_imports_nothing_that_only_the_service_needs(package: str) -> None:
    code = f"import sys, audit.{package}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())

    assert "httpx2" in loaded
    assert not loaded & OF_THE_SERVICE
    others = ("audit.web", "audit.process", "audit.postgres", "audit.access", "audit.telemetry")
    assert not {name for name in loaded if name.startswith(others)}


@pytest.mark.parametrize("arguments", ["--help", "failures --help", "show --help"])
def test_help_loads_nothing_that_it_does_not_need(arguments: str) -> None:
    unneeded = {"yoyo", "aiohttp", "asyncpg", "psycopg", "rich", "httpx2"}
    code = (
        "import atexit, sys; sys.argv[0] = 'audit'\n"
        f"atexit.register(lambda: print(*sorted({unneeded} & set(sys.modules)), file=sys.stderr))\n"
        "from audit.commands.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stderr.split() == []
    assert "Usage: audit" in done.stdout


def test_no_sql_stands_in_python() -> None:
    verbs = ("SELECT ", "INSERT ", "UPDATE ", "DELETE ", "CREATE ", "ALTER ")
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not node.value.lstrip().startswith(verbs), f"{name}: {node.value[:40]}"


def test_no_test_file_imports_another_one() -> None:
    """Helpers that several test files use are in modules of their own."""
    for path in Path(__file__).parents[1].rglob("*.py"):
        for imported in imports_of(path):
            assert not (imported.startswith("tests.") and ".test_" in imported), path
