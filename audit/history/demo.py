"""Generates a realistic history of tasks, to try the service and to measure it."""

from __future__ import annotations

import bisect
import itertools
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from audit.history.states import State

_NAMES = (
    "payments checkout catalog search inventory billing identity notifications shipping "
    "recommendations ledger pricing reviews media gateway sessions exports imports fraud tax"
).split()
_PARTS = (
    "api worker db cache web cron proxy queue stream jobs index metrics sync auth store "
    "router batch edge hooks admin mailer scheduler relay vault loader"
).split()
#: Most frequent first: every service alone, then its parts.
_SERVICES = _NAMES + [f"{name}-{part}" for part in _PARTS for name in _NAMES]
_SERVICES_CUMULATED = list(itertools.accumulate(1 / rank for rank in range(1, len(_SERVICES) + 1)))

_INTENTS = {
    "deploy_service": ("Deploy {service} release {release}", 46),
    "restart_service": ("Restart {service} after the memory alert", 18),
    "scale_service": ("Scale {service} to {release} replicas", 12),
    "run_playbook": ("Run the playbook of the week on {service}", 9),
    "update_config": ("Update the configuration of {service}", 7),
    "rotate_secret": ("Rotate the database secret of {service}", 5),
    "restore_backup": ("Restore {service} from last night's backup", 2),
    "revoke_access": ("Revoke access of a contractor to {service}", 1),
}
_INTENT_NAMES = list(_INTENTS)
_INTENTS_CUMULATED = list(itertools.accumulate(weight for _, weight in _INTENTS.values()))

_PEOPLE = [
    *(f"{name}@example.com" for name in "ada alan barbara donald edsger grace".split()),
    "release-bot",
    "autoscaler",
    "night-watch",
]
_PROJECTS = [str(uuid.UUID(int=0x5EED_0000_0000_4000_8000_0000_0000_0000 + n)) for n in range(12)]
_ERRORS = [
    "health check failed: 3 of 5 replicas did not become ready in 300 s",
    "image not found in the registry",
    "timeout after 600 s while waiting for the lock of the environment",
    "permission denied: the role may not read the secret",
    "connection refused by the target host",
]
_PER_DAY = [1, 1, 1, 1, 1, 2, 4, 7, 12, 15, 16, 15, 11, 13, 16, 16, 14, 10, 6, 4, 3, 3, 2, 2]
_PER_WEEK = [10, 11, 11, 10, 8, 2, 2]
_BURST_EVERY_DAYS = 9
#: A burst begins this long before the end of its nine days: five days include three working days.
_BURST_DAYS = range(1, 6)
_BURST_HOURS = 3
#: The weight of the hours in which a burst may begin: those in the middle of a working day.
_BURST_WEIGHT = 110


@dataclass(frozen=True)
class _Burst:
    """Some hours in which one service fails for one reason."""

    service: str
    error: str


def generate(tasks: int, *, days: int, until: datetime, seed: int = 1) -> Iterator[dict[str, Any]]:
    """Yield `tasks` tasks of the `days` days before `until`, oldest first.

    The members are those of `POST /api/v1/audit/tasks`, ready for JSON. The frequencies of the
    services are similar to Zipf's law, and the number of tasks depends on the hour and the weekday.
    Every nine days, a deployment breaks one service for some hours; the last time is one to six
    days before `until`. Only tasks of the last six hours are still open. The same arguments give
    the same tasks. Memory does not grow with `tasks`.
    """
    rng = random.Random(seed)  # noqa: S311 - repeatable on purpose
    start = until - timedelta(days=days)
    hours = days * 24
    weights = list(itertools.accumulate(_weight(start, hour) for hour in range(hours)))
    bursts = _bursts(rng, start, days)
    last_burst = None
    sent = 0
    for hour, weight in enumerate(weights):
        due = round(tasks * weight / weights[-1])
        began = start + timedelta(hours=hour)
        burst = bursts.get(hour)
        offsets = sorted(rng.randrange(3_600_000_000) for _ in range(due - sent))
        for offset in offsets:
            task = _task(rng, began + timedelta(microseconds=offset), until, burst)
            if burst is not last_burst:
                last_burst = burst
                if burst is not None:
                    _break(task, burst)
            yield task
        sent = due


def _weight(start: datetime, hour: int) -> int:
    at = start + timedelta(hours=hour)
    return _PER_DAY[at.hour] * _PER_WEEK[at.weekday()]


