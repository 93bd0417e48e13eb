"""Tables for people: aligned columns, cut to the width of a terminal, whole without one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from audit.commands.rendering.screen import Look

GAP: Final = "  "
_NARROWEST: Final = 8


class Cell(NamedTuple):
    """A cell: inert text, its style, and where it links to."""

    text: str
    style: str = ""
    link: str | None = None
    right: bool = False


def drawn(cell: Cell, width: int | None, look: Look, *, is_last: bool = False) -> str:
    """Return a cell in its width. The last one of a line is not padded."""
    text = look.fit(cell.text, width, right=cell.right)
    if is_last:
        text = text.rstrip()
    bare = text.strip()
    if not bare:
        return text
    before, _, after = text.partition(bare)
    return before + look.styled(bare, cell.style, cell.link) + after


def table(
    header: Sequence[str], rows: Sequence[Sequence[Cell]], look: Look, *, is_cut: bool = True
) -> Iterator[str]:
    """Yield the lines of a table. `is_cut` says whether it may be cut to fit a terminal."""
    is_right = [cell.right for cell in rows[0]] if rows else [False] * len(header)
    heads = [Cell(name, "bold", right=right) for name, right in zip(header, is_right, strict=True)]
    lines = [heads, *rows]
    widths = widths_of(lines)
    if is_cut and look.width is not None:
        _shrink(widths, look.width - len(GAP) * (len(widths) - 1))
    for line in lines:
        yield row_line(line, widths, look)


def widths_of(lines: Sequence[Sequence[Cell]]) -> list[int]:
    """Return the width that each column needs."""
    from rich.cells import cell_len

    return [max(cell_len(cell.text) for cell in column) for column in zip(*lines, strict=True)]


def row_line(cells: Sequence[Cell], widths: Sequence[int | None], look: Look) -> str:
    """Return the cells of a row in one line."""
    last = len(cells) - 1
    return GAP.join(
        drawn(cell, width, look, is_last=number == last)
        for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()


def _shrink(widths: list[int], room: int) -> None:
    """Make the widest columns narrower until all fit, or none is wider than the narrowest."""
    while sum(widths) > room and max(widths) > _NARROWEST:
        widest = widths.index(max(widths))
        others = sum(widths) - widths[widest]
        second = sorted(widths)[-2] if len(widths) > 1 else _NARROWEST
        widths[widest] = max(room - others, min(second, widths[widest] - 1), _NARROWEST)
