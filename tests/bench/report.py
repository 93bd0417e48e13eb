"""Shows what a run found: tables on the terminal, and a plot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from rich.console import Console
from rich.table import Table

from tests.bench.figures import (
    Answers,
    Comparison,
    Export,
    Figure,
    Flatness,
    Keyed,
    Mixed,
    Question,
    Recording,
    Repeated,
    Replicas,
    Result,
    Single,
    Statistics,
)

_MANY_TICKS = 9
_COLOURS = ("#0969da", "#8250df", "#cf222e", "#57606a")
_ROW, _LEFT, _WIDTH, _RIGHT, _TOP, _BOTTOM = 26, 290, 620, 40, 64, 44

#: The marks of one kind: a figure for each row, or none.
Series = Mapping[str, Sequence[Figure | None]]


def show(result: Result, console: Console) -> None:
    """Print tables for each part: medians, and with ratios their spread over the rounds."""
    machine = result.machine
    console.print(
        f"{result.tasks:,} tasks, {result.rounds} rounds of {result.seconds:g} s; "
        f"{machine.cores} cores of {machine.processor}, {machine.memory_gib:g} GiB, "
        f"PostgreSQL {machine.postgresql}, Python {machine.python}"
    )
    tables: list[Table] = []
    if result.reading is not None:
        tables += [_against_peer(result), _against_limit(result.reading), _load(result.reading)]
    if result.flatness is not None:
        tables.append(_flatness(result.flatness))
    if result.recording is not None:
        tables.append(_recording(result.recording))
    if result.repeated is not None:
        tables.append(_repeated(result.repeated))
    if result.statistics is not None:
        tables += [_statistics(result.statistics), _repeated(result.statistics.repeated)]
    if result.mixed is not None:
        tables.append(_mixed(result.mixed))
    if result.single is not None:
        tables.append(_single(result.single))
    if result.keys is not None:
        tables.append(_keys(result.keys))
    if result.replicas is not None:
        tables += _replicas(result.replicas)
    if result.export is not None:
        tables.append(_export(result.export))
    for table in tables:
        console.print()
        console.print(table)


def show_comparison(compared: Iterable[Comparison], console: Console) -> None:
    """Print what two checkouts gave."""
    table = _table("This checkout and the other, in turns", "figure", "other", "this", "times")
    for one in compared:
        table.add_row(one.name, _told(one.other), _told(one.this), _spread(one.this_to_other))
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def _against_peer(result: Result) -> Table:
    table = _table(
        "Answers per second, pages of 100, and how many times the peer's",
        "shape", "total", "peer", "service", "times", "repeated", "times",
    )  # fmt: skip
    for name, one in (result.reading or {}).items():
        table.add_row(
            name,
            f"{one.total:,}",
            _told(_best(one.peer)),
            _told(one.service.per_second),
            _spread(one.service_to_peer),
            _told(one.repeated.per_second),
            _spread(one.repeated_to_peer),
        )
    if result.service_to_peer is not None and result.repeated_to_peer is not None:
        means = (_short(result.service_to_peer), _short(result.repeated_to_peer))
        table.add_row("geometric mean", "", "", "", means[0], "", means[1])
    return table


def _against_limit(reading: Mapping[str, Question]) -> Table:
    table = _table(
        "Answers per second to 16 connections, and their share of the limit",
        "shape", "limit", "service", "share", "limit of 10", "service", "share",
    )  # fmt: skip
    for name, one in reading.items():
        table.add_row(
            name,
            _told(one.limit),
            _told(one.service.per_second_16),
            _spread(one.service_to_limit),
            _told(one.limit_page_of_10),
            _told(one.service_page_of_10),
            _spread(one.service_to_limit_page_of_10),
        )
    return table


def _load(reading: Mapping[str, Question]) -> Table:
    table = _table(
        "Answers per second to 16 and 64; latency in ms at 70 % of the better; processor ms each",
        "shape", "of", "16", "64", "p50", "p95", "p99", "own", "PostgreSQL", "client",
    )  # fmt: skip
    for name, question in reading.items():
        shown = name
        for of, one in (
            ("service", question.service),
            ("repeated", question.repeated),
            ("peer", question.peer),
        ):
            if one is not None:
                table.add_row(shown, of, *map(_told, _in_order(one)))
                shown = ""
    return table


def _best(answers: Answers | None) -> Figure | None:
    return answers.per_second if answers else None


def _in_order(one: Answers) -> Sequence[Figure | None]:
    return (
        one.per_second_16, one.per_second_64, one.p50_ms, one.p95_ms, one.p99_ms,
        one.system_cpu_ms, one.postgresql_cpu_ms, one.client_cpu_ms,
    )  # fmt: skip


def _flatness(flatness: Mapping[str, Flatness]) -> Table:
    sizes = list(next(iter(flatness.values())).median_ms)
    table = _table(
        "Median latency in ms, one client, by tasks in the history",
        "shape", *(f"{size:,}" for size in sizes), "largest / smallest",
    )  # fmt: skip
    for name, one in flatness.items():
        medians = (_told(one.median_ms[size]) for size in sizes)
        table.add_row(name, *medians, _spread(one.largest_to_smallest))
    return table


def _recording(recording: Sequence[Recording]) -> Table:
    table = _table("Recording", "way", "connections", "tasks per second", "of bare COPY")
    for one in recording:
        table.add_row(one.way, str(one.connections), _told(one.per_second), _spread(one.to_copy))
    return table


def _repeated(repeated: Repeated) -> Table:
    table = _table("The same question again", "one process answers", "per second", "of trivial")
    table.add_row("a trivial route", _told(repeated.trivial_per_second), "")
    whole = (_told(repeated.page_per_second), _spread(repeated.page_to_trivial))
    table.add_row(repeated.shape, *whole)
    if repeated.not_modified_per_second is None:
        table.add_row("304", "not supported: no ETag", "")
    else:
        rate = _told(repeated.not_modified_per_second)
        table.add_row("304", rate, _spread(repeated.not_modified_to_trivial))
    return table


def _statistics(statistics: Statistics) -> Table:
    sizes = list(next(iter(statistics.latency.values())).median_ms)
    table = _table(
        "Latency of statistics in ms, one client, by tasks in the history: median, p95",
        "question", *(f"{size:,}" for size in sizes), "largest / smallest",
    )  # fmt: skip
    for name, one in statistics.latency.items():
        told = (f"{_told(one.median_ms[size])}, {_told(one.p95_ms[size])}" for size in sizes)
        table.add_row(name, *told, _spread(one.largest_to_smallest))
    return table


def _mixed(mixed: Sequence[Mixed]) -> Table:
    table = _table(
        "Repeated questions beside writes of one task each; cores used",
        "questions", "writes/s due", "done", "p99 ms", "answers/s", "of no writes",
        "service", "PostgreSQL", "clients",
    )  # fmt: skip
    for one in mixed:
        table.add_row(
            f"{one.questions} ({one.different})",
            f"{one.writes_due:,}",
            _told(one.writes_per_second),
            _told(one.write_p99_ms),
            _told(one.per_second),
            _spread(one.to_no_writes),
            *map(_told, (one.service_cores, one.postgresql_cores, one.clients_cores)),
        )
    return table


def _single(single: Sequence[Single]) -> Table:
    table = _table(
        "Requests for one task each, against plain tables",
        "way", "connections", "requests/s", "of one connection", "pgbench", "of pgbench",
        "client's cores",
    )  # fmt: skip
    for one in single:
        table.add_row(
            one.way,
            str(one.connections),
            _told(one.per_second),
            _spread(one.to_one_connection),
            _told(one.pgbench_per_second),
            _spread(one.to_pgbench),
            _told(one.client_cores),
        )
    return table


def _keys(keys: Sequence[Keyed]) -> Table:
    table = _table(
        "Answers per second without and with an API key; the service's time for each answer",
        "question", "connections", "without", "with", "of without", "µs without", "µs with",
    )  # fmt: skip
    for one in keys:
        table.add_row(
            one.question,
            str(one.connections),
            _told(one.without_key_per_second),
            _told(one.with_key_per_second),
            _spread(one.with_to_without),
            _told(one.without_key_cpu_us),
            _told(one.with_key_cpu_us),
        )
    return table


def _replicas(replicas: Replicas) -> list[Table]:
    waited = _table(
        "Reads on a standby that wait for a write just acknowledged; the wait alone",
        "writers", "reads in a round", "p50 ms", "p95", "longest",
    )  # fmt: skip
    for one in replicas.waited:
        figures = (one.reads, one.p50_ms, one.p95_ms, one.longest_ms)
        waited.add_row(str(one.writers), *map(_told, figures))
    read = _table("Computed pages of 100, 16 connections", "of", "answers/s", "PostgreSQL ms each")
    for on in replicas.read:
        read.add_row(on.server, _told(on.per_second), _told(on.postgresql_cpu_ms))
    recorded = _table(
        "POST of 100 tasks, 4 connections; processor time of PostgreSQL for each task",
        "standbys", "tasks/s", "primary µs", "standby µs",
    )  # fmt: skip
    for to in replicas.recorded:
        recorded.add_row(
            str(to.standbys), *map(_told, (to.per_second, to.primary_cpu_us, to.standby_cpu_us))
        )
    ((pages, tasks),) = {(work.pages, work.tasks) for work in replicas.shared}
    shared = _table(
        f"{pages} computed pages of 100, and {tasks} tasks recorded meanwhile; seconds of processor"
        " time of all processes",
        "standbys", "primary", "each standby", "service",
    )  # fmt: skip
    for work in replicas.shared:
        shared.add_row(
            str(work.standbys),
            _told(work.primary_cpu),
            ", ".join(map(_told, work.standbys_cpu)) or "-",
            _told(work.service_cpu),
        )
    return [waited, read, recorded, shared]


def _export(export: Sequence[Export]) -> Table:
    table = _table(
        "Exports of all tasks: growth of the worker in MiB; ms of another page without and beside",
        "format", "tasks/s", "MiB", "MiB, slow reader", "p50", "beside", "times", "p95", "beside",
        "times",
    )  # fmt: skip
    for one in export:
        table.add_row(
            one.form,
            _told(one.tasks_per_second),
            _told(one.memory_mib),
            _told(one.slow_memory_mib),
            _told(one.alone_p50_ms),
            _told(one.beside_p50_ms),
            _spread(one.p50_beside_to_alone),
            _told(one.alone_p95_ms),
            _told(one.beside_p95_ms),
            _spread(one.p95_beside_to_alone),
        )
    return table


def _told(figure: Figure | None) -> str:
    return "-" if figure is None else _short(figure.median)


def _spread(figure: Figure | None) -> str:
    if figure is None or len(figure.rounds) == 1:
        return _told(figure)
    return f"{_short(figure.median)} ({_short(figure.lowest)} to {_short(figure.highest)})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plot(result: Result) -> str:
    """Return an SVG: throughput above, latency by size of history below."""
    parts: list[str] = []
    height = 0
    if result.reading is not None:
        questions = list(result.reading.values())
        series: dict[str, Sequence[Figure | None]] = {
            "service": [one.service.per_second for one in questions],
            "repeated question": [one.repeated.per_second for one in questions],
            "peer": [_best(one.peer) for one in questions],
            "limit (pgbench)": [one.limit for one in questions],
        }
        title = f"Answers per second, pages of 100, {result.tasks:,} tasks"
        height += _chart(parts, height, title, list(result.reading), series)
    if result.flatness is not None:
        flat = list(result.flatness.values())
        by_size = {
            f"{size:,} tasks": [one.median_ms[size] for one in flat] for size in flat[0].median_ms
        }
        title = "Median latency in milliseconds, pages of 100, one client"
        height += _chart(parts, height, title, list(result.flatness), by_size)
    width = _LEFT + _WIDTH + _RIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _chart(parts: list[str], top: int, title: str, rows: Sequence[str], series: Series) -> int:
    """Draw a row for each shape on a logarithmic scale; return the height that it took.

    A mark is a median, the line through it the spread of the rounds.
    """
    drawn = [
        (name, figures, colour)
        for (name, figures), colour in zip(series.items(), _COLOURS, strict=False)
        if any(figures)
    ]
    ticks = _ticks(
        value
        for _, figures, _ in drawn
        for figure in figures
        if figure is not None
        for value in (figure.lowest, figure.highest)
    )
    first, last = math.log10(ticks[0]), math.log10(ticks[-1])

    def x(value: float) -> float:
        return round(_LEFT + _WIDTH * (math.log10(value) - first) / (last - first), 1)

    parts.append(f'<text x="16" y="{top + 24}" font-size="16">{escape(title)}</text>')
    place = _LEFT
    for name, _, colour in drawn:
        parts.append(f'<circle cx="{place}" cy="{top + 43}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{place + 10}" y="{top + 48}">{escape(name)}</text>')
        place += 150
    bottom = top + _TOP + _ROW * len(rows)
    for tick in ticks:
        at = x(tick)
        parts.append(
            f'<line x1="{at}" y1="{top + _TOP}" x2="{at}" y2="{bottom}" stroke="#d0d7de"/>'
            f'<text x="{at}" y="{bottom + 18}" text-anchor="middle">{tick:,g}</text>'
        )
    for number, row in enumerate(rows):
        y = top + _TOP + _ROW * number + _ROW // 2
        parts.append(
            f'<text x="{_LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(row)}</text>'
            f'<line x1="{_LEFT}" y1="{y}" x2="{_LEFT + _WIDTH}" y2="{y}" stroke="#eaeef2"/>'
        )
        for _, figures, colour in drawn:
            figure = figures[number]
            if figure is not None:
                parts.append(
                    f'<line x1="{x(figure.lowest)}" y1="{y}" x2="{x(figure.highest)}" y2="{y}" '
                    f'stroke="{colour}" stroke-width="2"/>'
                    f'<circle cx="{x(figure.median)}" cy="{y}" r="5" fill="{colour}"/>'
                )
    return _TOP + _ROW * len(rows) + _BOTTOM


def _ticks(values: Iterable[float]) -> list[float]:
    """Return round numbers around all values: powers of ten, and 2 and 5 between where few."""
    found = list(values)
    lowest, highest = min(found), max(found)
    powers = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1)
    for steps in ((1, 2, 5), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        below = max(tick for tick in ticks if tick <= lowest)
        above = min((tick for tick in ticks if tick > highest), default=ticks[-1] * 10)
        ticks = [tick for tick in ticks if below <= tick < above] + [above]
        if len(ticks) <= _MANY_TICKS:
            break
    return ticks
