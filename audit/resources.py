"""Finds the folders of files that the package reads, such as `sql`."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable


def folder(name: str) -> Traversable:
    """Return `sql` or `migrations`: in an installed wheel, or beside the package in a checkout."""
    package = files("audit")
    installed = package / f"_{name}"
    return installed if installed.is_dir() else package / ".." / name


def sql_text(name: str) -> str:
    """Return the text of a file in `sql/`, whose name is given without its ending."""
    return (folder("sql") / f"{name}.sql").read_text(encoding="utf-8")
