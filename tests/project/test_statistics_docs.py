"""The commands and the program in `docs/statistics.md` work."""

from __future__ import annotations

import asyncio
import json
import re
import textwrap
from pathlib import Path

from audit.history.service import AuditService
from tests.conftest import Client, ago, task
from tests.lists import record

TEXT = (Path(__file__).parents[2] / "docs/statistics.md").read_text()


async def test_curl_commands_are_answered(client: Client) -> None:
    await record(client, task(created_at=ago(hours=2), completed_at=ago(hours=1), status="failed"))
    commands = re.findall(r"^curl .*", TEXT, re.MULTILINE)

    assert 3 == len(commands)
    for command in commands:
        here = command.replace("http://127.0.0.1:8080", str(client.make_url("/")).rstrip("/"))
        running = await asyncio.create_subprocess_shell(
            here.replace("curl", "curl -sS", 1), stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await running.communicate()
        body = json.loads(printed)
        assert 1 == body.get("total", body.get("tasks")), command


async def test_the_program_runs(service: AuditService) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    await service.record(
        [task(created_at=ago(hours=2), completed_at=ago(hours=1), status="failed")]
    )
    scope: dict[str, object] = {}
    exec(f"async def run(service):\n{textwrap.indent(program, '    ')}    return locals()", scope)  # noqa: S102

    made = await scope["run"](service)  # type: ignore[operator]

    assert 1 == made["histogram"].total == made["facets"].total == made["durations"].tasks
