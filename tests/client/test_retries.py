"""What both clients do when requests and responses are lost, refused or late."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from audit.client import (
    BadConfiguration,
    BodyTooLarge,
    Client,
    Conflict,
    Invalid,
    PreconditionFailed,
    Problem,
    TimedOut,
    TooManyRequests,
    Unavailable,
    transport,
)
from tests.client.conftest import Connect
from tests.client.proxy import (
    CUT_AFTER,
    CUT_BEFORE,
    CUT_WITHIN,
    ON,
    STALL,
    FaultProxy,
    Refusal,
)
from tests.conftest import task

#: Makes a proxy with a plan before the service.
Faults = Callable[..., FaultProxy]

KEY = "taskaudit_not-to-be-shown"


@pytest.fixture
def faults(url: str) -> Iterator[Faults]:
    """Make proxies before the service."""
    with ExitStack() as stack:
        yield lambda *plan: stack.enter_context(FaultProxy(url, *plan))


@pytest.fixture
def alone() -> Iterator[Faults]:
    """Make proxies without a service."""
    with ExitStack() as stack:
        yield lambda *plan: stack.enter_context(FaultProxy("http://127.0.0.1:1", *plan))


def test_each_task_is_recorded_once_whatever_is_lost(
    connect: Connect, faults: Faults, me: str
) -> None:
    proxy = faults(CUT_BEFORE, CUT_AFTER, Refusal(502), CUT_WITHIN, ON, CUT_AFTER)
    client = connect(proxy.url, tries=6)

    first = client.record(request_text="x", created_by=me)
    many = client.record_many(
        [{"request_text": str(number), "created_by": me} for number in range(3)]
    )

    assert (0, 3) == (many.recorded, many.duplicates)
    assert {first, *many.task_ids} == {one.task_id for one in client.query(created_by=me)}
    assert 4 == client.query(created_by=me).total()


def test_a_change_is_made_once_whatever_is_lost(connect: Connect, faults: Faults) -> None:
    proxy = faults(ON, CUT_BEFORE, CUT_AFTER, ON)
    client = connect(proxy.url)
    task_id = client.record(request_text="x")

    changed = client.update(task_id, status="completed", outcome={"n": 1})

    assert ("completed", {"n": 1}) == (changed.status, changed.outcome)
    assert ["recorded", "changed"] == [event.kind for event in client.history(task_id)]
    ids = {seen.headers["X-Request-ID"] for seen in proxy.seen if seen.method == "PATCH"}
    assert 1 == len(ids)


def test_a_change_with_a_tag_is_settled_after_a_lost_response(
    connect: Connect, faults: Faults
) -> None:
    proxy = faults(ON, ON, CUT_AFTER)
    client = connect(proxy.url)
    before = client.task(client.record(request_text="x"))

    changed = client.update(before.task_id, status="executing", if_match=before.etag)

    assert "executing" == changed.status
    with pytest.raises(PreconditionFailed):
        client.update(before.task_id, status="failed", if_match=before.etag)


def test_a_change_that_another_program_overtakes_is_settled(
    connect: Connect, faults: Faults, url: str
) -> None:
    """The response is lost, and another program ends the task before the request is sent again."""
    proxy = faults(ON, CUT_AFTER, Refusal(503, {"Retry-After": "1"}))
    client, other = connect(proxy.url), connect(url)
    task_id = client.record(request_text="x")

    def end() -> None:
        while len(proxy.seen) < 3:
            time.sleep(0.01)
        direct.update(task_id, status="completed")

    with Client(url) as direct:
        thread = threading.Thread(target=end)
        thread.start()
        changed = client.update(task_id, status="executing")
        thread.join()

    assert "completed" == changed.status == other.task(task_id).status
    states = [event.status for event in other.history(task_id)]
    assert ["pending", "executing", "completed"] == states


def test_a_change_that_was_never_made_is_not_settled(connect: Connect, faults: Faults) -> None:
    proxy = faults(ON, ON, CUT_BEFORE)
    client = connect(proxy.url)
    task_id = client.record(request_text="x")
    client.update(task_id, status="completed")

    with pytest.raises(Conflict):
        client.update(task_id, status="executing")


@pytest.mark.parametrize(
    ("status", "form"), [(408, "seconds"), (429, "date"), (503, "date of a clock that is late")]
)
def test_retry_after_is_obeyed(connect: Connect, faults: Faults, status: int, form: str) -> None:
    now = datetime.now(UTC)
    headers = {"Retry-After": "1"}
    if form != "seconds":
        then = now if form == "date" else now - timedelta(hours=1)
        headers = {
            "Date": format_datetime(then, usegmt=True),
            "Retry-After": format_datetime(then + timedelta(seconds=1), usegmt=True),
        }
    proxy = faults(Refusal(status, headers))
    connect(proxy.url).record(request_text="x")

    first, second = proxy.seen
    assert first.body == second.body
    assert second.at - first.at >= 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (408, Problem),
        (429, TooManyRequests),
        (502, Unavailable),
        (503, Unavailable),
        (504, TimedOut),
    ],
    ids=["408", "429", "502", "503", "504"],
)
def test_a_client_gives_up_after_its_tries(
    connect: Connect, alone: Faults, status: int, kind: type[Problem]
) -> None:
    proxy = alone(*[Refusal(status, {"X-Request-ID": "seen-here"})] * 9)

    with pytest.raises(Problem) as gave_up:
        connect(proxy.url, tries=3).query().first()

    assert (3, "seen-here") == (len(proxy.seen), gave_up.value.request_id)
    assert isinstance(gave_up.value, kind | Unavailable)


def test_responses_that_say_when_to_try_again_are_not_counted(
    connect: Connect, faults: Faults
) -> None:
    later = Refusal(503, {"Retry-After": "1"})
    proxy = faults(later, Refusal(503, {"Retry-After": "0"}), later, later)

    connect(proxy.url, tries=3).record(request_text="x")

    assert 5 == len(proxy.seen)


def test_a_request_with_one_try_is_sent_once(connect: Connect, alone: Faults) -> None:
    proxy = alone(Refusal(503, {"Retry-After": "1"}))

    with pytest.raises(Unavailable):
        connect(proxy.url, tries=1).whoami()

    assert 1 == len(proxy.seen)


def test_a_wait_that_is_too_long_is_not_begun(connect: Connect, alone: Faults) -> None:
    proxy = alone(Refusal(503, {"Retry-After": "50"}))
    began = time.monotonic()

    with pytest.raises(Unavailable) as gave_up:
        connect(proxy.url, timeout=20).whoami()

    assert time.monotonic() - began < 20
    assert (50, 1) == (gave_up.value.retry_after_seconds, len(proxy.seen))


def test_a_client_gives_up_when_its_time_is_over(connect: Connect, alone: Faults) -> None:
    proxy = alone(*[STALL] * 20)

    with pytest.raises(Unavailable, match="does not answer"):
        connect(proxy.url, timeout=2, tries=3).whoami()

    assert 2 <= len(proxy.seen) <= 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, Problem), (409, Conflict), (413, BodyTooLarge), (422, Invalid), (418, Invalid)],
    ids=["400", "409", "413", "422", "418"],
)
def test_a_refusal_is_not_sent_again(
    connect: Connect, alone: Faults, status: int, kind: type[Problem]
) -> None:
    proxy = alone(Refusal(status, body=b'{"detail": "not like this"}'))

    with pytest.raises(kind):
        connect(proxy.url).record(request_text="x")
    assert 1 == len(proxy.seen)


@pytest.mark.parametrize("status", [304, 404, 405])
def test_another_service_is_reported(connect: Connect, alone: Faults, status: int) -> None:
    proxy = alone(Refusal(status), Refusal(200, body=b"<html>welcome</html>"))
    client = connect(proxy.url)

    with pytest.raises(Unavailable, match=f"refuses the request: status {status}"):
        client.whoami()
    with pytest.raises(Unavailable, match="is not a task-audit service"):
        client.whoami()
    assert 2 == len(proxy.seen)


def test_a_response_without_end_is_not_collected(
    connect: Connect, alone: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "LARGEST_REPLY", 1000)
    proxy = alone(Refusal(200, body=b" " * 2000))

    with pytest.raises(Unavailable, match="the response is too large"):
        connect(proxy.url).whoami()
    assert 1 == len(proxy.seen)


@pytest.mark.parametrize("limit", [{"tries": 0}, {"timeout": 0}, {"timeout": float("nan")}])
def test_limits_that_allow_no_attempt_are_refused(
    connect: Connect, limit: dict[str, float]
) -> None:
    with pytest.raises(BadConfiguration, match="tries must be at least 1"):
        connect("http://127.0.0.1:1", **limit)


def test_batches_that_are_too_large_for_a_proxy_are_sent_in_halves(
    connect: Connect, faults: Faults
) -> None:
    proxy = faults(Refusal(413), ON, Refusal(413))
    result = connect(proxy.url).record_many(task() for _ in range(8))

    assert (8, 0, 5) == (result.recorded, result.duplicates, len(proxy.seen))


# --- keys and hosts -------------------------------------------------------------------------------


def test_a_key_is_sent_to_its_service_only_and_never_shown(
    connect: Connect, alone: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    other = alone(Refusal(401, body=b'{"detail": "no"}'))
    proxy = alone(Refusal(503), Refusal(307, {"Location": f"{other.url}/elsewhere"}))
    client = connect(proxy.url, key=KEY)

    with caplog.at_level("DEBUG"), pytest.raises(Problem) as refused:
        client.whoami()

    assert [f"Bearer {KEY}"] * 2 == [seen.headers["Authorization"] for seen in proxy.seen]
    assert ["Authorization" in seen.headers for seen in other.seen] == [False]
    assert KEY not in f"{client!r} {refused.value!r} {caplog.text}"
    assert "trying again" in caplog.text


def test_another_host_is_not_followed(connect: Connect, alone: Faults) -> None:
    proxy = alone(Refusal(302, {"Location": "http://localhost:1/"}))

    with pytest.raises(Unavailable, match="which is another host"):
        connect(proxy.url).whoami()


@pytest.mark.parametrize("url", ["http://audit.example.com", "http://10.0.0.1:8080"])
def test_a_key_does_not_go_over_a_network_without_tls(connect: Connect, url: str) -> None:
    with pytest.raises(BadConfiguration, match="has no TLS") as refused:
        connect(url, key=KEY)

    assert KEY not in str(refused.value)
    connect(url)
    connect(url, key=KEY, insecure=True)
    connect("http://[::1]:1", key=KEY)
    connect("http://localhost:1", key=KEY)


@pytest.mark.parametrize(
    "url", ["audit.example.com", "ftp://h", "http://u:p@h", "http://h/?a=1", "http://h:99999"]
)
def test_a_url_that_is_none_is_refused(connect: Connect, url: str) -> None:
    with pytest.raises(BadConfiguration, match="the URL of the service must"):
        connect(url)


def test_a_key_that_is_none_is_refused_without_showing_it(connect: Connect) -> None:
    with pytest.raises(BadConfiguration, match="must be a single API key") as refused:
        connect("https://h", key=f"{KEY} x")

    assert KEY not in str(refused.value)


def test_requests_say_who_sends_them(connect: Connect, faults: Faults) -> None:
    proxy = faults()
    connect(proxy.url).whoami()
    (seen,) = proxy.seen

    assert seen.headers["User-Agent"].startswith("task-audit-python/")
    assert "gzip" == seen.headers["Accept-Encoding"]
    assert uuid.UUID(seen.headers["X-Request-ID"])


def test_requests_carry_the_trace_of_the_program(connect: Connect, faults: Faults) -> None:
    from opentelemetry import trace
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

    proxy = faults()
    context = SpanContext(0x1234, 0x5678, is_remote=False, trace_flags=TraceFlags(1))
    with trace.use_span(NonRecordingSpan(context)):
        connect(proxy.url).whoami()

    assert f"00-{0x1234:032x}-{0x5678:016x}-01" == proxy.seen[0].headers["traceparent"]


def test_the_parts_of_a_client_show_no_key(connect: Connect) -> None:
    client = connect("https://audit.example.com", key=KEY)

    assert KEY not in repr(vars(getattr(client, "_wrapped", client)))
