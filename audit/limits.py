"""Limits on the tasks of a request. Programs that only send tasks check them too."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """How many tasks a request may have, and how large each may be. They are settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_lines_per_request: int = Field(default=200_000, ge=1)
    """Limit of the lines in an NDJSON body, including blank lines."""
    max_tasks_per_request: int = Field(default=100_000, ge=1)
    """Limit of the tasks in an NDJSON body. A JSON array may contain at most 1,000."""
    max_task_bytes: int = Field(default=1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    """Size limit of the JSON text of a task or a change, with its numbers written out. PostgreSQL
    stores up to 256 MiB."""
    max_number_digits: int = Field(default=1000, ge=20, le=4000)
    """Limit of the digits of a number in JSON, written out: 1e9 has ten."""
    max_nesting: int = Field(default=64, ge=2, le=180)
    """Limit of nested objects and arrays in a task, counting the task itself."""
    max_errors: int = Field(default=20, ge=1, le=10_000)
    """Limit of the errors that a response lists. It also has their total number."""


#: The limits of a service whose settings do not change them.
DEFAULTS: Final = Limits()
#: The highest limits that a service can have. A program that does not know the settings of the
#: service checks no more.
HIGHEST: Final = Limits.model_construct(
    max_task_bytes=256 * 1024 * 1024, max_number_digits=4000, max_nesting=180
)
