"""Reads JSON text within limits, one task at a time. The API, files and programs all use it.

Python's own decoder does the work. Hooks refuse what it would accept or alter in silence: a member
that an object has twice, NaN and Infinity, and numbers that are longer when they are written out.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from audit.errors import FieldError, Invalid, Malformed
from audit.settings import Settings

_SPACE = re.compile(r"[ \t\r\n]*")
_SPACE_BYTES: Final = b" \t\r\n"
_AFTER_A_VALUE: Final = frozenset(" \t\r\n,]")
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NUL_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
#: Escapes that are not half of a character: `\\`, `\n`, …, and whole surrogate pairs.
_WHOLE_ESCAPES = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|[^u])", re.DOTALL
)
_HALF_A_CHARACTER: Final = "half of a surrogate pair is not allowed in JSON text"
#: An exponent with more digits than this is beyond every limit.
_LONGEST_EXPONENT: Final = 6
#: The decoder reports a text that is cut off at most this many characters before its end.
_LONGEST_TOKEN: Final = 16


class Element(NamedTuple):
    """One task: its text as it was written, and its value."""

    label: str
    """What stands before a member's name in errors."""
    text: str
    value: Any


class _TooLong(Exception):
    """A number has too many digits."""


class _Repeated(Exception):
    """An object has a member twice."""


class _Constant(Exception):
    """NaN or Infinity."""


class _Pairs(list[tuple[str, Any]]):
    """The members of an object, repeated ones too."""


def place(label: str, field: str = "") -> str:
    """Return how an error names a member of the task that `label` names, or the task itself."""
    return label + field if field else label.rstrip(".: ")


def refused(label: str, detail: str, field: str = "") -> Invalid:
    """Return the error for one member of a task, or for the task itself."""
    where = place(label, field)
    errors: list[FieldError] = [{"field": where, "detail": detail}]
    return Invalid(f"{where}: {detail}" if where else detail, errors=errors)


def _by_position(position: int | None, _line: int) -> str:
    return "" if position is None else f"{position}."


