"""`audit login`, `audit whoami` and `audit profiles`: which service, and who asks it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from audit.access.identity import Via
from audit.commands.options import validate_key, validate_url, with_option_groups
from audit.commands.output import note
from audit.commands.place import Place, Where
from audit.commands.printing import Rows, Show
from audit.commands.rendering.json_lines import parsed
from audit.commands.rendering.records import Column, Output, member
from audit.commands.source import run_with_service
from audit.profiles import DEFAULT_URL

if TYPE_CHECKING:
    from audit.commands.rendering.screen import Look
    from audit.commands.rendering.times import Zone
    from audit.commands.source import ServiceSource
    from audit.profiles import Profile

_DEFAULT_NAME: Final = "default"


def login(
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            callback=validate_url,
            show_default=False,
            help=f"URL of the service. [AUDIT_URL; default: that of the profile, or {DEFAULT_URL}]",
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            show_default=False,
            help="Name of the profile. [AUDIT_PROFILE; default: the default of config.toml, or"
            f" {_DEFAULT_NAME}]",
        ),
    ] = None,
) -> None:
    """Ask for an API key, try it, and store it for a profile.

    The key is read from the terminal without showing it, or from standard input. It is stored in a
    file that only you may read. A new profile is added to config.toml.
    """
    from audit.profiles import is_profile_name, read_profiles

    profiles = read_profiles()
    name = profile or os.environ.get("AUDIT_PROFILE") or profiles.default or _DEFAULT_NAME
    if not is_profile_name(name):
        raise typer.BadParameter("--profile may have letters, digits, _ and -")
    known = profiles.by_name.get(name)
    address = url or os.environ.get("AUDIT_URL") or (known and known.url) or DEFAULT_URL
    profiles.require_storable(name, address)
    key = _ask_for_key(address)
    ca_file = profiles.ca_file_of(known) if known else None

    async def work(source: ServiceSource) -> Any:
        return parsed(await source.whoami())

    caller = run_with_service(work, Place(validate_url(address), key_option=key, ca_file=ca_file))
    if caller["via"] == Via.NO_KEY:
        note("the service requires no key; it has not checked this one")
    path = profiles.save_key(name, address, key)
    who = caller["name"] or "key not checked"
    note(f"profile {name}: {who} ({', '.join(caller['scopes'])}) at {address}; key in {path}")
    if profiles.default not in {None, name}:
        note(f"use it with --profile {name}; the default profile is {profiles.default}")


def _ask_for_key(address: str) -> str:
    """Ask for a key without showing it. If standard input is no terminal, it is read from there."""
    from getpass import getpass

    if sys.stdin.isatty():
        try:
            given = getpass(f"API key of scope read for {address}: ")
        except EOFError:
            given = ""
    else:
        given = sys.stdin.readline()
    key = validate_key(given)
    if key is None:
        raise typer.BadParameter("no API key was given")
    return key


def _joined_scopes(caller: Mapping[str, Any]) -> str:
    return " ".join(caller["scopes"])


_CALLER: Final[Sequence[Column[Mapping[str, Any]]]] = (
    Column("name", member("name")),
    Column("scopes", _joined_scopes),
    Column("project_id", member("project_id")),
    Column("expires_at_utc", member("expires_at")),
    Column("via", member("via")),
    Column("version", member("version")),
)


@with_option_groups
def whoami(show: Show, where: Where) -> None:
    """Show whom the API key belongs to, and what it permits."""
    form = show.form
    show.refuse(Output.IDS)
    show.chosen(_CALLER)
    place = where.place()
    zone = show.zone(place.tz)

    async def work(source: ServiceSource) -> None:
        body = await source.whoami()
        with show.screen() as screen:
            if form is Output.JSON:
                screen.write(show.look.data(body + "\n"))
                return

            def lines(callers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
                return _caller_lines(callers[0], place, show.look, zone)

            Rows(show, screen, _CALLER, lines).write([(body, parsed(body))])

    run_with_service(work, place)


def _caller_lines(caller: Mapping[str, Any], place: Place, look: Look, zone: Zone) -> Iterator[str]:
    from audit.commands.rendering.times import labelled_time

    expires = caller["expires_at"]
    holder = caller["name"] or "no key: the service requires none"
    yield look.styled(look.inert(holder), "bold")
    for name, value in (
        ("service", f"{place.name}, version {caller['version']}"),
        ("scopes", ", ".join(caller["scopes"])),
        ("project", caller["project_id"] or "all"),
        ("expires", labelled_time(expires, zone) if expires else "never"),
    ):
        yield look.inert(f"  {name:7}  {value}")


def _place_of(named: tuple[str, Profile, bool]) -> str:
    _, profile, _ = named
    return profile.url or _database_of(profile)


def _database_of(profile: Profile) -> str:
    from audit.dsn import parse

    return f"PostgreSQL {parse(profile.dsn).name}" if profile.dsn else ""


_PROFILES: Final[Sequence[Column[tuple[str, Profile, bool]]]] = (
    Column("name", lambda named: named[0]),
    Column("default", lambda named: "yes" if named[2] else "no"),
    Column("place", _place_of),
    Column("key", lambda named: named[1].key_source),
    Column("tz", lambda named: named[1].tz),
)


@with_option_groups
def profiles(show: Show) -> None:
    """List the profiles of config.toml, without their keys."""
    from audit.profiles import read_profiles

    show.refuse(Output.IDS)
    read = read_profiles()
    rows = []
    for name, profile in read.by_name.items():
        named = (name, profile, name == read.default)
        value: dict[str, Any] = {column.name: column.text(named) or None for column in _PROFILES}
        value["default"] = named[2]
        rows.append((json.dumps(value, ensure_ascii=False), named))
    with show.screen() as screen:
        if show.form is Output.JSON:
            screen.write(show.look.data(f"[{', '.join(text for text, _ in rows)}]\n"))
            return
        Rows(show, screen, _PROFILES).write(rows)
    if not rows:
        note(f"there are no profiles in {read.path}; `audit login` adds one")
