"""The documentation: what it names exists, and what it tells people to run works."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from audit import errors
from audit.settings import Settings
from tests.processes import AUDIT, serving

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMED = re.compile(r"`((?:audit|sql|migrations|tests|docs)/[\w./-]*)`")
#: They run for long or need more than this machine; other tests run what they run.
ELSEWHERE = ("make ", "export ", "audit serve --migrate")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_links_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)

    assert [] == [name for name in NAMED.findall(text) if not (ROOT / name).exists()]
    assert [] == [link for link in links if not (page.parent / link).exists()]


def test_architecture_names_every_module() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    internal = {"__init__", "__main__"}
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "audit").rglob("*.py")
        if path.stem not in internal
    }

    untold = {"audit/statements.py", "audit/handlers/health.py"}
    assert modules - set(NAMED.findall(text)) <= untold


def test_readme_is_short() -> None:
    assert len(README.splitlines()) < 200


def test_problems_page_names_every_problem_and_setting() -> None:
    text = (ROOT / "docs/problems.md").read_text()
    kinds: list[type[errors.Problem]] = [errors.Problem]
    kinds += [kind for kind in vars(errors).values() if kind in errors.Problem.__subclasses__()]

    assert {(kind.status, kind.name) for kind in kinds} == {
        (int(status), name) for status, name in re.findall(r"\| (\d+) \| `([a-z-]+)`", text)
    }
    assert set(re.findall(r"AUDIT_(\w+)", text)) <= {name.upper() for name in Settings.model_fields}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_commands_of_the_readme_run_and_print_what_it_says(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{AUDIT.parent}:{os.environ['PATH']}"}
    other = tmp_path / "other"
    printed = []
    with serving("--demo", AUDIT_DATA_DIR=str(tmp_path / "data")) as (_, url, lines):
        for block in blocks("sh"):
            block_here = block.replace("http://127.0.0.1:8080", url).replace("curl ", "curl -sS ")
            block_here = block_here.replace("--status", f"--status --data-dir {other}")
            block_here = re.sub(r"(audit keys .*)", rf"\1 --data-dir {other}", block_here)
            for command in re.split(r"\n(?=\S)", block_here.strip()):
                if command.startswith(ELSEWHERE):
                    continue
                done = subprocess.run(
                    ["sh", "-ec", command],
                    capture_output=True, text=True, cwd=tmp_path, env=environment, check=False,
                )  # fmt: skip

                assert done.returncode == 0, f"{command}\n{done.stderr}"
                assert ('"status": 4' in done.stdout) == ("fialed" in command), done.stdout
                printed.append(done.stdout)

    everything = "\n".join(printed)
    run_block, record_block = (block.splitlines() for block in blocks("text"))
    assert [re.sub(r"in /\S*|:\d+", "", line) for line in run_block] == [
        re.sub(r"in /\S*|:\d+", "", line) for line in lines
    ]
    assert set(record_block) <= set(everything.splitlines())
    problem = json.loads(blocks("json")[1])
    assert problem["detail"] in everything
    assert blocks("json")[2].strip() in everything


def test_python_of_the_readme_runs(dsn: str) -> None:
    (code,) = blocks("python")
    code = code.replace("postgresql://audit:secret@localhost/audit", dsn)

    done = subprocess.run(
        [AUDIT.with_name("python"), "-c", code], capture_output=True, text=True, check=True
    )

    assert done.stdout == "0 []\n"
    ast.parse(code)


@pytest.mark.slow
def test_a_new_user_types_one_command(tmp_path: Path) -> None:
    """What git would clone, an empty environment, `make run`, the three printed curl lines."""
    clone = tmp_path / "clone"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    for name in filter(None, names.split("\0")):
        target = clone / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    environment = {
        name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))
    } | {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "AUDIT_PORT": "0"}
    run = subprocess.Popen(
        ["make", "run"], cwd=clone, env=environment, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert run.stdout
    lines: list[str] = []
    for line in run.stdout:
        lines.append(line.strip())
        if line.startswith("Ctrl-C"):
            break
    answers = [
        json.loads(subprocess.check_output(["curl", "-sS", *shlex.split(line)[1:]]))
        for line in lines
        if line.startswith("curl ")
    ]
    os.killpg(run.pid, signal.SIGINT)
    rest = run.stdout.read()
    run.stdout.close()

    assert run.wait(30) in (0, -signal.SIGINT), rest
    assert [3, 3, 3] == [len(answer["tasks"]) for answer in answers], lines
    assert "20,000 tasks" in "\n".join(lines)
    running = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False)
    assert running.stdout == b""
