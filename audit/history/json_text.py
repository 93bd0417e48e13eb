"""Reads JSON text within limits, one task at a time.

Python's own decoder does the work. Hooks refuse what it would accept or change without an error:
a member that an object has twice, NaN and Infinity, and numbers with very large exponents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from audit.errors import Invalid, Malformed
from audit.history.validation import invalid, with_label
from audit.limits import Limits

#: The white space of JSON.
SPACE: Final = " \t\r\n"
_SPACE = re.compile(f"[{SPACE}]*")
_AFTER_A_VALUE: Final = frozenset(f"{SPACE},]")
_NUL_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
#: Escapes that are no surrogate, such as `\n`, and whole pairs of surrogates.
_WHOLE_ESCAPES = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|[^u])", re.DOTALL
)
_HALF_OF_A_PAIR: Final = "half of a surrogate pair is not allowed in JSON text"
#: An exponent with more digits than this is beyond every limit.
_LONGEST_EXPONENT: Final = 6
#: If a text is cut off, the decoder reports an error at most this many characters before its end.
_LONGEST_TOKEN: Final = 16

#: The path to a value: that of its object or array, and its name or index there.
Path = tuple[Any, Any] | None


class Element(NamedTuple):
    """An element of an array: its label in errors, its text as it was sent, and its value."""

    label: str
    text: str
    value: Any


class _Repeated(Exception):
    """An object has a member twice."""


class _Pairs(list[tuple[str, Any]]):
    """The members of an object, including repeated ones."""


def _by_position(position: int | None, _line: int) -> str:
    return "" if position is None else f"{position}."


class Reader:
    """Reads the JSON texts of one request, file or call. Two threads must not share it."""

    def __init__(self, limits: Limits) -> None:
        self.max_digits = limits.max_number_digits
        self.max_nesting = limits.max_nesting
        self._task_bytes = limits.max_task_bytes
        #: The label of the text that is read, and how many characters it gains when PostgreSQL
        #: writes its numbers without exponents.
        self._label = ""
        self._growth = 0
        self._read_from = json.JSONDecoder(
            object_pairs_hook=_object,
            parse_int=self._int,
            parse_float=self._float,
            parse_constant=self._constant,
        ).raw_decode

    def read(self, text: str, label: str = "") -> Any:
        """Return the value of a JSON text that has no white space around it.

        Raises:
            Malformed: it is not JSON, or contains a NUL character or half of a surrogate pair.
            Invalid: it is over a limit, or an object has a member twice.
        """
        # The size is checked before the text is read, because reading a large text takes long.
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
        """Yield the elements of a JSON array, or the one value, of a text that arrives in pieces.

        At most the largest allowed element and one piece are in memory at a time. `label` makes
        the label of an element from its position in the array and the line on which it begins.

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
        """Read the element that begins at the position of the window."""
        label = name(position, window.line)
        while True:
            problem = None
            try:
                value, end = self._decode(window.text, window.at, label)
                if isinstance(value, dict) or window.text[end : end + 1] in _AFTER_A_VALUE:
                    break
                # The next piece may continue the number.
                read_to = end
            except json.JSONDecodeError as broken:
                is_string = broken.msg.startswith("Unterminated string")
                read_to = len(window.text) if is_string else broken.pos
                problem = (broken.msg, label, window.offset + broken.pos - window.at)
            is_large = len(window.text) - window.at > self._task_bytes
            if is_large and read_to > len(window.text) - _LONGEST_TOKEN:
                raise self._too_large(label, window.drained() if position is None else None)
            if is_large or not window.grow():
                if problem is None:
                    break
                raise _not_json(*problem)
        text = window.text[window.at : end]
        window.at = end
        self._check_size(text, label)
        self._check(text, value, label)
        return Element(label, text, value)

    def _decode(self, text: str, at: int, label: str) -> tuple[Any, int]:
        self._label, self._growth = label, 0
        try:
            try:
                return self._read_from(text, at)
            except _Repeated:
                raise invalid(label, "is given twice", _repeated(text, at)) from None
        except RecursionError:
            raise self.too_deep(label) from None

    def _check_size(self, text: str, label: str) -> None:
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise Malformed(with_label(label, _HALF_OF_A_PAIR)) from None
        if size > self._task_bytes:
            raise self._too_large(label, size)

    def _check(self, text: str, value: Any, label: str) -> None:
        """Refuse what the decoder has read, but the service could not return."""
        if self._growth and len(text) + self._growth > self._task_bytes:
            raise invalid(
                label,
                f"has {len(text) + self._growth} bytes when its numbers are written out; "
                f"the limit is {self._task_bytes} (max_task_bytes)",
            )
        brackets = text.count("[") + text.count("{")
        if brackets > self.max_nesting and _is_deeper(value, self.max_nesting):
            raise self.too_deep(label)
        if "\\" in text and "\\u" in text:  # the first finds out four times as fast
            _check_escapes(text, label)

    def _too_large(self, label: str, size: int | None) -> Invalid:
        has = "has more" if size is None else f"has {size} bytes"
        return invalid(label, f"{has}; the limit is {self._task_bytes} bytes (max_task_bytes)")

    def too_deep(self, label: str) -> Invalid:
        """Return the error for a task that is nested too deeply."""
        return invalid(label, f"is nested over {self.max_nesting} levels deep (max_nesting)")

    def _too_long(self, number: str) -> Invalid:
        shown = number if len(number) <= _LONGEST_TOKEN else f"{number[:_LONGEST_TOKEN]}…"
        return invalid(
            self._label,
            f"the number {shown} has over {self.max_digits} digits when it is written out "
            "(max_number_digits)",
        )

    def _int(self, token: str) -> int:
        if len(token.lstrip("-")) > self.max_digits:
            raise self._too_long(token)
        return int(token)

    def _float(self, token: str) -> float:
        if len(token) > self.max_digits or "e" in token or "E" in token:
            digits = _written_digits(token)
            if digits > self.max_digits:
                raise self._too_long(token)
            self._growth += max(0, digits - len(token))
        return float(token)

    def _constant(self, name: str) -> None:
        raise _not_json(f"{name} is not a JSON value", self._label)


