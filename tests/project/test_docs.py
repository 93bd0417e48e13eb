"""The documentation: what it names exists, and what it tells people to run works."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from audit import errors
from audit.commands import main
from audit.settings import Settings
from tests.processes import AUDIT, serving

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMED = re.compile(r"`((?:audit|sql|migrations|tests|docs)/[\w./-]*)`")
#: Options of other programs that a page names alone.
OTHERS = {"--strict"}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_links_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)

    assert [] == [name for name in NAMED.findall(text) if not (ROOT / name).exists()]
    assert [] == [link for link in links if not (page.parent / link).exists()]


def flags_by_command(command: Any, name: str = "") -> dict[str, set[str]]:
    """The options of each command, by its words after `audit`."""
    flags = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
    found = {name: flags | {"--help"}}
    for word, inner in getattr(command, "commands", {}).items():
        found |= flags_by_command(inner, f"{name} {word}".strip())
    return found


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "decisions" not in page.parts], ids=lambda page: page.name
)
def test_commands_and_options_of_a_page_exist(page: Path) -> None:
    flags = flags_by_command(get_command(main.app))
    text = page.read_text().replace("\\\n", " ")
    shell = "".join(body for name, body in BLOCK.findall(text) if name == "sh")
    lines = re.findall(r"(?:^|[ (/])audit ((?:[a-z]|--)[^\n|>)]*)", shell, re.MULTILINE)
    wrong = []
    for line in [*lines, *re.findall(r"`audit ([^`]+)`", text)]:
        name = next(name for name in sorted(flags, reverse=True) if f"{line} ".startswith(name))
        named = {word for word in shlex.split(line) if word.startswith("--")}
        wrong += [line] if name in {"", "keys"} and not named else []
        wrong += sorted(named - flags[name])
    wrong += set(re.findall(r"`(--[a-z-]+)", text)) - OTHERS - set().union(*flags.values())

    assert [] == wrong


def test_architecture_names_every_module() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    internal = {"__init__", "__main__"}
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "audit").rglob("*.py")
        if path.stem not in internal
    }

    untold = {"audit/postgres/statements.py", "audit/web/handlers/health.py"}
    assert modules - set(NAMED.findall(text)) <= untold


def test_readme_is_short() -> None:
    assert len(README.splitlines()) < 200


def test_problems_page_names_every_problem_and_setting() -> None:
    text = (ROOT / "docs/problems.md").read_text()
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.Problem)
    ]

    assert {(kind.status, kind.name) for kind in kinds} == {
        (int(status), name) for status, name in re.findall(r"\| (\d+) \| `([a-z-]+)`", text)
    }
    assert set(re.findall(r"AUDIT_(\w+)", text)) <= {name.upper() for name in Settings.model_fields}


#: What people type into a search engine for a service like this one.
SEARCHED = """
    audit log, task history, PostgreSQL, append-only, HTTP, OpenAPI, API key, JWT, rate limit,
    cache, ETag, timeout, retry, idempotency, connection pool, PgBouncer, reverse proxy, nginx, TLS,
    systemd, Docker, pagination, cursor, offset, filter, Prometheus, Grafana, metrics, traces,
    health, backup, upgrade, load test, asyncpg, aiohttp, Python, NDJSON
