"""What both clients do with a running service."""

from __future__ import annotations

import threading
import uuid
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import pytest

from audit.client import (
    AsyncClient,
    Client,
    Conflict,
    Invalid,
    NewTask,
    PositionGone,
    PreconditionFailed,
    State,
    TaskNotFound,
    TaskPage,
)
from audit.web.routes import ROUTES
from tests.client.conftest import Connect
from tests.conftest import ago, task

#: The method of the clients for each operation of the OpenAPI document.
METHODS = {
    "get_failures": "failures",
    "get_by_service": "by_service",
    "audit_query": "query",
    "get_changes": "changes",
    "get_feed": "changes",  # the same changes, as a stream
    "get_histogram": "histogram",
    "get_facets": "facets",
    "get_durations": "durations",
    "export_tasks": "export",
    "get_export": "export",
    "record": "record",
    "get_task": "task",
    "get_history": "history",
    "update": "update",
    "whoami": "whoami",
}
#: For administrators.
WITHOUT_A_METHOD = {"list_exports"}
#: Ways to send the requests of others.
BESIDES = {"at", "close", "from_profile", "record_json", "record_many", "send"}


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_each_route_of_the_api_has_a_method(kind: type) -> None:
    operations = {
        route.handler.__name__
        for route in ROUTES
        if route.path.startswith("/api/v1/audit") and route.responses
    }

    assert set(METHODS) == operations - WITHOUT_A_METHOD
    assert set(METHODS.values()) | BESIDES == {name for name in vars(kind) if name[0] != "_"}