class _Window:
    """The part of a text that is in memory. Reading continues at the index `at`."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self.text = ""
        self.at = 0
        self._pieces = iter(pieces)
        self._passed = 0
        self._line, self._counted = 1, 0

    @property
    def offset(self) -> int:
        """The position of `at` in the whole text."""
        return self._passed + self.at

    @property
    def line(self) -> int:
        """The number of the line that contains `at`."""
        self._count_lines()
        return self._line

    def peek(self) -> str:
        """Skip white space and return the next character; empty at the end of the text."""
        while True:
            follows = self.text[self.at : self.at + 1]
            if follows and follows not in SPACE:
                return follows
            self.at = _after_space(self.text, self.at)
            if self.at == len(self.text) and not self.grow():
                return ""

    def grow(self) -> bool:
        """Drop what was read, and at least double the rest. Return False at the end of the text."""
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
        """Read the text to its end without keeping it. Return its size in bytes, from `at`."""
        rest = len(self.text[self.at :].encode("utf-8", "surrogatepass"))
        return rest + sum(len(piece.encode()) for piece in self._pieces)


def replaced(text: str, values: Mapping[str, Any]) -> str:
    """Return the text of a valid JSON object with other values for some of its members."""
    parts = []
    kept = 0
    for name, at, end in _places(text):
        if name in values:
            parts += [text[kept:at], json.dumps(values[name])]
            kept = end
    return "".join([*parts, text[kept:]])


def without(text: str, name: str) -> str:
    """Return the text of a valid JSON object without one of its members."""
    kept = (f"{json.dumps(each)}:{value}" for each, value in members(text) if each != name)
    return f"{{{','.join(kept)}}}"


def members(text: str) -> Iterator[tuple[str, str]]:
    """Yield the name of each member of a valid JSON object, and the text of its value."""
    for name, at, end in _places(text):
        yield name, text[at:end]


def _places(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield where the values of a valid JSON object are, with the names of their members."""
    decoder = json.JSONDecoder(parse_int=len, parse_float=len)  # long numbers need no conversion
    at = _after_space(text, _after_space(text, 0) + len("{"))
    while text[at] != "}":
        name, end = decoder.raw_decode(text, at)
        at = _after_space(text, _after_space(text, end) + len(":"))
        _, end = decoder.raw_decode(text, at)
        yield name, at, end
        at = _after_space(text, end)
        if text[at] == ",":
            at = _after_space(text, at + 1)


def _after_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _Repeated
    return made


def _repeated(text: str, at: int) -> str:
    """Return the path of the first member that is given twice."""
    decoder = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=len, parse_float=len)
    found: list[tuple[Path, Any]] = [(None, decoder.raw_decode(text, at)[0])]
    while found:
        path, value = found.pop()
        members: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, _Pairs):
            names: set[str] = set()
            for name, _ in value:
                if name in names:
                    return name_of((path, name))
                names.add(name)
            members = value
        elif isinstance(value, list):
            members = enumerate(value)
        inner = [((path, name), member) for name, member in members if isinstance(member, list)]
        found.extend(reversed(inner))
    raise AssertionError("no member is given twice")


def name_of(path: Path) -> str:
    """Return a path as errors show it, such as `outcome.steps.0`."""
    parts = []
    while path is not None:
        path, name = path
        parts.append(str(name))
    return ".".join(reversed(parts))


def _written_digits(token: str) -> int:
    """Return the number of digits that PostgreSQL writes for a number."""
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
    """Refuse what PostgreSQL cannot store: a NUL character, or half of a surrogate pair."""
    if "\\u0000" in text and _NUL_ESCAPE.search(text):
        raise Malformed(with_label(label, "a NUL character is not allowed in JSON text"))
    if _SURROGATE.search(text) and _SURROGATE.search(_WHOLE_ESCAPES.sub("", text)):
        raise Malformed(with_label(label, _HALF_OF_A_PAIR))


def _not_json(problem: str, label: str, at: int | None = None) -> Malformed:
    where = "" if at is None else f" at character {at + 1}"
    reason = problem[:1].lower() + problem[1:].removesuffix(" at")
    return Malformed(with_label(label, f"not JSON: {reason}{where}"))