class Reader:
    """Reads the JSON texts of one request, file or call. It is not safe to share with a thread."""

    def __init__(self, settings: Settings) -> None:
        self._task_bytes = settings.max_task_bytes
        self._digits = settings.max_number_digits
        self._nesting = settings.max_nesting
        #: How much longer the numbers of the text are when PostgreSQL writes them out.
        self._growth = 0
        self._read_from = json.JSONDecoder(
            object_pairs_hook=_object,
            parse_int=self._int,
            parse_float=self._float,
            parse_constant=_constant,
        ).raw_decode
        self._encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False).encode

    def read(self, text: str, label: str = "") -> Any:
        """Return the value of a JSON text that has no white space around it.

        Raises:
            Malformed: it is not JSON, or contains a NUL character or half a character.
            Invalid: it is over a limit, or an object has a member twice.
        """
        # Before it is read: reading may take as long as the text is.
        self._check_size(text, label)
        try:
            value, end = self._decode(text, 0, label)
        except json.JSONDecodeError as broken:
            raise _not_json(broken.msg, label, broken.pos) from None
        if end < len(text):
            raise _not_json("unexpected text after the value", label, end)
        self._check(text, value, label)
        return value

    def elements(
        self, pieces: Iterable[str], label: Callable[[int | None, int], str] = _by_position
    ) -> Iterator[Element]:
        """Yield the elements of a JSON array, or the one value, of a text that comes in pieces.

        No more of the text is held, nor read at once, than one element may have, and a piece.
        `label` names an element by its position in the array and the line on which it begins.

        Raises:
            Malformed, Invalid: as for `read`.
        """
        window = _Window(pieces)
        if window.peek() != "[":
            yield self._next(window, None, label)
        else:
            window.at += 1
            position = 0
            follows = window.peek()
            while follows != "]":
                yield self._next(window, position, label)
                position += 1
                follows = window.peek()
                if follows not in ("]", ","):
                    raise _not_json("expecting ',' or ']'", "", window.offset)
                if follows == ",":
                    window.at += 1
                    window.peek()
            window.at += 1
        if window.peek():
            raise _not_json("unexpected text after the value", "", window.offset)

    def _next(
        self, window: _Window, position: int | None, name: Callable[[int | None, int], str]
    ) -> Element:
        """Read the element that begins at the window's place."""
        label = name(position, window.line)
        while True:
            problem = None
            try:
                value, end = self._decode(window.text, window.at, label)
                if isinstance(value, dict) or window.text[end : end + 1] in _AFTER_A_VALUE:
                    break
                # A number may go on in the next piece.
                read_to = end
            except json.JSONDecodeError as broken:
                is_string = broken.msg.startswith("Unterminated string")
                read_to = len(window.text) if is_string else broken.pos
                problem = _not_json(broken.msg, label, window.offset + broken.pos - window.at)
            is_large = len(window.text) - window.at > self._task_bytes
            if is_large and read_to > len(window.text) - _LONGEST_TOKEN:
                raise self._too_large(label, window.drained() if position is None else None)
            if is_large or not window.grow():
                if problem is None:
                    break
                raise problem
        text = window.text[window.at : end]
        window.at = end
        self._check_size(text, label)
        self._check(text, value, label)
        return Element(label, text, value)

    def _decode(self, text: str, at: int, label: str) -> tuple[Any, int]:
        self._growth = 0
        try:
            try:
                return self._read_from(text, at)
            except _Repeated:
                raise refused(label, "is given twice", _repeated(text, at)) from None
        except RecursionError:
            raise self._too_deep(label) from None
        except _Constant as constant:
            raise _not_json(f"{constant} is not a JSON value", label) from None
        except _TooLong as number:
            raise self._too_long(label, str(number)) from None

    def _check_size(self, text: str, label: str) -> None:
        if len(text) > self._task_bytes or not text.isascii():
            try:
                size = len(text.encode())
            except UnicodeEncodeError:
                raise Malformed(_named(label, _HALF_A_CHARACTER)) from None
            if size > self._task_bytes:
                raise self._too_large(label, size)

    def _check(self, text: str, value: Any, label: str) -> None:
        """Refuse what the decoder has read, but no answer could carry."""
        if self._growth and len(text) + self._growth > self._task_bytes:
            raise refused(
                label,
                f"has {len(text) + self._growth} bytes when its numbers are written out; "
                f"the limit is {self._task_bytes} (max_task_bytes)",
            )
        if text.count("[") + text.count("{") > self._nesting and _is_deeper(value, self._nesting):
            raise self._too_deep(label)
        if "\\u" in text:
            _check_escapes(text, label)

    def _too_large(self, label: str, size: int | None) -> Invalid:
        has = "has more" if size is None else f"has {size} bytes"
        return refused(label, f"{has}; the limit is {self._task_bytes} bytes (max_task_bytes)")

    def _too_deep(self, label: str) -> Invalid:
        return refused(label, f"is nested over {self._nesting} levels deep (max_nesting)")

    def _too_long(self, label: str, number: str) -> Invalid:
        shown = number if len(number) <= _LONGEST_TOKEN else f"{number[:_LONGEST_TOKEN]}…"
        return refused(
            label,
            f"the number {shown} has over {self._digits} digits when it is written out "
            "(max_number_digits)",
        )

    def _int(self, token: str) -> int:
        if len(token) > self._digits and len(token.lstrip("-")) > self._digits:
            raise _TooLong(token)
        return int(token)

    def _float(self, token: str) -> float:
        if len(token) > self._digits or "e" in token or "E" in token:
            digits = _written_digits(token)
            if digits > self._digits:
                raise _TooLong(token)
            self._growth += max(0, digits - len(token))
        return float(token)

    # --- values of Python -------------------------------------------------------------------------

    def write(self, value: Any, label: str = "", field: str = "") -> tuple[str, Any]:
        """Return the JSON text of a Python value, and the value that others read from it.

        The two values are equal, except that a tuple becomes a list.

        Raises:
            Malformed: a text has a NUL character or half a character.
            Invalid: it is over a limit, or JSON cannot say it: NaN, bytes, a set, a number as name.
        """
        try:
            text = self._encode(value)
            read = self.read(text, label)
        except Invalid:
            self._check_value(value, label, field)
            raise
        except (TypeError, ValueError, RecursionError) as unfit:
            self._check_value(value, label, field)
            raise refused(label, str(unfit), field) from None
        if read != value:
            self._check_value(value, label, field)
        return text, read

    def _check_value(self, value: Any, label: str, field: str) -> None:
        level: list[tuple[tuple[Any, Any] | None, Any]] = [(None, value)]
        for _ in range(self._nesting + 1):
            inner: list[tuple[tuple[Any, Any] | None, Any]] = []
            for path, one in level:
                problem = self._not_json(one)
                if problem:
                    raise refused(label, problem, ".".join(filter(None, (field, _path(path)))))
                if isinstance(one, dict):
                    inner.extend(((path, name), member) for name, member in one.items())
                elif isinstance(one, list | tuple):
                    inner.extend(((path, index), member) for index, member in enumerate(one))
            level = inner
        if level:
            raise self._too_deep(label)

    def _not_json(self, value: Any) -> str:
        """Return why JSON cannot say a value, whatever it contains; empty: it can."""
        if value is None or isinstance(value, str | bool | list | tuple):
            return ""
        if isinstance(value, dict):
            others = (type(name).__name__ for name in value if not isinstance(name, str))
            other = next(others, None)
            return f"has a member whose name is {other}, not text" if other else ""
        if isinstance(value, float):
            return "" if math.isfinite(value) else f"{value} is not a JSON value"
        if isinstance(value, int):
            is_short = value.bit_length() <= self._digits * 4 and abs(value) < 10**self._digits
            return "" if is_short else f"has over {self._digits} digits (max_number_digits)"
        return f"{type(value).__name__} is not a JSON value"