def test_a_task_is_recorded_changed_and_read(client: Any) -> None:
    task_id = client.record(
        request_text="Deploy payments 4.2",
        services_touched=["payments"],
        outcome={"n": 12345678901234567890123},
        status="executing",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    before = client.task(task_id)
    after = client.update(task_id, status=State.COMPLETED, if_match=before.etag)

    assert 7 == task_id.version
    assert ("executing", ["payments"]) == (before.status, before.services_touched)
    assert {"n": 12345678901234567890123} == before.outcome
    assert after == client.task(task_id)
    assert (State.COMPLETED, True) == (after.status, after.completed_at is not None)
    assert before.etag != after.etag
    assert '"etag"' not in after.model_dump_json()
    with pytest.raises(PreconditionFailed):
        client.update(task_id, status="failed", if_match=before.etag)
    with pytest.raises(Conflict) as refused:
        client.update(task_id, error_message="no")
    assert refused.value.request_id


def test_a_task_may_be_an_object_and_have_an_id(client: Any, me: str) -> None:
    one = NewTask(request_text="Rotate the secret", task_id=uuid.uuid4(), created_by=me)

    assert one.task_id == client.record(one) == client.record(one)
    assert one.task_id == client.record(one.model_dump(exclude_unset=True))
    assert 1 == client.query(created_by=me).total()
    with pytest.raises(Conflict):
        client.record(task_id=one.task_id, request_text="Other")
    with pytest.raises(Invalid):
        client.record(one, status="failed")


def test_many_tasks_are_recorded_in_several_requests(client: Any) -> None:
    tasks = [task(request_text=f"{number}") for number in range(2300)]

    result = client.record_many(iter(tasks))
    assert (2300, 0) == (result.recorded, result.duplicates)
    assert [one["task_id"] for one in tasks] == [str(task_id) for task_id in result.task_ids]
    again = client.record_many([*tasks[:10], {"request_text": "without id"}])
    assert (1, 10) == (again.recorded, again.duplicates)
    assert 0 == client.record_many([]).recorded


def test_an_invalid_task_among_many_is_named(client: Any, me: str) -> None:
    with pytest.raises(Invalid, match=r"^task 1: status: must be one of"):
        client.record_many([task(created_by=me), task(status="done"), task()])
    with pytest.raises(Invalid, match=r"^outcome.a: nan is not a JSON value"):
        client.record(request_text="x", outcome={"a": float("nan")})
    assert 0 == client.query(created_by=me).total()


def test_lists_are_read_page_by_page(client: Any, me: str) -> None:
    client.record_many(
        task(
            status="failed" if number % 2 else "completed",
            created_at=ago(minutes=number),
            created_by=me,
        )
        for number in range(25)
    )
    listed = client.query(created_by=me, status=["failed", "completed"], limit=4)

    assert [4, 4, 4, 4, 4, 4, 1] == [len(page.tasks) for page in listed.pages()]
    assert 25 == len({one.task_id for one in listed})
    assert [one.task_id for one in listed] == [one.task_id for one in client.query(created_by=me)]
    assert (25, 4, 25) == (listed.total(), len(listed.first().tasks), listed.first().total)
    assert 12 == client.failures(created_by=me).total()
    assert 12 == len(list(client.failures(last="2h", created_by=me)))
    assert 5 == len(list(client.query(created_by=me, offset=20, limit=2)))
    cursor = client.query(created_by=me, limit=20).first().next_cursor
    assert 5 == len(list(client.query(created_by=me, cursor=cursor)))
    assert [] == list(client.query(service="unknown"))


def test_a_list_is_complete_while_others_record(client: Any, url: str, me: str) -> None:
    before = client.record_many(
        task(created_by=me, created_at=ago(minutes=number)) for number in range(300)
    )
    ended = threading.Event()

    def record() -> None:
        with Client(url) as writer:
            while not ended.is_set():
                writer.record_many(task(created_by=who, created_at=ago()) for who in (me, "other"))

    writers = [threading.Thread(target=record) for _ in range(4)]
    for writer in writers:
        writer.start()
    try:
        found = [one.task_id for one in client.query(created_by=me, limit=20)]
    finally:
        ended.set()
        for writer in writers:
            writer.join()

    assert len(set(found)) == len(found)
    assert set(before.task_ids) <= set(found)
    assert set(found) <= {one.task_id for one in client.query(created_by=me)}


def test_a_page_says_where_its_feed_begins(client: Any) -> None:
    client.record(request_text="x")
    page: TaskPage = client.query().first()

    assert page.feed_position is not None
    assert page.feed_position >= 0


@pytest.mark.parametrize("name", ["a/b", "..", ".", "%2F", "a b&c=d?e#f", "größe", "+"])
def test_a_service_may_have_any_name(client: Any, me: str, name: str) -> None:
    client.record(request_text="x", services_touched=[name], created_by=me)
    client.record(request_text="x", services_touched=["other"], created_by=me)

    assert 1 == client.by_service(name, created_by=me).total()
    assert 1 == client.query(service=name, created_by=me).total()
    assert 1 == len(list(client.by_service(name, created_by=me)))


def test_filters_are_sent_as_they_are(client: Any) -> None:
    project, me = uuid.uuid4(), f"ada & bob {uuid.uuid4()}"
    wanted = client.record(
        request_text="x",
        project_id=project,
        created_by=me,
        outcome={"action_type": f"deploy+{me}", "n": [me]},
        services_touched=["a", me],
    )
    client.record(request_text="x", services_touched=["a"])

    for filters in (
        {"project_id": project},
        {"created_by": me},
        {"outcome": {"n": [me]}},
        {"intent": f"deploy+{me}"},
        {"service": ["a", me]},
        {"since": ago(hours=1), "until": ago(hours=-1), "created_by": me, "days": None},
    ):
        assert [wanted] == [one.task_id for one in client.query(**filters)], filters
    with pytest.raises(Invalid, match="since: must be a time with an offset"):
        client.query(since=datetime(2026, 1, 1)).first()  # noqa: DTZ001 - what is refused


def test_refusals_have_the_class_that_the_service_names(client: Any) -> None:
    with pytest.raises(TaskNotFound) as missing:
        client.task(uuid.uuid4())
    with pytest.raises(Invalid) as invalid:
        client.query(last="1x").first()
    with pytest.raises(Invalid):
        client.task("../query")

    assert missing.value.request_id
    assert [{"field": "last", "detail": invalid.value.detail.removeprefix("last: ")}] == (
        invalid.value.errors
    )


def test_statistics_agree_with_lists(client: Any, me: str) -> None:
    client.record_many(
        task(status=status, completed_at=ago(minutes=50), created_by=me)
        for status in ("completed", "failed", "failed")
    )
    histogram = client.histogram(interval="1h", tz="Europe/Berlin", last="1d", created_by=me)
    facets = client.facets("service", "status", top=5, created_by=me)
    durations = client.durations(by="intent", created_by=me)

    assert 3 == histogram.total == sum(bucket.total for bucket in histogram.buckets)
    assert 2 == histogram.status[State.FAILED]
    assert [("payments", 3)] == [(v.value, v.total) for v in facets.facets["service"].values]
    assert (3, "deploy_service") == (durations.tasks, durations.groups[0].value)


def test_the_history_of_a_task_has_its_events(client: Any) -> None:
    task_id = client.record(request_text="x")
    client.update(task_id, status="executing")
    client.update(task_id, status="failed", error_message="timeout")

    events = list(client.history(task_id))
    assert ["recorded", "changed", "changed"] == [event.kind for event in events]
    assert "timeout" == events[2].changed["error_message"].after
    assert 3 == len(client.history(task_id).first().events)
    with pytest.raises(TaskNotFound):
        list(client.history(uuid.uuid4()))


def test_changes_follow_each_other_without_gaps(client: Any, me: str) -> None:
    page = client.query().first()
    task_id = client.record(request_text="x", created_by=me)
    client.record(request_text="of somebody else")
    client.update(task_id, status="executing")
    client.update(task_id, status="failed")
    changes = client.changes(page.feed_position, created_by=me)

    first = next(iter(changes))
    assert (task_id, "pending", None) == (first.task_id, first.status, first.changed)
    assert first.position == changes.position
    rest = list(islice(iter(client.changes(first.position, created_by=me)), 2))
    assert ["executing", "failed"] == [change.status for change in rest]
    failed = client.changes(page.feed_position, created_by=me, status="failed")
    assert rest[1] == next(iter(failed))
    with pytest.raises(PositionGone) as gone:
        next(iter(client.changes(10**15)))
    assert 10**15 == gone.value.members["position"]


def test_a_caller_without_a_key_may_do_everything(client: Any) -> None:
    caller = client.whoami()

    assert (None, ["admin", "read", "record"], "nobody") == (caller.name, caller.scopes, caller.via)


def test_a_response_is_confirmed_before_it_is_used_again(client: Any, me: str) -> None:
    task_id = client.record(request_text="x", created_by=me)

    for status in ("approved", "executing", "failed"):
        client.update(task_id, status=status)
        for _ in range(2):
            assert status == client.task(task_id).status
            assert status == client.query(created_by=me).first().tasks[0].status


def test_a_client_without_a_service_says_so(connect: Connect) -> None:
    client = connect("http://127.0.0.1:1", tries=1)

    with pytest.raises(Exception, match=r"http://127.0.0.1:1 does not answer: "):
        client.whoami()
    assert "Client('http://127.0.0.1:1')" == repr(client)
