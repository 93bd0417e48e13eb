"""The commands of docs/history.md work and print what the page says."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import textwrap
from pathlib import Path

from audit import AuditService
from tests.conftest import execute, task
from tests.processes import AUDIT, serving

PAGE = (Path(__file__).parents[2] / "docs/history.md").read_text()
TASK = "7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


async def test_commands_of_the_page_work(dsn: str) -> None:
    async with AuditService.open(dsn) as service:
        await service.record([task(task_id=TASK, status="pending")], actor="ada")
    asks, checks, imports = blocks("sh")
    changes, reads = blocks("sql")
    (versions,) = blocks("python")
    (shown,) = blocks("json")

    execute(dsn, changes)
    read = execute(dsn, reads)
    with serving("--workers", "1", AUDIT_DSN=dsn) as (_, url, _):

        def run(text: str) -> str:
            return subprocess.check_output(
                ["bash", "-ec", text.replace("http://127.0.0.1:8080", url)],
                text=True,
                env={
                    **os.environ,
                    "AUDIT_DSN": dsn,
                    "PATH": f"{AUDIT.parent}:{os.environ['PATH']}",
                },
            )

        answered, *table = run(asks).replace("null}✖", "null}\n✖").splitlines()
        digest = run(checks).split()[0]
        said = run(imports)

    events = json.loads(answered)["events"]
    assert [("recorded", "ada"), ("changed", "nightly-import")] == [
        (event["kind"], event["actor"]) for event in events
    ]
    assert events[1]["request_id"] == "run-7"
    assert events[0].keys() == json.loads(shown)["events"][0].keys()
    assert any("nightly-import" in line for line in table)
    assert digest == events[-1]["content"]
    assert said == "imported 0 of 1 tasks; the others already had events\n"
    assert [None, {"status": "pending"}] == [
        row[-1] and {"status": row[-1]["status"]} for row in read
    ]
    assert ["pending", "failed"] == await printed_statuses(dsn, versions)


async def printed_statuses(dsn: str, code: str) -> list[str]:
    """Run the example in a coroutine; return the state in each line that it prints."""
    program = (
        "import asyncio, sys\nfrom audit import AuditService\n\nasync def main():\n"
        "    async with AuditService.open(sys.argv[1]) as service:\n"
        f"{textwrap.indent(code, ' ' * 8)}\nasyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        AUDIT.with_name("python"), "-c", program, dsn, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    lines = [line.split() for line in out.decode().splitlines()]
    assert ["True", "True"] == [line[-1] for line in lines]
    return [line[-2] for line in lines]
