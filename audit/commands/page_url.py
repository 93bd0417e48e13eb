"""The addresses of the web page that show the same as a command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlencode

_ORDER: Final = (
    "status service intent last days since until created_by project_id outcome tz interval".split()
)
_DEFAULT_SPAN: Final = "7d"


def list_url(
    base: str | None,
    route: str,
    params: Mapping[str, str | Sequence[str]],
    *,
    tz: str | None = None,
    interval: str | None = None,
) -> str | None:
    """Return the page of a list; None without a service.

    A time zone and a length of bars are in it if they were chosen.
    """
    if base is None:
        return None
    given = {**params, **{k: v for k, v in {"tz": tz, "interval": interval}.items() if v}}
    if route == "failures":
        given["status"] = "failed"
        if not {"last", "since", "until"} & given.keys():
            given["last"] = _DEFAULT_SPAN
    ordered = {name: given[name] for name in _ORDER if name in given}
    query = urlencode(ordered, doseq=True)
    return f"{base.rstrip('/')}/tasks" + (f"?{query}" if query else "")


def task_url(base: str | None, task_id: str) -> str | None:
    """Return the page of a task; None without a service."""
    return None if base is None else f"{base.rstrip('/')}/tasks/{task_id}"
