"""The same questions for a load test of your own, against any deployment.

    AUDIT_URL=https://audit.example.com AUDIT_KEY=... locust -f tests/bench/locustfile.py

AUDIT_KEY may be left out; given, it is sent as `Authorization: Bearer`. Which services are
frequent, rare or gone is read from the deployment's newest and oldest tasks at the start.
"""

from __future__ import annotations

import json
import os
import random
import sys
import urllib.request
from typing import Any

from locust import FastHttpUser, between, events, task
from locust.env import Environment

from tests.bench.shapes import API, services_of, shapes

PAGE = 100
_SAMPLE = 1000
_KEY = os.environ.get("AUDIT_KEY")
_HEADERS = {"Authorization": f"Bearer {_KEY}"} if _KEY else {}
#: Name and target of each question, found at the start.
_questions: list[tuple[str, str]] = []


@events.test_start.add_listener
def find_questions(environment: Environment, **_: object) -> None:
    """Fit the shapes to the history of the deployment."""
    url = (environment.host or os.environ["AUDIT_URL"]).rstrip("/")
    try:
        _questions[:] = _found(url)
    except (OSError, ValueError, KeyError) as failure:
        sys.exit(f"{url} does not answer as this service does: {failure}")


def _found(url: str) -> list[tuple[str, str]]:
    newest = _get(url, f"{API}/query?limit={_SAMPLE}")
    total = int(newest["total"])
    oldest = _get(url, f"{API}/query?limit={_SAMPLE}&offset={max(total - _SAMPLE, 0)}")
    questions = []
    for shape in shapes(total, services_of(newest["tasks"], oldest["tasks"])):
        cursor = None
        if shape.by_cursor:
            # By offset once; from there on as a crawl goes on.
            cursor = _get(url, shape.target(PAGE))["next_cursor"]
        questions.append((shape.name, shape.target(PAGE, cursor)))
    return questions


def _get(url: str, target: str) -> dict[str, Any]:
    asked = urllib.request.Request(url + target, headers=_HEADERS)
    with urllib.request.urlopen(asked) as answer:
        page: dict[str, Any] = json.load(answer)
    return page


class Auditor(FastHttpUser):
    """Asks one question after the other, at random."""

    host = os.environ.get("AUDIT_URL")
    wait_time = between(0.1, 1)

    @task
    def ask(self) -> None:
        name, target = random.choice(_questions)
        self.client.get(target, name=name, headers=_HEADERS)