def _bursts(rng: random.Random, start: datetime, days: int) -> dict[int, _Burst]:
    """Return the burst of an hour, by the number of the hour from the start."""
    bursts = {}
    for end in range(days, 0, -_BURST_EVERY_DAYS):
        hours = [
            hour
            for day in _BURST_DAYS
            for hour in range((end - day - 1) * 24, (end - day) * 24)
            if hour >= 0 and _weight(start, hour) >= _BURST_WEIGHT
        ]
        if hours:
            first = rng.choice(hours)
            burst = _Burst(rng.choice(_NAMES), rng.choice(_ERRORS))
            bursts.update(dict.fromkeys(range(first, first + _BURST_HOURS), burst))
    return bursts


def _break(task: dict[str, Any], burst: _Burst) -> None:
    """Make a task the deployment with which a burst begins."""
    release = task["estimated_resources"]["cpu_seconds"]
    text, _ = _INTENTS["deploy_service"]
    task["request_text"] = text.format(service=burst.service, release=release)
    task["services_touched"] = [burst.service]
    if "outcome" in task:
        task["outcome"] = {"action_type": "deploy_service", "environment": "prod"}
    if task["status"] == State.FAILED:
        task["status"] = State.COMPLETED.value
        del task["error_message"], task["suggestions"]


def _pick(rng: random.Random, cumulated: list[float] | list[int]) -> int:
    return bisect.bisect_left(cumulated, rng.random() * cumulated[-1])


def _task(
    rng: random.Random, created_at: datetime, until: datetime, burst: _Burst | None
) -> dict[str, Any]:
    intent = _INTENT_NAMES[_pick(rng, _INTENTS_CUMULATED)]
    touched = [_SERVICES[_pick(rng, _SERVICES_CUMULATED)] for _ in range(rng.choice((1, 1, 2, 3)))]
    in_burst = burst is not None and rng.random() < 0.6
    if burst is not None and in_burst:
        touched[0] = burst.service
    services = list(dict.fromkeys(touched))
    state = _state(rng, until - created_at, failing=in_burst)
    took = timedelta(seconds=int(rng.expovariate(1 / 240)) + 2)
    approved_at = created_at + timedelta(seconds=rng.randrange(1, 600))
    completed_at = approved_at + took
    if approved_at > until:
        state = State.PENDING
    elif state.is_terminal and completed_at > until:
        state = State.EXECUTING
    release = rng.randrange(2, 400)
    task: dict[str, Any] = {
        "task_id": _task_id(rng, created_at),
        "project_id": rng.choice(_PROJECTS),
        "request_text": _INTENTS[intent][0].format(service=services[0], release=release),
        "created_by": rng.choice(_PEOPLE),
        "status": state.value,
        "created_at": created_at.isoformat(),
        "services_touched": services,
        "estimated_resources": {"cpu_seconds": release, "cost_cents": release // 7},
    }
    if state not in (State.PENDING, State.REJECTED):
        task["approved_at"] = approved_at.isoformat()
    if state is State.PENDING:
        return task
    task["outcome"] = {"action_type": intent, "environment": rng.choice(("prod", "prod", "test"))}
    if state.is_terminal:
        task["completed_at"] = completed_at.isoformat()
    if state is State.COMPLETED:
        task["actual_resources"] = {"cpu_seconds": int(took.total_seconds())}
        if intent == "run_playbook":
            task["external_ai_used"] = {"model": "planner", "tokens": release * 31}
    if state is State.FAILED:
        task["error_message"] = burst.error if burst and in_burst else rng.choice(_ERRORS)
        task["suggestions"] = ["retry", f"roll {services[0]} back"]
    return task


def _state(rng: random.Random, age: timedelta, *, failing: bool) -> State:
    if age < timedelta(hours=6) and rng.random() < 0.5:
        return rng.choice((State.PENDING, State.APPROVED, State.EXECUTING))
    chance = rng.random()
    if chance < (0.85 if failing else 0.05):
        return State.FAILED
    return State.REJECTED if chance > 0.97 else State.COMPLETED


def _task_id(rng: random.Random, created_at: datetime) -> str:
    """A version 7 UUID (RFC 9562): ids that grow with time keep an index compact."""
    milliseconds = int(created_at.timestamp() * 1000)
    random_bits = rng.getrandbits(74)
    return str(
        uuid.UUID(
            int=(milliseconds << 80)
            | (0x7 << 76)
            | ((random_bits >> 62) << 64)
            | (0b10 << 62)
            | (random_bits & ((1 << 62) - 1))
        )
    )