# --- pieces ---------------------------------------------------------------------------------------


def texts(pieces: Iterable[bytes]) -> Iterator[str]:
    """Decode UTF-8 that comes in pieces. A byte order mark at its start is passed over.

    Raises:
        Malformed: it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for piece in without_mark(pieces):
            yield decoder.decode(piece)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as broken:
        raise _not_utf8(broken) from None


def lines(pieces: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that come in pieces, without the white space around them, numbered from 1."""
    number = 1
    begun: list[bytes] = []
    for piece in without_mark(pieces):
        first, *others = piece.split(b"\n")
        begun.append(first)
        for other in others:
            yield number, b"".join(begun).strip(_SPACE_BYTES)
            number += 1
            begun = [other]
    yield number, b"".join(begun).strip(_SPACE_BYTES)


def line_text(line: bytes, label: str) -> str:
    """Decode a line of UTF-8.

    Raises:
        Malformed: it is not UTF-8.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as broken:
        raise _not_utf8(broken, label) from None


def without_mark(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Pass over a byte order mark of UTF-8 at the start.

    Raises:
        Malformed: it is UTF-16.
    """
    rest = iter(pieces)
    start = b""
    for piece in rest:
        start += piece
        if len(start) >= len(codecs.BOM_UTF8):
            break
    if start.startswith(_UTF16) or b"\0" in start[:2]:
        raise Malformed("this is UTF-16, or another encoding with NUL bytes; send UTF-8")
    yield start.removeprefix(codecs.BOM_UTF8)
    yield from rest


