"""The JSON reader returns the same values as Python's, for any division into pieces."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from audit.errors import Invalid, Malformed, Problem
from audit.history.json_text import Reader, replaced, without
from audit.history.utf8 import lines, texts
from audit.settings import Settings


def read(pieces: list[bytes]) -> list[Any]:
    return [element.value for element in Reader(Settings()).elements(texts(pieces))]


def outcome(pieces: list[bytes]) -> Any:
    try:
        return read(pieces)
    except Problem as problem:
        return type(problem), problem.detail


VALUES = [
    [], [{}], [1, 2.5, -3e2], ["a", "é", "🚀", "\\", '"', "[", "]"], [None, True, False],
    {"a": [1, {"b": 2}]}, 12345, "text", [[["deep"]]], [{"n": list(range(100))}] * 5,
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("layout", [{}, {"indent": 3}, {"ensure_ascii": False}])
def test_a_text_may_come_in_any_pieces(value: Any, layout: dict[str, Any]) -> None:
    text = json.dumps(value, **layout).encode()
    expected = value if isinstance(value, list) else [value]
    rng = random.Random(7)

    for size in (1, 2, 3, 7, len(text)):
        assert expected == read([text[at : at + size] for at in range(0, len(text), size)])
    for _ in range(20):
        cut = rng.randrange(len(text))
        whole, split = outcome([text[:cut]]), outcome([text[: cut // 2], text[cut // 2 : cut]])
        assert whole == split


def test_damaged_text_is_refused_or_read_as_python_reads_it() -> None:
    rng = random.Random(11)
    text = json.dumps([{"a": [1.5, "é\n", None]}, {"b": {"c": True}}, -12]).encode()
    for _ in range(2_000):
        damaged = bytearray(text)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.choice(b'[]{}",:0e+-\\ \n\xc3')
        try:
            expected = json.loads(damaged.decode())
        except ValueError:
            with pytest.raises((Malformed, Invalid)):
                read([bytes(damaged)])
        else:
            actual = outcome([bytes(damaged)])
            if not isinstance(actual, tuple):
                assert actual == (expected if isinstance(expected, list) else [expected])


def test_lines_may_come_in_any_pieces() -> None:
    text = b"\xef\xbb\xbf\n one \r\n\n\t\ntwo"
    expected = [(1, b""), (2, b"one"), (3, b""), (4, b""), (5, b"two")]

    for size in range(1, len(text) + 1):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert expected == list(lines(pieces))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a":1}', '{"a":"x"}'),
        ('{"b":{"a":1},"a":[{"a":2}]}', '{"b":{"a":1},"a":"x"}'),
        ('{ "a" :\n {} , "b" : 12.50e1 }', '{ "a" :\n "x" , "b" : 12.50e1 }'),
        (r'{"\u0061":null,"c":"a\":"}', r'{"\u0061":"x","c":"a\":"}'),
        ('{"b":1}', '{"b":1}'),
        ("{ }", "{ }"),
    ],
)
def test_a_member_is_replaced_and_the_rest_is_unchanged(text: str, expected: str) -> None:
    assert expected == replaced(text, {"a": "x"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a":1}', "{}"),
        ('{"b":{"a":1},"a":[{"a":2}],"c":"\\"a\\":1"}', '{"b":{"a":1},"c":"\\"a\\":1"}'),
        ('{ "a" :\n {} , "b" : 12.50e1 }', '{"b":12.50e1}'),
        (r'{"\u0061":null,"é":"\u00e9"}', r'{"\u00e9":"\u00e9"}'),
    ],
)
def test_a_member_is_removed_and_the_values_of_the_others_are_unchanged(
    text: str, expected: str
) -> None:
    assert expected == without(text, "a")
