"""A program that uses the client which openapi-python-client generates; prints JSON."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from uuid import UUID

from task_audit_client import AuthenticatedClient
from task_audit_client.api.ask import (
    audit_query,
    get_by_service,
    get_failures,
    get_history,
    get_task,
)
from task_audit_client.api.record import record, update
from task_audit_client.models import (
    HistoryBody,
    NewTask,
    Problem,
    RecordedBody,
    State,
    Task,
    TaskChange,
    TaskPageBody,
)
from task_audit_client.types import UNSET, Unset

client = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2])
now = datetime.now(UTC)


def page_of(answer: object) -> TaskPageBody:
    assert isinstance(answer, TaskPageBody), answer
    return answer


# Record one task, then several.
one = record.sync(client=client, body=NewTask("Deploy 1", services_touched=["python"]))
assert isinstance(one, RecordedBody), one
several = [
    NewTask(
        f"Deploy {number}",
        status=State.EXECUTING,
        services_touched=["python"],
        created_at=now - timedelta(hours=number),
        created_by=None,
    )
    for number in range(2, 7)
]
many = record.sync(client=client, body=several)
assert isinstance(many, RecordedBody), many

# List.
listed = page_of(get_by_service.sync("python", client=client, limit=4))

# Crawl by cursor.
crawled: list[str] = []
cursor: str | Unset = UNSET
while True:
    page = page_of(audit_query.sync(client=client, service=["python"], limit=4, cursor=cursor))
    crawled += [task.request_text for task in page.tasks]
    if page.next_cursor is None:
        break
    cursor = page.next_cursor

# Update, and find the failure with `since`.
change = TaskChange(status=State.FAILED, error_message="no space left")
changed = update.sync(many.task_ids[0], client=client, body=change)
assert isinstance(changed, Task), changed
failures = page_of(
    get_failures.sync(client=client, since=now - timedelta(days=60), service=["python"])
)

# Who changed it.
history = get_history.sync(many.task_ids[0], client=client)
assert isinstance(history, HistoryBody), history
*_, event = history.events
status = event.changed["status"]

# A typed 404, and a typed 422.
missing = get_task.sync(UUID(int=0), client=client)
assert isinstance(missing, Problem), missing
refused = audit_query.sync(client=client, days=3, since=now)
assert isinstance(refused, Problem), refused
assert not isinstance(refused.errors, Unset)

print(
    json.dumps(
        {
            "recorded": [one.recorded, many.recorded],
            "listed": [len(listed.tasks), listed.total],
            "crawled": crawled,
            "changed": [changed.status, changed.error_message],
            "history": [event.actor, status.from_, status.to],
            "failures": [task.request_text for task in failures.tasks],
            "missing": [missing.status, missing.type_],
            "refused": [error.field for error in refused.errors],
        }
    )
)
