"""Compares this checkout with another one: `make bench AGAINST=/path/of/the/other`.

Each runs its own benchmark of its own code, on a database of its own, in turns: part by part and
round by round. What both have found is compared, figure by figure.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.figures import Comparison, Figure, ratio

_DATA = ".bench"
#: By its name, what each figure was in each round.
_Found = dict[str, list[float]]


def measure(
    other: Path, this: Path, parts: Sequence[str], *, tasks: int, seconds: float, rounds: int
) -> list[Comparison]:
    """Run both benchmarks in turns and return what they have in common.

    Raises:
        subprocess.CalledProcessError: one of them failed. It has said why.
    """
    length = ["--tasks", str(tasks), "--seconds", str(seconds), "--rounds", "1", "--no-peer"]
    found: dict[Path, _Found] = {other: {}, this: {}}
    for _ in range(rounds):
        for part in parts:
            for checkout, figures in found.items():
                subprocess.run(
                    [".venv/bin/python", "-m", "tests.bench", "--parts", part, *length],
                    cwd=checkout,
                    stdout=subprocess.DEVNULL,
                    check=True,
                )
                result = json.loads((checkout / _DATA / f"result-{tasks}.json").read_bytes())
                for name, value in medians(result[part], part):
                    figures.setdefault(name, []).append(value)
    return compare(found[other], found[this])


def compare(
    theirs: Mapping[str, Sequence[float]], ours: Mapping[str, Sequence[float]]
) -> list[Comparison]:
    """Return the figures that both have, in our order."""
    return [
        Comparison(
            name=name,
            other=Figure.of(theirs[name]),
            this=Figure.of(values),
            this_to_other=ratio(values, theirs[name]),
        )
        for name, values in ours.items()
        if len(values) == len(theirs.get(name, ())) and all(theirs[name])
    ]


def medians(result: Any, name: str) -> Iterator[tuple[str, float]]:
    """Yield every figure of a part by its name, except for ratios."""
    match result:
        case {"median": median, "rounds": _}:
            yield name, median
        case dict():
            for member, value in result.items():
                if "_to_" not in member and not member.startswith("to_"):
                    yield from medians(value, f"{name}, {member}")
        case list():
            for item in result:
                # What tells the items apart, such as the number of connections.
                told = (str(value) for value in item.values() if isinstance(value, str | int))
                yield from medians(item, f"{name}, {', '.join(told)}")
