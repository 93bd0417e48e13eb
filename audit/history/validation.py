"""Collects what is wrong with the values of a request, and makes one `Invalid` of it.

A label names the task that an error is about. It is put before the name of the member, such as
`3.` in `3.status`, or `line 4: ` in `line 4: status`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from audit.errors import FieldError, Invalid, Problem
from audit.limits import DEFAULTS, Limits

NOT_AN_OBJECT: Final = "must be a JSON object"
#: The words of this API for what pydantic calls wrong, by pydantic's type of the error.
_WORDS: Final = {
    "missing": "is required",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length:,} characters",
    "list_type": "must be a JSON array",
    "dict_type": NOT_AN_OBJECT,
}
#: The name of an unknown member may be as long as a task. Errors show no more of it.
_LONGEST_FIELD = 200

_Model = TypeVar("_Model", bound=BaseModel)


class Input(BaseModel):
    """What a client sends. An unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def labelled(label: str, field: str = "") -> str:
    """Return the name of a member of the labelled task, or of the task itself."""
    return label + field if field else label.rstrip(".: ")


def with_label(label: str, detail: str) -> str:
    """Return the detail of an error about the labelled task."""
    name = labelled(label)
    return f"{name}: {detail}" if name else detail


def invalid(label: str, detail: str, field: str = "") -> Invalid:
    """Return the error for one member of the labelled task, or for the task itself."""
    return _invalid([{"field": labelled(label, field), "detail": detail}], 1)


class ErrorList:
    """Counts the errors of a request, and keeps the first `max_errors` of them."""

    def __init__(self, limits: Limits = DEFAULTS) -> None:
        self._most = limits.max_errors
        self._listed: list[FieldError] = []
        self.total = 0

    def add(self, field: str, detail: str) -> None:
        """Add one error."""
        self.total += 1
        if len(self._listed) < self._most:
            if len(field) > _LONGEST_FIELD:
                field = f"{field[:_LONGEST_FIELD]}…"
            self._listed.append({"field": field, "detail": detail})

    def include(self, problem: Invalid) -> None:
        """Add the errors of a task that could not be read."""
        for error in problem.errors or []:
            self.add(**error)

    def validate(self, model: type[_Model], value: Any, label: str = "") -> _Model | None:
        """Return the value as a model, or add what is wrong with it and return None."""
        if not isinstance(value, dict):
            self.add(labelled(label), NOT_AN_OBJECT)
            return None
        known = _names(model)
        has_unknown = not value.keys() <= known
        if has_unknown:
            # pydantic would make an object for each, and there may be a hundred thousand.
            for name in value:
                if name not in known:
                    self.add(label + name, "unknown")
            value = {name: value[name] for name in known if name in value}
        try:
            validated = model.model_validate(value)
        except ValidationError as error:
            if len(self._listed) == self._most:
                self.total += error.error_count()
                return None
            for each in _errors(error):
                self.add(labelled(label, each["field"]), each["detail"])
            return None
        return None if has_unknown else validated

    def check(self, kind: type[Problem] = Invalid) -> None:
        """Raise a problem of this kind if there is any error. It lists the first errors."""
        if self.total:
            raise self.problem(kind)

    def problem(self, kind: type[Problem] = Invalid) -> Problem:
        """Return the problem that lists the first errors and gives their number."""
        return kind(_summary(self._listed, self.total), errors=self._listed)


@cache
def _names(model: type[BaseModel]) -> frozenset[str]:
    """Return the names of the members of a model. To compute them takes pydantic 0.3 µs."""
    return frozenset(model.model_fields)


def invalid_parameters(error: ValidationError, model: type[BaseModel]) -> Invalid:
    """Return the problem for parameters of a URL that `model` refuses."""
    known = f"unknown; the parameters here are {', '.join(sorted(model.model_fields))}"
    errors = _errors(error, unknown=known, depth=1)
    return _invalid(errors[: DEFAULTS.max_errors], len(errors))


def _errors(
    error: ValidationError, unknown: str = "unknown", depth: int | None = None
) -> list[FieldError]:
    """Return what pydantic found, each with the path to the value, cut after `depth` names."""
    errors: list[FieldError] = []
    for each in error.errors(include_url=False, include_input=False):
        field = ".".join(str(part) for part in each["loc"][:depth])
        detail = each["msg"].removeprefix("Value error, ")
        if each["type"] == "extra_forbidden":
            detail = unknown
        elif each["type"] in _WORDS:
            detail = _WORDS[each["type"]].format(**each.get("ctx", {}))
        if not each["loc"] and ": " in detail:
            field, _, detail = detail.partition(": ")
        errors.append({"field": field, "detail": detail})
    return errors


def _invalid(listed: list[FieldError], total: int) -> Invalid:
    return Invalid(_summary(listed, total), errors=listed)


def _summary(listed: Sequence[FieldError], total: int) -> str:
    field, detail = listed[0]["field"], listed[0]["detail"]
    first = f"{field}: {detail}" if field else detail
    if total == 1:
        return first
    shown = "" if total == len(listed) else f"; the first {len(listed)} are listed"
    return f"{first} (and {total - 1} more{shown})"
