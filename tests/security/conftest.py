"""A database with the roles of docs/security.md."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commandline import audit
from tests.conftest import as_role, execute, of_database
from tests.security.roles import DONE_ID, OPEN_ID, OWNER, ROLES, SERVING, SUPERUSER


@pytest.fixture(scope="package")
def history(postgres: str) -> Iterator[dict[str, str]]:
    """Set up a database as docs/security.md says; return its DSN for each role.

    It has the executing task OPEN_ID and the completed task DONE_ID.
    """
    page = (Path(__file__).parents[2] / "docs/security.md").read_text()
    page = page[page.index("## Database roles") :]
    [set_up] = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    [commands] = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    execute(postgres, *filter(None, map(str.strip, set_up.split(";"))))
    dsn = of_database(postgres, "audit")
    dsns = {role: as_role(dsn, role) for role in (*ROLES, SUPERUSER)}
    first, _, _ = commands.replace("\\\n", "").partition("\n")
    _, *migration = shlex.split(first)
    migration[migration.index("--dsn") + 1] = dsns[OWNER]
    assert (0, "") == audit(*migration)[::2]
    execute(
        dsns[SERVING],
        "SELECT make_task_partition(now(), 'month')",
        f"INSERT INTO tasks (task_id, request_text, status, services_touched)"
        f" VALUES ('{OPEN_ID}', 'Open', 'executing', '{{a}}'),"
        f" ('{DONE_ID}', 'Done', 'completed', '{{a}}')",
    )
    yield dsns
    execute(
        postgres,
        "DROP DATABASE audit WITH (FORCE)",
        *(f"DROP ROLE {role}" for role in reversed(ROLES)),
    )
