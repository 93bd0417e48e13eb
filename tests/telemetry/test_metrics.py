"""The metrics of all workers, and the limits on their number."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack
from http import HTTPStatus
from importlib.metadata import version

import psycopg
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from audit.settings import Settings
from audit.telemetry.metrics import Metrics, seats
from audit.web.app import create_app
from audit.web.state import METRICS
from tests.conftest import Client, execute, task
from tests.processes import API, connected, fetch, serving, workers_of
from tests.waiting import quiet, wait_until

REQUESTS = "task_audit_http_requests_total"
DURATIONS = "task_audit_http_request_duration_seconds"
STATEMENTS = "task_audit_statement_duration_seconds"

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Series:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(series: Series, name: str, **labels: str) -> float:
    """Return the value of one series, or 0 if it does not exist."""
    return series.get((name, frozenset(labels.items())), 0)


async def scrape(client: Client) -> Series:
    response = await client.get("/metrics")
    assert 200 == response.status
    return parsed(await response.text())


def scraped(url: str) -> Series:
    with urllib.request.urlopen(f"{url}/metrics", timeout=20) as response:
        return parsed(response.read().decode())


# --- one process ----------------------------------------------------------------------------------


async def test_requests_are_counted_by_route_method_and_status(client: Client) -> None:
    for _ in range(3):
        await client.get(f"{API}/by-service/payments?limit=1")
    await client.get(f"{API}/by-service/checkout?limit=0")
    await client.get("/nowhere")
    await client.delete(f"{API}/query")
    series = await scrape(client)

    route = API + "/by-service/{service_name}"
    assert 3 == value(series, REQUESTS, route=route, method="GET", status="200")
    assert 1 == value(series, REQUESTS, route=route, method="GET", status="422")
    assert 1 == value(series, REQUESTS, route="unmatched", method="GET", status="404")
    assert 1 == value(series, REQUESTS, route="unmatched", method="DELETE", status="405")
    assert 4 == value(series, f"{DURATIONS}_count", route=route)
    assert 4 == value(series, f"{DURATIONS}_bucket", route=route, le="+Inf")
    assert 0 < value(series, f"{DURATIONS}_sum", route=route) < 60


def test_buckets_include_their_upper_bound() -> None:
    metrics = Metrics(["/a"])
    for seconds in (0.0005, 0.00051, 10, 11):
        metrics.request("/a", "GET", 200, seconds)
    series = parsed(metrics.render("", None)[0].decode())

    at = [value(series, f"{DURATIONS}_bucket", route="/a", le=le) for le in ("0.0005", "0.001")]
    assert [1, 2] == at
    assert 3 == value(series, f"{DURATIONS}_bucket", route="/a", le="10.0")
    assert 4 == value(series, f"{DURATIONS}_bucket", route="/a", le="+Inf")


async def test_statements_are_counted_by_file(client: Client) -> None:
    before = await scrape(client)
    await client.get(f"{API}/query?limit=1")
    await client.get(f"{API}/tasks/00000000-0000-0000-0000-000000000000")
    after = await scrape(client)

    def ran(name: str) -> float:
        counted = f"{STATEMENTS}_count"
        return value(after, counted, statement=name) - value(before, counted, statement=name)

    assert (1, 1, 1) == (ran("list_tasks"), ran("read_changes"), ran("get_task"))
    assert 0 < value(after, f"{STATEMENTS}_sum", statement="list_tasks") < 60
    assert 1 <= value(before, f"{STATEMENTS}_count", statement="list_keys")


async def test_failed_statements_are_counted(
    dsn: str, aiohttp_client: Callable[..., Awaitable[Client]]
) -> None:
    settings = Settings(pool_size=4, statement_timeout_seconds=0.5)
    client = await aiohttp_client(create_app(settings, dsn))
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
        statuses = [(await client.get(f"{API}/query?offset={i}")).status for i in range(2)]
        other.rollback()
    series = await scrape(client)

    failed = value(series, "task_audit_statement_failures_total", statement="list_tasks")
    assert statuses.count(504) == failed > 0
    assert 0 == value(series, "task_audit_statement_failures_total", statement="read_changes")


async def test_answers_are_counted_by_where_they_came_from(client: Client) -> None:
    await quiet(client)
    before = await scrape(client)
    for path in ("/query", "/query", "/query?limit=1", "/query"):
        await client.get(API + path)
    after = await scrape(client)

    def counted(source: str) -> float:
        name = "task_audit_answers_total"
        return value(after, name, source=source) - value(before, name, source=source)

    assert (2, 2) == (counted("cache"), counted("database"))
    assert 1 == value(after, "task_audit_cache_resets_total")


async def test_tasks_are_counted_by_result(client: Client) -> None:
    sent = [task() for _ in range(5)]
    await client.post(f"{API}/tasks", json=sent)
    await client.post(f"{API}/tasks", json=[*sent[:2], task()])
    refused = await client.post(f"{API}/tasks", json={**sent[0], "request_text": "other"})
    series = await scrape(client)

    assert 409 == refused.status
    assert 6 == value(series, "task_audit_tasks_total", result="recorded")
    assert 2 == value(series, "task_audit_tasks_total", result="duplicate")


async def test_pool_and_queues_count_used_connections_and_waiting_requests(
    dsn: str, client: Client
) -> None:
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
        paths = [f"{API}/tasks/00000000-0000-0000-0000-{i:012}" for i in range(7)]
        asking = [asyncio.create_task(client.get(path)) for path in paths]
        metrics = client.app[METRICS]
        async with asyncio.timeout(20):
            while True:
                await asyncio.sleep(0.02)
                busy = parsed(metrics.render("", None)[0].decode())
                queued = value(busy, "task_audit_queue_length", queue="reading")
                # The work in the background may wait for a connection for a moment.
                if (queued, value(busy, "task_audit_pool_waiting")) == (5, 0):
                    break
        other.rollback()
    await asyncio.gather(*asking)
    idle = parsed(metrics.render("", None)[0].decode())

    assert 4 == value(busy, "task_audit_pool_connections")
    assert value(busy, "task_audit_pool_in_use") >= 1
    assert 0 == value(idle, "task_audit_queue_length", queue="reading")
    assert 7 == value(idle, "task_audit_queue_wait_seconds_count", queue="reading")
    assert 0 == value(idle, "task_audit_queue_refused_total", queue="reading")


def test_without_a_database_the_other_metrics_stay(dsn: str) -> None:
    ((name,),) = execute(dsn, "SELECT current_database()")
    server = dsn.replace(f"/{name}?", "/postgres?")
    kill = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    with serving("--dsn", dsn) as (_, url, _):
        there = scraped(url)
        execute(server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false", kill)
        try:
            gone = scraped(url)
        finally:
            execute(server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        wait_until(lambda: value(scraped(url), "task_audit_database_up") == 1)

    assert (1, 0) == tuple(value(shown, "task_audit_database_up") for shown in (there, gone))
    missing = {name for name, _ in there} - {name for name, _ in gone}
    of_the_log = {name for name in missing if name.startswith("task_audit_log_")}
    assert 5 == len(of_the_log)
    assert missing - of_the_log == {
        "task_audit_count_deltas",
        "task_audit_slot_wal_bytes",
        "task_audit_slot_xmin_age_transactions",
        "task_audit_slots_inactive",
        "task_audit_snapshot_age_transactions",
    }


async def test_the_log_and_its_queue_have_sizes_and_an_age(dsn: str, client: Client) -> None:
    async def measured(*names: str) -> tuple[float, ...]:
        series = await scrape(client)
        return tuple(value(series, f"task_audit_log_{name}") for name in names)

    numbers = ("events_total", "queue_length", "queue_age_seconds")
    empty = await measured(*numbers)
    with psycopg.connect(dsn, autocommit=True) as sequencing:
        # The service cannot sequence events while another session holds this lock.
        sequencing.execute("SELECT pg_advisory_lock(hashtext('sequence_task_events'))")
        await client.post(f"{API}/tasks", json=[task(), task(), task()])
        queued = await measured(*numbers)
        sequencing.execute("SELECT sequence_task_events(2)")
        half = await measured(*numbers)

    assert (0, 0, 0) == empty
    assert ((0, 3), (2, 1)) == (queued[:2], half[:2])
    assert 0 < queued[2] < half[2] < 60
    assert min(await measured("bytes", "queue_bytes")) > 0


async def test_deltas_have_a_size_and_a_lag(dsn: str, client: Client) -> None:
    lag = "task_audit_count_deltas_lag_seconds"
    with psycopg.connect(dsn) as folding:
        folding.execute("SELECT pg_advisory_xact_lock(hashtext('fold_task_counts'))")
        await client.post(f"{API}/tasks", json=[task() for _ in range(50)])
        async with asyncio.timeout(20):
            waiting = await scrape(client)
            while value(waiting, "task_audit_count_deltas") < 50 or value(waiting, lag) < 2:
                await asyncio.sleep(0.1)
                waiting = await scrape(client)
        folding.rollback()
    async with asyncio.timeout(20):
        while value(await scrape(client), lag) >= 2:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_build_info_and_the_requested_format(client: Client) -> None:
    plain = await client.get("/metrics")
    open_metrics = await client.get(
        "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )

    assert plain.content_type == "text/plain"
    built = {"version": version("task-audit"), "python": platform.python_version()}
    assert 1 == value(parsed(await plain.text()), "task_audit_build_info", **built)
    assert open_metrics.content_type == "application/openmetrics-text"
    text = await open_metrics.text()
    assert list(openmetrics_parser.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


async def test_requests_of_all_statuses_add_up(client: Client) -> None:
    await client.head("/healthz")
    held = await client.get(f"{API}/query", headers={"If-None-Match": "*"})
    series = await scrape(client)

    assert 304 == held.status
    assert 1 == value(series, REQUESTS, route="/healthz", method="HEAD", status="200")
    assert 1 == value(series, REQUESTS, route=f"{API}/query", method="GET", status="304")


# --- cardinality ----------------------------------------------------------------------------------


async def test_clients_cannot_create_labels(client: Client) -> None:
    strange = "zebra"
    for path in (
        f"/{strange}",
        f"{API}/by-service/{strange}",
        f"{API}/by-service/{strange}%2F..%2F{strange}?status={strange}",
        f"{API}/query?created_by={strange}&{strange}={strange}",
        f"{API}/tasks/{strange}",
        f"/docs/{strange}",
    ):
        for method in ("GET", "POST", "PROPFIND", "M-SEARCH"):
            headers = {"X-Request-ID": strange, "User-Agent": strange, "Host": strange}
            await client.request(method, path, headers=headers)
    response = await client.get("/metrics")
    text = await response.text()

    assert strange not in text
    assert "PROPFIND" not in text
    routes = {dict(labels)["route"] for name, labels in parsed(text) if name == REQUESTS}
    known = {resource.canonical for resource in client.app.router.resources()}
    assert routes <= {*known, "unmatched"}


@hypothesis_settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.text(), st.text(), st.one_of(st.integers(), st.sampled_from(HTTPStatus))))
)
def test_the_number_of_series_is_limited(
    requests: list[tuple[str, str, int]],
) -> None:
    metrics = Metrics(["/a", "/b"])
    for route, method, status in requests:
        metrics.request(route, method, status, 0.1)
    series = parsed(metrics.render("", None)[0].decode())
    counted = {key: n for key, n in series.items() if key[0] == REQUESTS}

    assert len(requests) == sum(counted.values())
    assert {dict(labels)["route"] for _, labels in counted} <= {"/a", "/b", "unmatched"}
    assert {dict(labels)["method"] for _, labels in counted} <= {
        *("GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS", "other")
    }
    statuses = {dict(labels)["status"] for _, labels in counted}
    assert statuses <= {*(str(status.value) for status in HTTPStatus), "499", "other"}


def test_the_first_scrape_has_few_series() -> None:
    app = create_app(Settings(), "postgresql://unused")

    assert len(parsed(app[METRICS].render("", None)[0].decode())) < 2000


def test_too_many_routes_are_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        Metrics(str(number) for number in range(1000))


# --- several workers ------------------------------------------------------------------------------


def test_a_worker_renders_the_sum_of_all_and_a_new_one_continues() -> None:
    places = seats(3)
    workers = [Metrics(["/a"], seat) for seat in places]
    for number, worker in enumerate(workers, 1):
        worker.pool(8)
        for _ in range(number):
            worker.request("/a", "GET", 200, 0.1)
    with workers[1].waiting, workers[2].in_use, workers[2].queues["writing"].waiting:
        busy = parsed(workers[0].render("", None)[0].decode())
        places[2].restarted()
        new = Metrics(["/a"], places[2])  # nobody uses or waits for anything there now
    new.pool(8)
    new.request("/a", "GET", 200, 0.1)
    later = parsed(new.render("", None)[0].decode())

    counted = [
        value(shown, REQUESTS, route="/a", method="GET", status="200") for shown in (busy, later)
    ]
    assert [6, 7] == counted
    assert 24 == value(busy, "task_audit_pool_connections")
    assert (1, 1) == tuple(
        value(busy, f"task_audit_pool_{state}") for state in ("waiting", "in_use")
    )
    assert 1 == value(busy, "task_audit_queue_length", queue="writing")
    assert 1 == value(later, "task_audit_worker_restarts_total")


def test_the_sum_over_workers_survives_a_killed_worker(dsn: str) -> None:
    def counted(url: str) -> Iterable[float]:
        for _ in range(12):  # of whichever workers take them
            yield value(scraped(url), REQUESTS, route="/healthz", method="GET", status="200")

    with serving("--dsn", dsn, "--workers", "3", "--pool-size", "2") as (process, url, _):
        wait_until(lambda: value(scraped(url), "task_audit_pool_connections") == 6)
        assert [200] * 60 == [fetch(f"{url}/healthz") for _ in range(60)]
        assert [60.0] * 12 == list(counted(url))

        first = workers_of(process)
        os.kill(min(first), signal.SIGKILL)
        wait_until(lambda: len(workers_of(process) - first) == 1)
        wait_until(lambda: value(scraped(url), "task_audit_worker_restarts_total") == 1)
        assert [200] * 30 == [fetch(f"{url}/healthz") for _ in range(30)]

        assert [90.0] * 12 == list(counted(url))
        assert 6 == value(scraped(url), "task_audit_pool_connections")


def test_refusals_before_parsing_are_counted(dsn: str) -> None:
    options = ("--dsn", dsn, "--workers", "1", "--max-connections", "2")
    with serving(*options) as (_, url, _), ExitStack() as stack:
        for noise in (b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"):
            with connected(url) as connection:
                connection.sendall(noise)
                while connection.recv(4096):
                    pass
        for connection in [stack.enter_context(connected(url)) for _ in range(2)]:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b" 200 " in connection.recv(4096)
        for _ in range(3):
            with connected(url) as connection:
                assert b" 503 " in connection.recv(4096)
        stack.close()
        wait_until(lambda: fetch(f"{url}/healthz") == 200)
        series = scraped(url)

    refused = {"route": "unmatched", "method": "other"}
    assert 2 == value(series, REQUESTS, **refused, status="400")
    assert 3 <= value(series, REQUESTS, **refused, status="503")


def test_a_client_that_left_is_counted_as_499(dsn: str) -> None:
    with serving("--dsn", dsn) as (_, url, _), psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
        with connected(url) as leaving:
            leaving.sendall(f"GET {API}/query HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            wait_until(lambda: is_waiting(dsn))

        def left() -> bool:
            shown = value(scraped(url), REQUESTS, route=f"{API}/query", method="GET", status="499")
            return shown == 1

        wait_until(left)
        other.rollback()


def one_worker(dsn: str) -> tuple[str, ...]:
    return ("--dsn", dsn, "--workers", "1", "--pool-size", "1")


def test_a_scrape_does_not_wait_for_a_locked_table(dsn: str) -> None:
    with serving(*one_worker(dsn)) as (_, url, _), psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
        asking = threading.Thread(target=fetch, args=(f"{url}{API}/query",))
        asking.start()
        wait_until(lambda: is_waiting(dsn))
        busy = scraped(url)
        other.rollback()
        asking.join()

        assert 0 == value(busy, "task_audit_database_up")
        assert 1 == value(busy, "task_audit_pool_in_use")
        wait_until(lambda: value(scraped(url), "task_audit_database_up") == 1)


def is_waiting(dsn: str) -> bool:
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = "
    return bool(execute(dsn, f"{waiting} current_database()"))
