"""What the parts of a run have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rich.progress import Progress

from tests.bench.client import Client, Load, Outcome, request
from tests.bench.systems import System

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Bench:
    """One run: its server, its clients, and how long and how often to measure."""

    #: Of the server's own database.
    dsn: str
    client: Client
    #: Writes while the other one reads.
    writer: Client
    progress: Progress
    tasks: int
    seconds: float
    rounds: int

    @property
    def sizes(self) -> Sequence[int]:
        """Return the sizes of history that are compared, the smallest first."""
        smaller = [size for size in (100_000, 3_000_000) if size < self.tasks]
        return [*(smaller or [max(self.tasks // 10, 1)]), self.tasks]

    def in_turns(self, part: str, items: Sequence[_Item]) -> Iterator[_Item]:
        """Yield every item once in each round, and show how far it is."""
        bar = self.progress.add_task(part, total=self.rounds * len(items))
        for _ in range(self.rounds):
            for item in items:
                yield item
                self.progress.advance(bar)

    def ask(
        self,
        system: System,
        target: str,
        connections: int,
        *,
        rate: float | None = None,
        seconds: float | None = None,
        headers: Sequence[str] = (),
        expected: int = 200,
    ) -> Outcome:
        """Ask one question again and again; return what came of it."""
        message = request(target, system.host, headers=headers)
        asked = Load(
            system.host, system.port, [message], connections, seconds or self.seconds, rate
        )
        return self.client.send(asked, expected)