"""


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(README) if name == language]


def paste(cwd: Path, url: str, home: str, folder: Path) -> list[str]:
    """Paste the blocks of the README into one shell, in the order of the page.

    Return what each one printed. The service at `url` is the one that `make run` started.
    """
    script = [f"trap 'echo \"$BASH_COMMAND\" >> {folder}/failed' ERR"]
    pasted = [(name, text) for name, text in BLOCK.findall(README) if name in {"sh", "python"}]
    assert ("sh", "make run\n") == pasted.pop(0)
    for number, (name, text) in enumerate(pasted):
        typed = f"python -i -q <<'END'\n{text}END\n" if name == "python" else text
        here = typed.replace("http://127.0.0.1:8080", url)
        here = here.replace("/tmp/", f"{folder}/")  # noqa: S108 - so the page has it
        script.append(f"{{\n{here}}} > {folder}/{number}.out 2> {folder}/{number}.err")
    folders = os.environ["PATH"].split(os.pathsep)
    path = os.pathsep.join(one for one in folders if one != str(AUDIT.parent))
    subprocess.run(
        ["bash"], input="\n".join(script), text=True, check=True,
        cwd=cwd, env={"HOME": home, "PATH": path, "AUDIT_URL": url},
    )  # fmt: skip
    errors = "".join((folder / f"{n}.err").read_text() for n in range(len(pasted)))
    failed = folder / "failed"

    assert not failed.exists(), failed.read_text() + errors
    assert "Traceback" not in errors, errors
    return [(folder / f"{n}.out").read_text() for n in range(len(pasted))]


def without_places(lines: list[str]) -> list[str]:
    return [re.sub(r"in /\S*|:\d+", "", line.strip()) for line in lines]


def shape(value: Any) -> Any:
    """The members of a value, and of the first element of an array."""
    if isinstance(value, dict):
        return {name: shape(member) for name, member in value.items()}
    if isinstance(value, list):
        return [shape(element) for element in value[:1]]
    return None


def documents(printed: str) -> Iterator[Any]:
    """The JSON documents that a block printed, with or without line breaks between them."""
    decoder = json.JSONDecoder()
    while (printed := printed.lstrip()).startswith("{"):
        document, end = decoder.raw_decode(printed)
        yield document
        printed = printed[end:]


def check_printed(banner: list[str], printed: list[str]) -> None:
    """The commands printed what the README shows."""
    shown_banner, shown_lines = blocks("text")
    shown_page, shown_problem, shown_receipt = map(json.loads, blocks("json"))
    answers = [answer for text in printed for answer in documents(text)]
    page, *_ = [answer for answer in answers if "tasks" in answer]
    problem, *others = [answer for answer in answers if "errors" in answer or "type" in answer]

    assert without_places(shown_banner.splitlines()) == without_places(banner)
    assert (shape(shown_page), 1) == (shape(page), page["limit"])
    assert {**shown_problem, "instance": ""} == {**problem, "instance": ""}
    assert [] == others
    assert shown_receipt in answers
    assert shown_lines in printed


def test_readme_contains_the_words_that_people_search_for() -> None:
    text = " ".join(README.lower().split())

    assert [] == [word for word in SEARCHED.split(",") if word.strip().lower() not in text]


@pytest.fixture
def home() -> Iterator[str]:
    """An empty home folder, with a path as short as that of a user's."""
    with tempfile.TemporaryDirectory(prefix="home-") as folder:
        yield folder


def test_blocks_of_the_readme_work_in_order_and_print_what_it_shows(
    home: str, tmp_path: Path
) -> None:
    with serving("--demo", HOME=home) as (_, url, banner):
        printed = paste(ROOT, url, home, tmp_path)

    check_printed(banner, printed)


@pytest.mark.slow
def test_a_new_user_starts_it_and_pastes_the_readme(home: str, tmp_path: Path) -> None:
    """What git would clone, an empty environment, `make run`, and the whole README."""
    clone = tmp_path / "clone"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    for name in filter(None, names.split("\0")):
        target = clone / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    environment = {
        name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))
    } | {"PATH": os.environ["PATH"], "HOME": home, "AUDIT_PORT": "0"}
    run = subprocess.Popen(
        ["make", "run"], cwd=clone, env=environment, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert run.stdout
    try:
        lines: list[str] = []
        while not lines or not lines[-1].startswith("Ctrl-C"):
            line = run.stdout.readline()
            assert line, "make run ended"
            if lines or line.startswith("task-audit listens"):
                lines.append(line.rstrip("\n"))
        tried = [
            json.loads(subprocess.check_output(["curl", "-sS", *shlex.split(line)[1:]]))
            for line in lines
            if line.strip().startswith("curl ")
        ]
        pasted = tmp_path / "pasted"
        pasted.mkdir()
        printed = paste(clone, lines[0].split()[3], home, pasted)
    finally:
        os.killpg(run.pid, signal.SIGINT)
        rest = run.stdout.read()
        run.stdout.close()

    assert run.wait(30) in (0, -signal.SIGINT), rest
    assert [3, 3, 3] == [len(answer["tasks"]) for answer in tried], lines
    check_printed(lines, printed)
    for folder in (str(tmp_path), home):
        running = subprocess.run(["pgrep", "-f", folder], capture_output=True, check=False)
        assert running.stdout == b""
