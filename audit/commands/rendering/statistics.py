"""Statistics for people: bars by time, the most frequent values, and durations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from audit.commands.rendering.bars import bar
from audit.commands.rendering.records import Column, member
from audit.commands.rendering.screen import Look
from audit.commands.rendering.table import GAP, Cell, row_line, table, widths_of
from audit.commands.rendering.tasks import status_cell
from audit.commands.rendering.times import Zone, duration_text

#: A document of the service, or a part of one. Its numbers are text.
Document = Mapping[str, Any]

_STATES: Final = ("pending", "approved", "executing", "completed", "failed", "rejected")
_PERCENTILES: Final = ("p50", "p90", "p95", "p99", "max")
_WIDEST_BAR: Final = 60
_BAR_IN_A_PIPE: Final = 40
_NARROWEST_BAR: Final = 4
_WIDTH_OF_ALL_PERCENTILES: Final = 70
#: What a column of bars is called, by the unit of its interval.
_UNITS: Final = {"m": "TIME", "h": "TIME", "d": "DAY", "w": "WEEK OF", "mo": "MONTH", "y": "YEAR"}


def _state(name: str) -> Any:
    return lambda bucket: bucket["status"][name]


#: The columns of a histogram for programs.
BUCKET_COLUMNS: Final[Sequence[Column[Document]]] = (
    Column("start_utc", member("start")),
    Column("end_utc", member("end")),
    Column("partial", lambda bucket: "true" if bucket["partial"] else "false"),
    Column("total", member("total"), is_number=True),
    *(Column(name, _state(name), is_number=True) for name in _STATES),
)

#: The columns of facets for programs. The value of tasks without one is empty.
FACET_COLUMNS: Final[Sequence[Column[Document]]] = (
    Column("facet", member("facet")),
    Column("value", member("value")),
    Column("total", member("total"), is_number=True),
)

#: The columns of durations for programs. The row of all tasks has no value.
DURATION_COLUMNS: Final[Sequence[Column[Document]]] = (
    Column("value", lambda row: row["start"] if "start" in row else row.get("value")),
    Column("tasks", member("tasks"), is_number=True),
    *(Column(f"{name}_seconds", member(name), is_number=True) for name in _PERCENTILES),
)


def histogram_lines(histogram: Document, look: Look, zone: Zone) -> Iterator[str]:
    """Yield what a histogram says in total, and a bar for each bucket."""
    yield from _summary(histogram, look)
    buckets = histogram["buckets"]
    if not buckets:
        return
    yield ""
    unit = histogram["interval"].lstrip("0123456789")
    totals = [int(bucket["total"]) for bucket in buckets]
    failed = [int(bucket["status"]["failed"]) for bucket in buckets]
    series = [("TASKS", totals, "")]
    if any(failed) and failed != totals:
        series.append(("FAILED", failed, "red"))
    labels = [_label(bucket, unit, zone) for bucket in buckets]
    heads = [f"{_UNITS.get(unit, 'TIME')} ({histogram['tz']})"]
    heads += [name for name, _, _ in series]
    columns = [[Cell(label) for label in labels]]
    columns += [[Cell(f"{n:,}", right=True) for n in numbers] for _, numbers, _ in series]
    widths = [
        widths_of([[Cell(head)], *([cell] for cell in column)])[0]
        for head, column in zip(heads, columns, strict=True)
    ]
    room = _room(look, sum(widths) + len(GAP) * 2 * len(series))
    # Tasks have two thirds of the room, because their bars are longer.
    rooms = [room] if len(series) == 1 else [room - room // 3, room // 3]
    line = [Cell(heads[0], "bold")]
    spread: list[int | None] = [widths[0]]
    for head, width, space in zip(heads[1:], widths[1:], rooms, strict=True):
        line += [Cell(head, "bold", right=True), Cell("")]
        spread += [width, space]
    yield row_line(line, spread, look)
    for number, label in enumerate(labels):
        cells = [Cell(label, "" if totals[number] else "dim")]
        for (_, numbers, style), space in zip(series, rooms, strict=True):
            count = numbers[number]
            cells.append(Cell(f"{count:,}", style if count else "dim", right=True))
            cells.append(Cell(bar(count, max(numbers), space, look), style))
        yield row_line(cells, spread, look)
    if any(bucket["partial"] for bucket in buckets):
        yield ""
        yield look.styled("~ only a part of it is in the window", "dim")


def _summary(histogram: Document, look: Look) -> Iterator[str]:
    total = int(histogram["total"])
    states = []
    for name in (*_STATES[3:], *reversed(_STATES[:3])):
        if count := int(histogram["status"][name]):
            cell = status_cell(name, look)
            symbol, _, word = cell.text.partition(" ")
            states.append(look.styled(f"{symbol} {count:,} {word}", cell.style))
    yield GAP.join([f"{total:,} task{'' if total == 1 else 's'}", *states])
    if int(histogram["status"]["completed"]):  # otherwise the filter chooses the failed ones
        share = float(histogram["failure_rate"])
        yield f"{share:.1%} of the tasks that ran to their end failed"


def _label(bucket: Document, unit: str, zone: Zone) -> str:
    start = zone.at(datetime.fromisoformat(bucket["start"]))
    mark = " ~" if bucket["partial"] else ""
    match unit:
        case "y":
            return f"{start:%Y}{mark}"
        case "mo":
            return f"{start:%Y}-{start:%m}{mark}"
        case "w":
            return f"{start:%Y}-{start:%m-%d}{mark}"
        case "d":
            # %a would depend on the locale.
            day = "Mon Tue Wed Thu Fri Sat Sun".split()[start.weekday()]
            return f"{start:%Y}-{start:%m-%d} {day}{mark}"
        case _:
            return f"{start:%Y}-{start:%m-%d %H:%M}{mark}"


def facet_lines(facets: Document, look: Look) -> Iterator[str]:
    """Yield the most frequent values of each facet, each with a bar."""
    total = int(facets["total"])
    yield f"{total:,} task{'' if total == 1 else 's'}"
    for name, facet in facets["facets"].items():
        yield ""
        if facet["values"] is None:
            yield look.styled(name.upper(), "bold")
            yield (
                f"too many tasks to group: {int(facet['matching']):,}, and at most"
                f" {int(facet['at_most']):,} can be; --since {facet['fits']} would fit"
            )
            continue
        counts = [int(value["total"]) for value in facet["values"]]
        texts = [_shown(value, look) for value in facet["values"]]
        rows = [
            [Cell(text, _style(name, text, look)), Cell(f"{count:,}", right=True)]
            for text, count in zip(texts, counts, strict=True)
        ]
        header = [Cell(name.upper().replace("_", " "), "bold"), Cell("TASKS", "bold", right=True)]
        widths = widths_of([header, *rows])
        if look.width is not None:
            widths[0] = min(widths[0], max(_NARROWEST_BAR, look.width // 2))
        room = _room(look, sum(widths) + 2 * len(GAP))
        yield row_line(header, widths, look)
        for row, count in zip(rows, counts, strict=True):
            drawn = Cell(bar(count, max(counts), room, look), row[0].style)
            yield row_line([*row, drawn], [*widths, room], look)
        if facet["more"]:
            yield look.styled("there are more values; --top shows up to 100", "dim")


def _style(facet: str, text: str, look: Look) -> str:
    return status_cell(text, look).style if facet == "status" else ""


def facet_rows(facets: Document) -> Iterator[Document]:
    """Yield one row for each value of each facet. A facet that was refused has none."""
    for name, facet in facets["facets"].items():
        for value in facet["values"] or ():
            yield {"facet": name, "value": value["value"], "total": value["total"]}


def duration_lines(durations: Document, look: Look, zone: Zone) -> Iterator[str]:
    """Yield the percentiles of durations: of all tasks, and of each group."""
    groups = durations["groups"]
    starts = [zone.at(datetime.fromisoformat(row["start"])) for row in groups if "start" in row]
    # Bars of a day or longer begin at midnight.
    unit = "d" if all(start.hour == start.minute == 0 for start in starts) else "h"
    names = [_label(row, unit, zone) if "start" in row else _shown(row, look) for row in groups]
    head = f"{_UNITS[unit]} ({zone.label(*starts)})" if starts else "INTENT" if names else ""
    is_narrow = look.width is not None and look.width < _WIDTH_OF_ALL_PERCENTILES
    percentiles = ("p50", "p95") if is_narrow else _PERCENTILES
    rows = [
        [Cell(name), *_duration_cells(row, percentiles)]
        for name, row in zip(["all", *names], duration_rows(durations), strict=True)
    ]
    header = [head, "TASKS", *(name.upper() for name in percentiles)]
    yield from table(header, rows, look)
    for name, said in (
        ("unfinished", "matching, not completed or failed"),
        ("negative", "completed before its creation"),
    ):
        if number := int(durations[name]):
            yield look.styled(f"{number:,} {said}", "dim")


def _duration_cells(row: Document, percentiles: Sequence[str]) -> Iterator[Cell]:
    yield Cell(f"{int(row['tasks']):,}", right=True)
    for name in percentiles:
        yield Cell("-" if row[name] is None else duration_text(float(row[name])), right=True)


def _shown(row: Document, look: Look) -> str:
    return "(none)" if row["value"] is None else look.inert(row["value"])


def duration_rows(durations: Document) -> Iterator[Document]:
    """Yield a row for all tasks, and one for each group."""
    yield {name: durations[name] for name in ("tasks", *_PERCENTILES)}
    yield from durations["groups"]


def _room(look: Look, taken: int) -> int:
    if look.width is None:
        return _BAR_IN_A_PIPE
    return max(_NARROWEST_BAR, min(look.width - taken, _WIDEST_BAR))
