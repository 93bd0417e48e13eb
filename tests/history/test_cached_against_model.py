"""Responses from the cache against a model, while programs of every kind write.

The writers work at the same time, in several processes, but commit one after the other. So the
model knows the tasks after each commit. A response must be what the model answers after some
commit, at some time, between the request and the response.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import random
import re
import urllib.request
import uuid
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
from psycopg.sql import Literal
from psycopg.types.json import Jsonb

from audit.history.query import AuditQuery, TaskQuery, parse_arguments
from audit.postgres import embedded
from tests.api import API
from tests.conftest import ago
from tests.processes import serving

SECONDS = 8
SERVICES = ["a", "b", "c"]
INTENTS = ["deploy", "rotate"]
PEOPLE = ["ada", "alan"]
PROJECTS = [str(uuid.UUID(int=n)) for n in (1, 2)]
STATUSES = ["pending", "approved", "executing", "completed", "failed", "rejected"]
OPEN = STATUSES[:3]
COLUMNS = (
    "task_id, request_text, status, created_at, services_touched, outcome, created_by, project_id"
)
INSERT = f"INSERT INTO tasks ({COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
COPY = f"COPY tasks ({COLUMNS}) FROM STDIN WITH (FORMAT csv);"
UPDATE = (
    "UPDATE tasks SET status = %s, services_touched = %s, outcome = %s, error_message = %s"
    " WHERE task_id = %s"
)


@dataclass(frozen=True)
class Task:
    """What the model knows of a task."""

    task_id: str
    status: str
    created_at: datetime
    services: tuple[str, ...]
    outcome: dict[str, Any] | None
    created_by: str | None
    project_id: str | None
    error_message: str | None = None

    def members(self) -> dict[str, Any]:
        return {
            "task_id": self.task_id,
            "request_text": "x",
            "status": self.status,
            "created_at": self.created_at.isoformat(),
            "services_touched": list(self.services),
            "outcome": self.outcome,
            "created_by": self.created_by,
            "project_id": self.project_id,
        }

    def change(self) -> dict[str, Any]:
        """The members that a change may have."""
        return {
            "status": self.status,
            "services_touched": list(self.services),
            "outcome": self.outcome,
            "error_message": self.error_message,
        }

    def row(self) -> tuple[Any, ...]:
        outcome = None if self.outcome is None else Jsonb(self.outcome)
        return (
            *(self.task_id, "x", self.status, self.created_at, list(self.services)),
            *(outcome, self.created_by, self.project_id),
        )

    def shown(self) -> tuple[Any, ...]:
        """What a list shows of it and what can change."""
        return (self.task_id, self.status, self.services, self.outcome, self.error_message)


def new_task() -> Task:
    """Return a task of now, or one that leaves a window of a minute, an hour or a day soon."""
    age = random.choice([0, 0, 60, 3600, 86400])
    return Task(
        str(uuid.uuid4()),
        random.choice(STATUSES),
        ago(seconds=age) + timedelta(seconds=random.uniform(0, SECONDS if age else 0)),
        tuple(random.sample(SERVICES, random.randint(0, 2))),
        random.choice([None, {"action_type": random.choice(INTENTS), "n": random.randint(1, 2)}]),
        random.choice([None, *PEOPLE]),
        random.choice([None, *PROJECTS]),
    )


def changed(task: Task) -> Task:
    """Return an open task as it may become."""
    return replace(
        task,
        status=random.choice(STATUSES[STATUSES.index(task.status) :]),
        services=tuple(random.sample(SERVICES, random.randint(0, 2))),
        outcome={"action_type": random.choice(INTENTS), "n": random.randint(1, 2)},
        error_message=str(random.random()),
    )


@dataclass
class Model:
    """The tasks after each commit."""

    states: list[Mapping[str, Task]] = field(default_factory=lambda: [{}])
    finished: int = 0
    """The number of commits that were confirmed."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @asynccontextmanager
    async def commit(self, tasks: Iterable[Task]) -> AsyncIterator[None]:
        """Commit these new or changed tasks in the block."""
        async with self.lock:
            self.states.append({**self.states[-1], **{task.task_id: task for task in tasks}})
            yield
            self.finished = len(self.states) - 1


class Program:
    """psql: a process of its own, whose session runs what it is given."""

    def __init__(self, given: asyncio.StreamWriter, printed: asyncio.StreamReader) -> None:
        self._given, self._printed = given, printed

    @classmethod
    @asynccontextmanager
    async def running(cls, dsn: str) -> AsyncIterator[Self]:
        psql = embedded.binaries() / "psql"
        process = await asyncio.create_subprocess_exec(
            *(psql, "-qAtX", "-v", "ON_ERROR_STOP=1", dsn), stdin=PIPE, stdout=PIPE
        )
        assert process.stdin
        assert process.stdout
        try:
            yield cls(process.stdin, process.stdout)
        finally:
            process.kill()
            await process.wait()

    async def run(self, *lines: str) -> None:
        """Run these lines, and wait for their end."""
        self._given.write("\n".join([*lines, "\\echo done", ""]).encode())
        assert await self._printed.readline() == b"done\n"


