"""How much memory a command needs that reads many tasks, and what it loads for that."""

from __future__ import annotations

import subprocess
import sys

from tests.commandline import ENVIRONMENT
from tests.conftest import execute
from tests.processes import serving

TASKS = 20_000
#: As much text as would not fit below the limit, if all tasks were in memory at once.
TEXT_BYTES = 1_000
MOST_MIB = 80
#: Runs the command, and then writes what its memory was at most, and the modules that are loaded.
COMMAND = """
import atexit, sys
sys.argv[0] = "audit"
def report():
    (peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("REPORT", peak, *sys.modules, file=sys.stderr)
atexit.register(report)
from audit.commands.main import main
main()
"""


def record(dsn: str) -> None:
    execute(
        dsn,
        "INSERT INTO tasks (task_id, request_text, status, created_at)"
        f" SELECT gen_random_uuid(), repeat('x', {TEXT_BYTES}), 'failed',"
        " now() - number * interval '1 second'"
        f" FROM generate_series(1, {TASKS}) AS number",
    )


def read_all(**variables: str) -> tuple[int, float, set[str]]:
    """Return how many tasks the command printed, its memory in MiB, and the loaded modules."""
    arguments = ["query", "--all", "-o", "ndjson"]
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, **variables},
    ) as process:
        assert process.stdout
        assert process.stderr
        printed = sum(1 for _ in process.stdout)
        _, _, report = process.stderr.read().rpartition("REPORT ")
    assert process.returncode == 0
    peak, *modules = report.split()
    return printed, int(peak) / 1024, set(modules)


def test_reading_a_database_needs_little_memory_and_no_web_server(dsn: str) -> None:
    record(dsn)

    printed, mib, modules = read_all(AUDIT_DSN=dsn)

    assert printed == TASKS
    assert mib < MOST_MIB
    assert not modules & {"aiohttp", "yoyo", "rich", "audit.web.app"}


def test_reading_a_service_needs_little_memory_and_no_database(dsn: str) -> None:
    record(dsn)
    with serving("--workers", "1", AUDIT_DSN=dsn) as (_, url, _):
        printed, mib, modules = read_all(AUDIT_URL=url)

    assert printed == TASKS
    assert mib < MOST_MIB
    assert not modules & {"asyncpg", "psycopg", "yoyo", "rich", "audit.web.app"}
