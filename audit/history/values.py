"""The types of single values: times, ids, names, states, whole numbers and time spans."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import core_schema

from audit.errors import Invalid, Malformed
from audit.history.json_text import SPACE, Reader
from audit.history.json_values import write
from audit.history.states import MUST_BE_STATE, State
from audit.limits import DEFAULTS

_UUID: Final = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d{1,9})?"
    r"([Zz]|[+-]([01]\d|2[0-3]):?[0-5]\d)",
    re.ASCII,
)
#: The times that PostgreSQL reads in the same way as `parse_time`. PostgreSQL would round more
#: decimals instead of cutting them, and does not accept offsets of 16 hours or more.
_TIME_OF_POSTGRESQL = re.compile(
    r".{10}[Tt ]..:..:[0-5]\d(\.\d{1,6})?([Zz]|[+-](0\d|1[0-5]):?\d\d)", re.ASCII
)
_OUT_OF_YEARS = "must be in the years 1 to 9999, in UTC"
_FIRST_CREATED_AT = datetime(2000, 1, 1, tzinfo=UTC)
_DIGITS = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_SPAN = re.compile("([0-9]{1,6})([mhdw])", re.ASCII)
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LONGEST_NAME = 255
_MOST_SERVICES = 100


def parse_time(value: object) -> datetime:
    """Return a time in UTC. Decimals after the sixth are cut.

    Raises:
        ValueError: it is neither an RFC 3339 time nor a `datetime` with an offset.
    """
    if isinstance(value, str):
        match = _RFC3339.fullmatch(value)
        if not match:
            hint = "; write its + as %2B in a URL" if " " in value[19:] else ""
            raise ValueError(
                "must be an RFC 3339 time with an offset and at most nine decimals, "
                f"such as 2026-11-23T08:00:00.25Z{hint}"
            )
        if match[2] == "60":
            return _after_leap_second(value)
        value = datetime.fromisoformat(value.upper())
    elif not isinstance(value, datetime) or value.utcoffset() is None:
        raise ValueError("must be a time with an offset")
    if value.tzinfo is UTC:
        return value
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError(_OUT_OF_YEARS) from None


def _after_leap_second(value: str) -> datetime:
    """Return the second after a leap second, as POSIX and PostgreSQL do."""
    try:
        before = datetime.fromisoformat(f"{value[:17]}59{value[19:]}".upper()).astimezone(UTC)
        if (before.hour, before.minute) != (23, 59):
            raise ValueError("the second 60 is a leap second, which only 23:59 in UTC can have")
        return before + timedelta(seconds=1)
    except OverflowError:
        raise ValueError(_OUT_OF_YEARS) from None


def time_for_postgresql(text: str) -> str:
    """Return a valid time as it was sent, or rewritten if PostgreSQL would read another time."""
    return text if _TIME_OF_POSTGRESQL.fullmatch(text) else parse_time(text).isoformat()


def _not_before_2000(value: datetime) -> datetime:
    if value < _FIRST_CREATED_AT:
        raise ValueError("must not be before 2000-01-01T00:00:00Z")
    return value


class _Message:
    """Gives one message for whatever pydantic finds wrong with a value.

    It is faster than a validator written in Python.
    """

    def __init__(self, message: str) -> None:
        self._message = message

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.custom_error_schema(
            handler(source), custom_error_type="value", custom_error_message=self._message
        )


class _TextOfUuid:
    """Accepts a UUID and its usual text, and none of the other texts that pydantic accepts."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        text = core_schema.str_schema(pattern=_UUID, strict=True)
        return core_schema.union_schema(
            [
                core_schema.chain_schema([text, handler(source)]),
                core_schema.is_instance_schema(UUID),
            ],
            mode="left_to_right",
        )


def _at_most_a_hundred(names: object) -> object:
    """Check the number before the names: errors for a million of them would fill the memory."""
    if isinstance(names, list) and len(names) > _MOST_SERVICES:
        raise ValueError(f"must have at most {_MOST_SERVICES} names, not {len(names)}")
    return names


def _no_duplicates(names: Sequence[str]) -> Sequence[str]:
    if len(set(names)) < len(names):
        raise ValueError("must not name a service twice")
    return names


def _intent_is_a_name(outcome: dict[str, Any]) -> dict[str, Any]:
    intent = outcome.get("action_type")
    if intent is not None and not (isinstance(intent, str) and len(intent) <= _LONGEST_NAME):
        raise ValueError(f"action_type must be text of at most {_LONGEST_NAME} characters, or null")
    return outcome


def _text_of_object(value: object) -> str:
    """Return the JSON text of an object; a text is returned as it was given."""
    try:
        if isinstance(value, Mapping):
            return write(dict(value), Reader(DEFAULTS))[0]
        if isinstance(value, str) and isinstance(Reader(DEFAULTS).read(value.strip(SPACE)), dict):
            return value
    except Malformed as problem:
        raise Malformed(f"outcome: {problem.detail}") from None
    except Invalid as problem:
        raise ValueError(problem.detail) from None
    raise ValueError("must be a JSON object")


def whole_number(lowest: int, highest: int) -> PlainValidator:
    """Return the validator of a parameter that is an int or its decimal digits, but not a bool."""

    def validate(value: object) -> int:
        if isinstance(value, str) and _DIGITS.fullmatch(value):
            value = int(value)
        if type(value) is not int or not lowest <= value <= highest:
            raise ValueError(f"must be a whole number from {lowest} to {highest}")
        return value

    return PlainValidator(
        validate, json_schema_input_type=Annotated[int, Field(ge=lowest, le=highest)]
    )


def time_span(highest_days: int) -> PlainValidator:
    """Return the validator of a time span such as `15m`, `24h`, `7d` or `8w`."""

    def validate(value: object) -> timedelta:
        found = _SPAN.fullmatch(value) if isinstance(value, str) else None
        length = timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else timedelta()
        if not timedelta() < length <= timedelta(days=highest_days):
            raise ValueError(
                f"must be a span such as 15m, 24h, 7d or 8w, and at most {highest_days}d"
            )
        return length

    return PlainValidator(
        validate, json_schema_input_type=Annotated[str, Field(pattern=f"^{_SPAN.pattern}$")]
    )


TaskId = Annotated[
    UUID,
    _TextOfUuid(),
    _Message("must be a UUID such as 7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11"),
    WithJsonSchema({"type": "string", "format": "uuid"}),
]
Timestamp = Annotated[
    datetime,
    BeforeValidator(parse_time, json_schema_input_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
CreatedAt = Annotated[Timestamp, AfterValidator(_not_before_2000)]
Status = Annotated[State, _Message(MUST_BE_STATE)]
Name = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=_LONGEST_NAME)]
RequestText = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=65_536)]
Services = Annotated[
    list[Name],
    Field(max_length=_MOST_SERVICES, json_schema_extra={"uniqueItems": True}),
    BeforeValidator(_at_most_a_hundred),
    AfterValidator(_no_duplicates),
]
JsonObject = dict[str, Any]
_INTENT_SCHEMA: Final[dict[str, Any]] = {
    "properties": {"action_type": {"type": ["string", "null"], "maxLength": _LONGEST_NAME}}
}
Outcome = Annotated[
    JsonObject, Field(json_schema_extra=_INTENT_SCHEMA), AfterValidator(_intent_is_a_name)
]
#: The text of a JSON object that `outcome` must contain.
OutcomeFilter = Annotated[str | None, BeforeValidator(_text_of_object, json_schema_input_type=str)]