def filled(statement: str, values: Iterable[Any]) -> str:
    """Return a statement with its values written into it."""
    return statement % tuple(Literal(value).as_string() for value in values) + ";"


def csv_line(task: Task) -> str:
    """Return a task as COPY takes it."""
    line = io.StringIO()
    outcome = task.outcome and json.dumps(task.outcome)
    csv.writer(line, lineterminator="").writerow(
        (task.task_id, "x", task.status, task.created_at, f"{{{','.join(task.services)}}}",
         outcome, task.created_by, task.project_id)
    )  # fmt: skip
    return line.getvalue()


class Writer:
    """Writes tasks of its own, which no other writer changes."""

    def __init__(self, model: Model, url: str, dsn: str) -> None:
        self.model, self.url, self.dsn = model, url, dsn
        self.open: dict[str, Task] = {}

    def own(self, tasks: Iterable[Task]) -> None:
        """Remember which tasks may still be changed."""
        for task in tasks:
            self.open.pop(task.task_id, None)
            if task.status in OPEN:
                self.open[task.task_id] = task

    async def over_http(self) -> None:
        async with aiohttp.ClientSession(self.url) as session:
            while True:
                await asyncio.sleep(random.uniform(0, 0.2))
                if self.open and random.random() < 0.6:
                    task = changed(random.choice(list(self.open.values())))
                    async with self.model.commit([task]):
                        sent = session.patch(f"{API}/tasks/{task.task_id}", json=task.change())
                        async with sent as answer:
                            assert answer.status == 200, await answer.text()
                    self.own([task])
                else:
                    tasks = [new_task() for _ in range(random.randint(1, 3))]
                    async with self.model.commit(tasks):
                        sent = session.post(f"{API}/tasks", json=[task.members() for task in tasks])
                        async with sent as answer:
                            assert answer.status == 201, await answer.text()
                    self.own(tasks)

    async def by_sql(self) -> None:
        """Write in transactions that stay open for a while, so that others commit before."""
        async with Program.running(self.dsn) as program:
            while True:
                await asyncio.sleep(random.uniform(0, 0.2))
                tasks = await self.begin(program)
                await asyncio.sleep(random.choice([0, 0, 0.02, 0.3]))
                end = random.choice(["COMMIT", "COMMIT", "PREPARE TRANSACTION", "ROLLBACK"])
                if end == "ROLLBACK":
                    await program.run("ROLLBACK;")
                    continue
                if end == "PREPARE TRANSACTION":
                    name = uuid.uuid4().hex
                    await program.run(f"PREPARE TRANSACTION '{name}';")
                    await asyncio.sleep(random.choice([0, 0.05]))
                    end = f"COMMIT PREPARED '{name}'"
                async with self.model.commit(tasks):
                    await program.run(f"{end};")
                self.own(tasks)

    async def begin(self, program: Program) -> list[Task]:
        """Write in a transaction, and leave it open; return what it will commit."""
        new = [new_task() for _ in range(random.choice([1, 1, 2, 20]))]
        old = [changed(task) for task in list(self.open.values())[-2:]]
        await program.run("BEGIN;")
        if random.random() < 0.3:
            await program.run(COPY, *map(csv_line, new), "\\.")
        else:
            await program.run(*(filled(INSERT, task.row()) for task in new))
        await program.run("SAVEPOINT half;")
        for task in old:
            values = (task.status, list(task.services), Jsonb(task.outcome), task.error_message)
            await program.run(filled(UPDATE, (*values, task.task_id)))
        if random.random() < 0.3:
            await program.run(filled(INSERT, new_task().row()), "ROLLBACK TO SAVEPOINT half;")
            return new
        return [*new, *old]


def random_filters() -> dict[str, Any]:
    """Return the parameters of a question, without its page."""
    filters = {
        "status": random.sample(STATUSES, random.randint(1, 2)),
        "service": random.sample(SERVICES, random.randint(1, 2)),
        "intent": random.sample(INTENTS, 1),
        "created_by": random.choice(PEOPLE),
        "project_id": random.choice(PROJECTS),
        "outcome": json.dumps({"n": random.randint(1, 2)}),
    }
    chosen = random.sample(list(filters), random.choice([0, 1, 1, 2, 3]))
    windows: list[dict[str, Any]] = [
        {},
        {"last": random.choice(["1m", "1h"])},
        {"days": 1},
        {"since": ago(seconds=random.choice([0, 50, 3590])).isoformat()},
        {"until": ago(seconds=random.choice([-3, 50, 3590])).isoformat()},
    ]
    return {**{name: filters[name] for name in chosen}, **random.choice(windows)}


def random_page() -> dict[str, Any]:
    return {
        "limit": random.choice([1, 5, 100]),
        **random.choice([{}, {}, {"offset": random.choice([1, 30])}, {"total": "none"}]),
    }


