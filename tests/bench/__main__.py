"""Measures the service, its peer and the limit: `make bench`."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import psycopg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.bench import (
    against,
    export,
    flatness,
    keys,
    load,
    mixed,
    reading,
    recording,
    repeated,
    replicas,
    report,
    single,
    statistics,
)
from tests.bench.client import Client
from tests.bench.figures import Machine, Result, mean_ratio
from tests.bench.run import Bench
from tests.bench.systems import ROOT

_WIDTH = 130
PARTS = (
    *("reading", "flatness", "recording", "repeated"),
    *("statistics", "mixed", "single", "keys", "replicas", "export"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for; print tables, write JSON and a plot."""
    given = _parsed(arguments)
    # As on Ctrl-C, every block that is entered is left: nothing that was started stays behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A narrow terminal wraps the tables; cut columns would be worse.
    console = Console(highlight=False, width=max(shutil.get_terminal_size().columns, _WIDTH))
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    if given.against is not None:
        compared = against.measure(
            given.against.resolve(),
            ROOT,
            given.parts,
            tasks=given.tasks,
            seconds=given.seconds,
            rounds=given.rounds,
        )
        report.show_comparison(compared, console)
        return
    began_at = datetime.now(UTC).isoformat(timespec="seconds")
    with (
        load.server(given.data_dir) as dsn,
        Client() as client,
        Client() as writer,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        bench = Bench(dsn, client, writer, progress, given.tasks, given.seconds, given.rounds)
        result = Result(
            began_at=began_at,
            machine=_machine(dsn),
            tasks=given.tasks,
            seconds=given.seconds,
            rounds=given.rounds,
        )
        path = given.data_dir / f"result-{given.tasks}.json"
        for part in given.parts:
            _measure(bench, result, part, with_peer=given.peer)
            # After each part: what fails later loses none.
            path.write_text(result.model_dump_json(indent=1) + "\n")
    report.show(result, console)
    path.with_suffix(".svg").write_text(report.plot(result))
    console.print(f"Written: {path} and {path.with_suffix('.svg')}")


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--tasks", type=int, default=3_000_000, help="size of the history")
    parser.add_argument("--seconds", type=float, default=2, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--parts", default="all", help=f"all, or some of {','.join(PARTS)}")
    parser.add_argument(
        "--peer", action=argparse.BooleanOptionalAction, default=True, help="measure the peer too"
    )
    parser.add_argument(
        "--data-dir", type=Path, default=Path(".bench"), help="where data and results are kept"
    )
    parser.add_argument(
        "--against", type=Path, metavar="CHECKOUT", help="compare with the code of another checkout"
    )
    given = parser.parse_args(arguments)
    given.parts = PARTS if given.parts == "all" else tuple(given.parts.split(","))
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if min(given.tasks, given.seconds, given.rounds) <= 0:
        parser.error("--tasks, --seconds and --rounds must be positive")
    if given.peer and "reading" in given.parts and find_spec("fastapi") is None:
        parser.error("the peer needs FastAPI: use `make bench`, or give --no-peer")
    return given


def _measure(bench: Bench, result: Result, part: str, *, with_peer: bool) -> None:
    match part:
        case "reading":
            result.reading = reading.measure(bench, with_peer=with_peer)
            questions = result.reading.values()
            result.service_to_peer = mean_ratio(one.service_to_peer for one in questions)
            result.repeated_to_peer = mean_ratio(one.repeated_to_peer for one in questions)
        case "flatness":
            result.flatness = flatness.measure(bench)
        case "recording":
            result.recording = recording.measure(bench)
        case "repeated":
            result.repeated = repeated.measure(bench)
        case "statistics":
            result.statistics = statistics.measure(bench)
        case "mixed":
            result.mixed = mixed.measure(bench)
        case "single":
            result.single = single.measure(bench)
        case "keys":
            result.keys = keys.measure(bench)
        case "replicas":
            result.replicas = replicas.measure(bench)
        case "export":
            result.export = export.measure(bench)


def _machine(dsn: str) -> Machine:
    with psycopg.connect(dsn) as connection:
        (version,) = connection.execute("SHOW server_version").fetchone() or ("unknown",)
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        processor=names[0] if names else platform.machine(),
        cores=os.cpu_count() or 1,
        memory_gib=round(memory / 2**30, 1),
        system=platform.system(),
        python=platform.python_version(),
        postgresql=str(version).split()[0],
    )


if __name__ == "__main__":
    main()