class _Window:
    """The part of a text that is read now; `at` is where reading goes on."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self.text = ""
        self.at = 0
        self._pieces = iter(pieces)
        self._passed = 0
        self._line, self._counted = 1, 0

    @property
    def offset(self) -> int:
        """How many characters of the whole text lie before `at`."""
        return self._passed + self.at

    @property
    def line(self) -> int:
        """The line that `at` is in."""
        self._count_lines()
        return self._line

    def peek(self) -> str:
        """Skip white space and return the next character; empty at the end of the text."""
        while True:
            self.at = _after_space(self.text, self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.grow():
                return ""

    def grow(self) -> bool:
        """Drop what was read and at least double the rest; False at the end of the text."""
        self._count_lines()
        held = len(self.text) - self.at
        parts = [self.text[self.at :]]
        added = 0
        for piece in self._pieces:
            parts.append(piece)
            added += len(piece)
            if added > held:
                break
        self._passed += self.at
        self.text, self.at, self._counted = "".join(parts), 0, 0
        return added > 0

    def _count_lines(self) -> None:
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at

    def drained(self) -> int:
        """Return the bytes from `at` to the end of the text, which is read and dropped."""
        rest = len(self.text[self.at :].encode("utf-8", "surrogatepass"))
        return rest + sum(len(piece.encode()) for piece in self._pieces)


def replaced(text: str, values: Mapping[str, Any]) -> str:
    """Return the text of a JSON object that was read before, with other values for some members."""
    decoder = json.JSONDecoder(parse_int=len, parse_float=len)
    parts = []
    kept = 0
    at = _after_space(text, 1)
    while text[at] != "}":
        name, end = decoder.raw_decode(text, at)
        at = _after_space(text, _after_space(text, end) + len(":"))
        _, end = decoder.raw_decode(text, at)
        if name in values:
            parts += [text[kept:at], json.dumps(values[name])]
            kept = end
        at = _after_space(text, end)
        if text[at] == ",":
            at = _after_space(text, at + 1)
    return "".join([*parts, text[kept:]])


def _after_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


# --- checks ---------------------------------------------------------------------------------------


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _Repeated
    return made


def _constant(name: str) -> None:
    raise _Constant(name)


def _repeated(text: str, at: int) -> str:
    """Return the path of the first member that is given twice."""
    decoder = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=len, parse_float=len)
    found: list[tuple[tuple[Any, Any] | None, Any]] = [(None, decoder.raw_decode(text, at)[0])]
    while found:
        path, value = found.pop()
        members: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, _Pairs):
            names: set[str] = set()
            for name, _ in value:
                if name in names:
                    return _path((path, name))
                names.add(name)
            members = value
        elif isinstance(value, list):
            members = enumerate(value)
        inner = [((path, name), member) for name, member in members if isinstance(member, list)]
        found.extend(reversed(inner))
    raise AssertionError("no member is given twice")


def _path(link: tuple[Any, Any] | None) -> str:
    parts = []
    while link is not None:
        link, name = link
        parts.append(str(name))
    return ".".join(reversed(parts))


def _written_digits(token: str) -> int:
    """Return how many digits PostgreSQL writes for a number."""
    mantissa, _, exponent = token.lower().lstrip("-").partition("e")
    whole, _, fraction = mantissa.partition(".")
    size = exponent.lstrip("+-0")
    if len(size) > _LONGEST_EXPONENT:
        size = "9" * _LONGEST_EXPONENT
    shift = -int(size or 0) if exponent.startswith("-") else int(size or 0)
    significant = (whole + fraction).lstrip("0")
    before = len(significant) - len(fraction) + shift if significant else 1
    return max(1, before) + max(0, len(fraction) - shift)


def _is_deeper(value: Any, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _check_escapes(text: str, label: str) -> None:
    """Refuse what PostgreSQL cannot store: a NUL character, and half a surrogate pair."""
    if "\\u0000" in text and _NUL_ESCAPE.search(text):
        raise Malformed(_named(label, "a NUL character is not allowed in JSON text"))
    if _SURROGATE.search(text) and _SURROGATE.search(_WHOLE_ESCAPES.sub("", text)):
        raise Malformed(_named(label, _HALF_A_CHARACTER))


def _not_json(problem: str, label: str, at: int | None = None) -> Malformed:
    where = "" if at is None else f" at character {at + 1}"
    reason = problem[:1].lower() + problem[1:].removesuffix(" at")
    return Malformed(_named(label, f"not JSON: {reason}{where}"))


def _not_utf8(broken: UnicodeDecodeError, label: str = "") -> Malformed:
    byte = broken.object[broken.start]
    return Malformed(_named(label, f"not UTF-8: byte 0x{byte:02x} is out of place"))


def _named(label: str, detail: str) -> str:
    where = place(label)
    return f"{where}: {detail}" if where else detail
