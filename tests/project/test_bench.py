"""The benchmark itself: every part gives figures; what they are, no test says."""

from __future__ import annotations

import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import pytest

from tests.bench import against, limit, report
from tests.bench.client import Client, Load, Outcome, request, run
from tests.bench.figures import Figure, Result, mean_ratio, ratio
from tests.bench.mixed import RATES
from tests.bench.shapes import Services, services_of, shapes
from tests.bench.statistics import QUESTIONS
from tests.bench.systems import System, trivial
from tests.needs import needs_installed

ROOT = Path(__file__).parents[2]
TASKS = 2000
SHAPES = [shape.name for shape in shapes(TASKS)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path, str]:
    """A run so short that its figures mean nothing; with the peer where that is installed."""
    folder = tmp_path_factory.mktemp("bench")
    peer = "--peer" if find_spec("fastapi") else "--no-peer"
    length = ["--tasks", str(TASKS), "--seconds", "0.05", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *length, peer, "--data-dir", folder],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = folder / f"result-{TASKS}.json"
    result = Result.model_validate_json(written.read_bytes(), strict=True)
    return result, folder, done.stdout


@pytest.mark.slow
def test_every_part_gives_figures_for_every_shape(finished: tuple[Result, Path, str]) -> None:
    result, _, printed = finished

    assert result.reading
    assert result.flatness
    assert result.repeated
    assert SHAPES == list(result.reading) == list(result.flatness)
    assert all(shape in printed for shape in SHAPES)
    assert all(one.service.per_second.median > 0 for one in result.reading.values())
    assert all(one.limit.median > 0 for one in result.reading.values())
    assert all([TASKS // 10, TASKS] == list(one.median_ms) for one in result.flatness.values())
    assert result.repeated.trivial_per_second.median > 0


@pytest.mark.slow
def test_shapes_ask_what_their_names_say(finished: tuple[Result, Path, str]) -> None:
    reading = finished[0].reading or {}
    totals = {name: one.total for name, one in reading.items()}

    assert {"no filter": TASKS, "deep offset": TASKS, "deep cursor": TASKS, "no match": 0} == {
        name: totals[name] for name in ("no filter", "deep offset", "deep cursor", "no match")
    }
    assert 0 < totals["only-old service"] < totals["frequent service"] < TASKS
    assert 0 < totals["frequent service, 7 days"] < totals["frequent service"]


@pytest.mark.slow
def test_every_statistic_is_measured_at_each_size(finished: tuple[Result, Path, str]) -> None:
    statistics = finished[0].statistics

    assert statistics
    assert list(QUESTIONS) == list(statistics.latency)
    assert all([TASKS // 10, TASKS] == list(one.p95_ms) for one in statistics.latency.values())
    assert statistics.repeated.page_per_second.median > 0


@pytest.mark.slow
def test_every_way_of_recording_is_compared_to_copy(finished: tuple[Result, Path, str]) -> None:
    recording = finished[0].recording or []

    ways = {one.way for one in recording}
    assert {"POST of 1", "POST of 100", "POST of 1,000", "audit record --url"} <= ways
    assert all(one.to_copy.median > 0 for one in recording)


@pytest.mark.slow
def test_writes_leave_some_questions_alone_and_change_others(
    finished: tuple[Result, Path, str],
) -> None:
    mixed = finished[0].mixed or []

    different = {one.questions: one.different for one in mixed}
    for days in ("without days", "with days"):
        assert 0 < different[f"not affected, {days}"] < different[f"all, {days}"]
    for rate in RATES:
        assert 4 == len([one for one in mixed if one.writes_due == rate])
    assert all((one.writes_per_second is None) == (one.writes_due == 0) for one in mixed)
    assert all(one.per_second.median > 0 for one in mixed)


@pytest.mark.slow
def test_single_requests_are_compared_to_plain_tables(finished: tuple[Result, Path, str]) -> None:
    single = finished[0].single or []

    ways = [(one.way, one.connections) for one in single]
    assert [
        (way, number) for way in ("POST", "POST and two PATCHes") for number in (1, 4, 16, 64)
    ] == ways
    assert all(one.to_pgbench.median > 0 for one in single)


@pytest.mark.slow
def test_every_question_is_asked_with_and_without_a_key(
    finished: tuple[Result, Path, str],
) -> None:
    keys = finished[0].keys or []

    assert 4 == len(keys)
    assert all(one.with_to_without.median > 0 for one in keys)


@pytest.mark.slow
def test_a_standby_is_compared_with_its_primary(finished: tuple[Result, Path, str]) -> None:
    replicas = finished[0].replicas

    assert replicas
    assert [0, 2] == [one.writers for one in replicas.waited]
    assert all(one.reads.median > 0 for one in replicas.waited)
    assert ["primary", "standby"] == [one.server for one in replicas.read]
    assert [0, 1] == [one.standbys for one in replicas.recorded]
    assert [0, 2] == [len(one.standbys_cpu) for one in replicas.shared]
    assert all(one.primary_cpu.median > 0 for one in replicas.shared)


@pytest.mark.slow
def test_each_format_is_exported_to_fast_and_slow_readers(
    finished: tuple[Result, Path, str],
) -> None:
    export = finished[0].export or []

    assert ["ndjson", "csv"] == [one.form for one in export]
    assert all(one.tasks_per_second.median > 0 for one in export)
    assert all(one.p95_beside_to_alone.median > 0 for one in export)


@pytest.mark.slow
def test_two_checkouts_are_compared(tmp_path: Path) -> None:
    """Here, both have the same code."""
    checkouts = tmp_path / "other", tmp_path / "this"
    for checkout in checkouts:
        checkout.mkdir()
        for name in ("audit", "migrations", "sql", "tests", ".venv"):
            (checkout / name).symlink_to(ROOT / name)

    compared = against.measure(*checkouts, ["repeated"], tasks=TASKS, seconds=0.05, rounds=1)

    assert "repeated, page_per_second" in {one.name for one in compared}
    assert all(one.this_to_other.median > 0 for one in compared)


def test_figures_of_two_checkouts_are_found_by_name() -> None:
    figure = Figure.of([4]).model_dump()
    ways = [
        {"way": "POST", "connections": number, "per_second": figure, "to_copy": figure}
        for number in (1, 4)
    ]

    found = dict(against.medians({"a": {"total": 3, "rate": figure}, "ways": ways}, "part"))

    assert found == {
        "part, a, rate": 4,
        "part, ways, POST, 1, per_second": 4,
        "part, ways, POST, 4, per_second": 4,
    }


def test_only_what_both_checkouts_found_in_every_round_is_compared() -> None:
    ours = {"a": [2.0, 6.0], "new": [1.0, 1.0], "b": [1.0, 1.0]}
    theirs = {"a": [1.0, 2.0], "old": [1.0, 1.0], "b": [1.0]}

    (compared,) = against.compare(theirs, ours)

    assert ("a", [2, 3]) == (compared.name, compared.this_to_other.rounds)


@pytest.mark.slow
def test_plot_is_drawn(finished: tuple[Result, Path, str]) -> None:
    _, folder, _ = finished

    drawn = ET.parse(folder / f"result-{TASKS}.svg")  # noqa: S314 - our own
    texts = {one.text for one in drawn.iter() if one.text}
    assert set(SHAPES) <= texts


@pytest.mark.slow
@needs_installed("FastAPI", ".venv/installed-bench", found=find_spec("fastapi") is not None)
def test_peer_answers_as_the_service_does(finished: tuple[Result, Path, str]) -> None:
    """The run itself compares totals and ids, and would have failed."""
    reading = finished[0].reading or {}

    assert all(one.peer and one.service_to_peer for one in reading.values())


@needs_installed("Locust", ".venv/installed-bench", found=find_spec("locust") is not None)
def test_locustfile_loads() -> None:
    command = [sys.executable, "-m", "locust", "-f", "tests/bench/locustfile.py", "--list"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert "Auditor" in done.stdout, done.stderr


@pytest.fixture(scope="module")
def least() -> Iterator[System]:
    with trivial() as system:
        yield system


def test_client_counts_every_answer(least: System) -> None:
    messages = [request("/", least.host)] * 40

    outcome = run(Load(least.host, least.port, messages, 4, 10, once=True))

    assert {200: 40} == outcome.statuses
    assert 40 == len(outcome.latencies)
    assert 0 < outcome.percentile_ms(50) <= outcome.percentile_ms(99)


def test_client_keeps_to_its_rate(least: System) -> None:
    outcome = run(Load(least.host, least.port, [request("/", least.host)], 8, 1, rate=200))

    assert 120 <= outcome.statuses[200] <= 280


class Sized(BaseHTTPRequestHandler):
    """Answers /n with n bytes, and /304 with that status. Each connection has an instance."""

    protocol_version = "HTTP/1.1"
    #: What each connection asked for, in order.
    asked: ClassVar[defaultdict[int, list[int]]] = defaultdict(list)

    def do_GET(self) -> None:
        size = int(self.path[1:])
        self.asked[self.client_address[1]].append(size)
        self.send_response(304 if size == 304 else 200)
        if size != 304:
            self.send_header("content-length", str(size))
        self.end_headers()
        self.wfile.write(b"x" * (0 if size == 304 else size))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Print nothing."""


@pytest.fixture
def sized() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Sized) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_client_reads_bodies_of_any_size_and_none(sized: int) -> None:
    sizes = (0, 304, 1, 100_000, 3_000_000, 304)
    messages = [request(f"/{size}", "127.0.0.1") for size in sizes]

    outcome = run(Load("127.0.0.1", sized, messages, 1, 10, once=True))

    assert {200: 4, 304: 2} == outcome.statuses


def test_client_sends_what_belongs_together_in_order_over_one_connection(sized: int) -> None:
    Sized.asked.clear()
    messages = [request(f"/{size}", "127.0.0.1") for size in range(120)]

    outcome = run(Load("127.0.0.1", sized, messages, 8, 10, once=True, in_order=3))

    assert {200: 120} == outcome.statuses
    for asked in Sized.asked.values():
        for first, second, third in zip(*[iter(asked)] * 3, strict=True):
            assert (0, first + 1, first + 2) == (first % 3, second, third)


def test_client_refuses_answers_that_are_not_expected(sized: int) -> None:
    message = request("/304", "127.0.0.1")

    with Client() as client, pytest.raises(RuntimeError, match=r"GET /304 .* \{304: \d+\}"):
        client.send(Load("127.0.0.1", sized, [message], 1, 0.1))


def test_latencies_are_told_by_rank() -> None:
    outcome = Outcome()
    outcome.latencies.extend(number / 1000 for number in range(100, 0, -1))

    assert [51, 96, 100] == [round(outcome.percentile_ms(one)) for one in (50, 95, 100)]


def test_figures_tell_median_and_spread() -> None:
    assert Figure.of([3, 1, 2]) == Figure(median=2, lowest=1, highest=3, rounds=[3, 1, 2])
    assert [2, 4] == ratio([2, 8], [1, 2]).rounds
    assert 4 == mean_ratio([Figure.of([2]), Figure.of([8])])


async def test_limit_sends_what_the_service_sends(dsn: str) -> None:
    (shape,) = (one for one in shapes(TASKS) if one.name == "two services")

    script = await limit.script_for(dsn, limit.query_of(shape, 10, None))

    assert '{"payments","checkout"}' in script.values.values()
    assert "10" in script.values.values()
    assert "force_custom_plan" == script.session["plan_cache_mode"]
    assert "$" not in script.text
    assert limit.per_second(dsn, script, 1, 0.1) > 0


def test_shapes_fit_the_services_of_any_deployment() -> None:
    newest = [{"services_touched": ["a", "b"]}, {"services_touched": ["a", "b", "c"]}]
    newest += [{"services_touched": ["a"]}]
    oldest = [{"services_touched": ["gone", "a"]}]

    assert services_of(newest, oldest) == Services("a", "b", "b", "c", "gone")
    assert services_of([], []).frequent == Services().absent


def test_plot_scales_to_what_it_shows() -> None:
    assert [2, 5, 10, 20] == report._ticks([3, 12])
    assert [1, 10, 100, 1000, 10_000, 100_000] == report._ticks([1.5, 40_000])
