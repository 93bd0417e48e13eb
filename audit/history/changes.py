"""The changes of the history since the last version, and which responses they may affect."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import asyncpg

from audit.history.freshness import Version
from audit.history.query import TaskFilter, TaskQuery
from audit.postgres import statements
from audit.postgres.pool import cluster_of, fetch_row, server_of
from audit.postgres.sessions import Place
from audit.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from audit.postgres.pool import Connection

#: If there are more changes than this between two versions, they are not read.
_MAX_READ: Final = 1000
#: If more tasks have changed, they are not read as lists show them.
_MAX_DOCUMENTS: Final = 100
#: The number of changes that are remembered.
_MAX_KEPT: Final = 4000
#: How long an `event_id` that was not visible is remembered. Most of them were rolled back.
_GAP_SECONDS: Final = timedelta(seconds=10)
#: The number of them that are remembered.
_MAX_GAPS: Final = 1000
#: After this many new versions in a row, the next one is expected to be new too.
_NEW_IN_A_ROW: Final = 2
_MICROSECOND: Final = timedelta(microseconds=1)
_NEVER: Final = datetime.max.replace(tzinfo=UTC)


class Facts(NamedTuple):
    """What lists filter by, as far as a change can alter it."""

    status: str
    services: frozenset[str]
    intent: str | None


class Change(NamedTuple):
    """A new or changed task: what lists filter by."""

    created_at: datetime
    project_id: str | None
    created_by: str | None
    after: Facts
    before: Facts | None
    """None if the task is new."""
    task_id: str
    """Written by PostgreSQL, so the texts of two ids compare as the ids do."""
    document: str | None
    """The task as lists show it, maybe after later changes of the same version; None if that is
    not known."""

    @classmethod
    def of(cls, members: list[Any], documents: Mapping[str, str]) -> Self:
        """Return the change that a row of `read_changes` describes after its `event_id`."""
        task_id, created_at, project_id, created_by, *facts = members
        status, services, intent, old_status, old_services, old_intent = facts
        return cls(
            datetime.fromisoformat(created_at),
            project_id,
            created_by,
            Facts(status, frozenset(services), intent),
            old_status and Facts(old_status, frozenset(old_services), old_intent),
            task_id,
            documents.get(task_id),
        )


class ChangeFilter:
    """Selects the changes that may affect the response to a query."""

    def __init__(self, query: TaskFilter, clock: datetime) -> None:
        """`clock` is the time that `days` count back from. It may be earlier than now."""
        self._until = query.until
        self._span = query.span
        if isinstance(query, TaskQuery) and (position := query.position):
            clock = position.clock or clock
            if position.total is not None or query.total == "none":
                # Tasks that are newer than the page are not counted either.
                page_end = position.created_at + _MICROSECOND
                self._until = min(self._until or page_end, page_end)
        query = query.watched
        self._since = query.window_start(clock)
        self._statuses = frozenset[str](query.statuses)
        self._services = frozenset(query.service)
        self._intents = frozenset(query.intent)
        self._created_by = query.created_by
        self._project_id = None if query.project_id is None else str(query.project_id)

    def selects(self, change: Change) -> bool:
        """Return whether the task matched the filters of the query, or does so now.

        `outcome` is left out, because a change does not contain it. The page is left out too: it
        may have other tasks, but its total or its offset may depend on this one.
        """
        return self._covers(change) and (self._match(change.before) or self._match(change.after))

    def matches(self, change: Change) -> tuple[bool, bool]:
        """Return whether the task matched the filters before the change, and after it."""
        is_covered = self._covers(change)
        return (
            is_covered and self._match(change.before),
            is_covered and self._match(change.after),
        )

    def departure(self, changes: Iterable[Change]) -> datetime:
        """Return when the first of the changed tasks that match leaves a window that moves."""
        if self._span is None:
            return _NEVER
        times = (change.created_at for change in changes if self.matches(change)[1])
        return min((at + self._span for at in times), default=_NEVER)

    def _covers(self, change: Change) -> bool:
        return (
            (self._since is None or change.created_at >= self._since)
            and (self._until is None or change.created_at < self._until)
            and (self._created_by is None or change.created_by == self._created_by)
            and (self._project_id is None or change.project_id == self._project_id)
        )

    def _match(self, facts: Facts | None) -> bool:
        return (
            facts is not None
            and (not self._statuses or facts.status in self._statuses)
            and self._services <= facts.services
            and (not self._intents or facts.intent in self._intents)
        )


class Changes:
    """Reads the current version and the changes since the last one, and remembers the newest.

    Every change is an event of the log. An event has an `event_id` from the start. It is in the
    queue until it gets a position in the log. Transactions commit in any order, so an event may
    become visible after events with a higher `event_id`. Such gaps are remembered for some seconds.

    The database also returns the number of visible events. If it does not match the changes that
    were read, or if the connection leads to another server, this class forgets all changes.
    """

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._metrics = metrics or Metrics()
        self.reads_documents = False
        """Whether the changed tasks are read as lists show them."""
        self.number = 0
        """The changes that were counted. It grows when tasks may have changed."""
        #: The last ones of them, without a gap.
        self._recent: deque[Change] = deque(maxlen=_MAX_KEPT)
        #: What the last statement saw: its snapshot, its server, the size of the log, the number of
        #: visible events, and the greatest `event_id` (0: none).
        self._snapshot = ""
        self._server = ""
        self._log_size: int | None = None
        self._events = 0
        self._seen_to = 0
        #: Where the primary was in its WAL when `number` was found.
        self._place: Place | None = None
        #: How many versions in a row had another snapshot than the one before.
        self._new_in_a_row = 0
        #: Each smaller `event_id` that was not visible, and the clock when that was noticed.
        self._gaps: dict[int, datetime] = {}

    def affect(self, selected: ChangeFilter, number: int) -> bool:
        """Return whether any change after `number` may affect what the filter is for.

        It is also true if a change in between is not remembered.
        """
        missing = self.number - number
        if missing > len(self._recent):
            return True
        return any(map(selected.selects, islice(reversed(self._recent), missing)))

    def since(self, number: int) -> Sequence[Change] | None:
        """Return the changes after `number`, the oldest first; None if one is not remembered."""
        missing = self.number - number
        if missing > len(self._recent):
            return None
        return list(islice(self._recent, len(self._recent) - missing, None))

    async def read(self, connection: Connection) -> Version:
        """Return the version that a statement sees now."""
        row = None
        if self._snapshot and self._new_in_a_row < _NEW_IN_A_ROW:
            # It costs a tenth of the statement that reads the changes.
            row = await fetch_row(connection, statements.READ_SNAPSHOT)
        if row is None or row["snapshot"] != self._snapshot:
            row = await fetch_row(
                connection,
                statements.READ_CHANGES,
                known_size=self._log_size,
                seen_to=self._seen_to,
                gaps=list(self._gaps),
                most=_MAX_READ,
                most_documents=_MAX_DOCUMENTS if self.reads_documents else 0,
            )
            number = self.number
            self._note(row)
            if self.number != number:
                # Later WAL, such as that of the sequencer, changes no task.
                self._place = _place(row, connection)
        return Version(
            self.number,
            row["clock"],
            server_of(connection),
            row["snapshot"],
            self._log_size or 0,
            self._events,
            self._place,
        )

    def forget(self) -> None:
        """Forget all changes, so that any task may have changed."""
        self._recent.clear()
        self.number += 1
        self._metrics.cache_reset()

    def _note(self, row: asyncpg.Record) -> None:
        """Note what `read_changes` returned."""
        events = row["log_size"] + row["queued"]
        if row["changes"] is None or row["server"] != self._server:
            self.forget()
            self._seen_to, self._gaps = row["newest_queued"], {}
        else:
            # The events of one task are in the order of their ids.
            changes = sorted(json.loads(row["changes"]), key=itemgetter(0))
            if len(changes) != events - self._events:
                self.forget()
            self.number += len(changes)
            documents = json.loads(row["documents"] or "{}")
            self._recent.extend(Change.of(members, documents) for _, *members in changes)
            self._note_gaps([event_id for event_id, *_ in changes], row["clock"])
        is_new = row["snapshot"] != self._snapshot
        self._new_in_a_row = self._new_in_a_row + 1 if is_new else 0
        self._snapshot, self._server = row["snapshot"], row["server"]
        self._log_size, self._events = row["log_size"], events

    def _note_gaps(self, seen: list[int], clock: datetime) -> None:
        """Note the events that became visible, and those before them that did not."""
        if seen and seen[-1] > self._seen_to:
            first = max(self._seen_to + 1 if self._seen_to else seen[0], seen[-1] - _MAX_GAPS)
            self._gaps |= dict.fromkeys(range(first, seen[-1]), clock)
            self._seen_to = seen[-1]
        if self._gaps:
            missing = [
                (event_id, noticed)
                for event_id, noticed in self._gaps.items()
                if event_id not in seen and clock - noticed <= _GAP_SECONDS
            ]
            self._gaps = dict(missing[-_MAX_GAPS:])


def _place(row: asyncpg.Record, connection: Connection) -> Place | None:
    """Return the place in the WAL that a row of `read_changes` names; None without a primary."""
    if row["lsn"] is None:
        return None
    return Place(cluster_of(connection), row["tables"], row["timeline"], row["lsn"])