def expected(query: TaskQuery, tasks: Iterable[Task], clock: datetime) -> tuple[Any, ...]:
    """Return the tasks of the page, its total, and whether more tasks follow."""
    position = query.position
    if query.span:
        since = (position.clock or clock if position else clock) - query.span
    matching = sorted(
        (
            task
            for task in tasks
            if (not query.statuses or task.status in query.statuses)
            and {*query.service} <= {*task.services}
            and (not query.intent or (task.outcome or {}).get("action_type") in query.intent)
            and query.created_by in (None, task.created_by)
            and (query.project_id is None or str(query.project_id) == task.project_id)
            and (
                query.outcome is None
                or json.loads(query.outcome).items() <= (task.outcome or {}).items()
            )
            and (not query.span or task.created_at > since)
            and (query.since is None or task.created_at >= query.since)
            and (query.until is None or task.created_at < query.until)
        ),
        key=lambda task: (task.created_at, uuid.UUID(task.task_id)),
        reverse=True,
    )
    total = len(matching)
    if position:
        last = (position.created_at, position.task_id)
        matching = [t for t in matching if (t.created_at, uuid.UUID(t.task_id)) < last]
        total = total if position.total is None else position.total
    rest = matching[query.offset or 0 :]
    page = [task.shown() for task in rest[: query.limit]]
    return (page, None if query.total == "none" else total, len(rest) > query.limit)


def shown(body: dict[str, Any]) -> tuple[Any, ...]:
    """Return what a response shows, in the form of `expected`."""
    page = [
        (
            *(task["task_id"], task["status"], tuple(task["services_touched"])),
            *(task["outcome"], task["error_message"]),
        )
        for task in body["tasks"]
    ]
    return (page, body["total"], body["next_cursor"] is not None)


class Reader:
    """Asks some questions again and again over a connection of its own."""

    def __init__(
        self, model: Model, questions: list[dict[str, Any]], statuses: Counter[int]
    ) -> None:
        self.model, self.questions, self.statuses = model, questions, statuses
        self.held: dict[str, tuple[str, dict[str, Any]]] = {}

    async def read(self, url: str) -> None:
        async with aiohttp.ClientSession(url) as session:
            while True:
                question = random.choice(self.questions)
                body = await self.ask(session, question)
                cursor = body["next_cursor"]
                if cursor and random.random() < 0.02:
                    following = {n: v for n, v in question.items() if n not in ("offset", "cursor")}
                    self.questions[random.randrange(len(self.questions))] = {
                        **following,
                        "cursor": cursor,
                    }
                await asyncio.sleep(random.choice([0, 0.01]))

    async def ask(self, session: aiohttp.ClientSession, question: dict[str, Any]) -> dict[str, Any]:
        target = f"{API}/query?{urlencode(question, doseq=True)}"
        etag, body = self.held.get(target, ("", {}))
        headers = {"If-None-Match": etag} if etag and random.random() < 0.5 else {}
        finished, asked_at = self.model.finished, datetime.now(UTC).replace(microsecond=0)
        async with session.get(target, headers=headers) as answer:
            assert answer.status in (200, 304)
            self.statuses[answer.status] += 1
            if answer.status == 200:
                body = await answer.json()
        begun, answered_at = len(self.model.states), datetime.now(UTC)
        self.held[target] = (answer.headers["ETag"], body)
        query = parse_arguments(AuditQuery, question)
        clocks = [
            asked_at + timedelta(seconds=n) for n in range((answered_at - asked_at).seconds + 1)
        ]
        assert any(
            shown(body) == expected(query, state.values(), clock)
            for state in self.model.states[finished:begun]
            for clock in clocks
        ), f"{answer.status} {question}: no answer of any time since the request"
        return body


def counted_answers(url: str) -> dict[str, float]:
    """Return how many answers came from the cache, and how many from the database."""
    with urllib.request.urlopen(f"{url}/metrics") as metrics:
        text = metrics.read().decode()
    found = re.findall(r'^task_audit_answers_total{source="(\w+)"} (\S+)$', text, re.MULTILINE)
    return {source: float(number) for source, number in found}


async def test_each_response_is_an_answer_of_a_time_since_its_request(dsn: str) -> None:
    model = Model()
    statuses: Counter[int] = Counter()
    questions = [{**random_filters(), **random_page()} for _ in range(30)]
    with serving("--workers", "2", "--dsn", dsn) as (_, url, _):
        writers = [Writer(model, url, dsn) for _ in range(4)]
        working = [
            *(asyncio.create_task(writer.over_http()) for writer in writers[:2]),
            *(asyncio.create_task(writer.by_sql()) for writer in writers[2:]),
            *(asyncio.create_task(Reader(model, questions, statuses).read(url)) for _ in range(6)),
        ]
        done, _ = await asyncio.wait(working, timeout=SECONDS, return_when="FIRST_EXCEPTION")
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        for task in done:
            task.result()
        answers = await asyncio.to_thread(counted_answers, url)

    assert len(model.states) > 20
    assert min(statuses[200], statuses[304]) > 50
    assert min(answers.values()) > 50
