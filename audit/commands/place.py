"""Where a command for people reads: options first, then variables, then the default profile."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from audit.commands.options import validate_key, validate_url
from audit.profiles import DEFAULT_URL, BadConfiguration, Profiles, read_profiles

_NAMES: Final = ("url", "dsn", "profile")


@dataclass(frozen=True)
class Place:
    """A service or a database. Exactly one of `url` and `dsn` is set."""

    url: str | None
    dsn: str | None = None
    profile_name: str | None = None
    tz: str | None = None
    ca_file: Path | None = None
    key_option: str | None = None
    profiles: Profiles | None = None

    def key(self) -> str | None:
        """Return the API key: the one that was given, or else the one of the profile."""
        if self.key_option is not None or self.profiles is None or self.profile_name is None:
            return self.key_option
        return validate_key(self.profiles.key_of(self.profiles.get(self.profile_name)))

    @property
    def name(self) -> str:
        """What notes call the place."""
        profile = f" (profile {self.profile_name})" if self.profile_name else ""
        return f"{self.url or 'the database'}{profile}"


@dataclass(frozen=True)
class Where:
    """The options that say where to read."""

    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            callback=validate_url,
            show_default=False,
            help="URL of the service to read. HTTP_PROXY, HTTPS_PROXY and NO_PROXY are used."
            f" [AUDIT_URL; default: the default profile, or else {DEFAULT_URL}]",
        ),
    ] = None
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            metavar="KEY",
            callback=validate_key,
            show_default=False,
            help="API key of scope read, for the service. Prefer the variable, because other users"
            " of the machine can see options. [AUDIT_KEY; default: the key of the profile]",
        ),
    ] = None
    dsn: Annotated[
        str | None,
        typer.Option(
            "--dsn",
            metavar="DSN",
            show_default=False,
            help="Read this PostgreSQL database instead of a service. [AUDIT_DSN; default: none]",
        ),
    ] = None
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            metavar="NAME",
            show_default=False,
            help="Profile in config.toml to use, see `audit profiles`."
            " [AUDIT_PROFILE; default: the default of config.toml]",
        ),
    ] = None

    def place(self) -> Place:
        """Return where to read.

        Raises:
            typer.BadParameter: more than one place is given.
            BadConfiguration: the file of profiles is not valid, or has no such profile.
        """
        given = {f"--{name}": getattr(self, name) for name in _NAMES}
        if not any(given.values()):
            variables = [f"AUDIT_{name.upper()}" for name in _NAMES]
            given = {name: os.environ.get(name) for name in variables}
        named = [name for name, value in given.items() if value]
        if len(named) > 1:
            raise typer.BadParameter(f"{' and '.join(named)} name different places: give only one")
        key = self.key or _variable("AUDIT_KEY", validate_key)
        url, dsn, profile = given.values()
        if url:
            return Place(self.url or _variable("AUDIT_URL", validate_url), key_option=key)
        if dsn:
            return Place(None, dsn)
        return _of_profile(profile, key)


def _variable(name: str, validate: Callable[[str | None], str | None]) -> str | None:
    """Return the value of a variable, if it is set and valid."""
    try:
        return validate(os.environ.get(name) or None)
    except typer.BadParameter as wrong:
        raise typer.BadParameter(f"{name}: {wrong.message}") from None


def _of_profile(name: str | None, key: str | None) -> Place:
    """Return the place of a profile: the one that is named, or the default one."""
    profiles = read_profiles()
    name = name or profiles.default
    if name is None:
        return Place(DEFAULT_URL, key_option=key)
    profile = profiles.get(name)
    if (profile.url is None) == (profile.dsn is None):
        raise BadConfiguration(f"{profiles.path}: profile {name!r} needs either url or dsn")
    try:
        url = validate_url(profile.url)
    except typer.BadParameter as wrong:
        raise BadConfiguration(
            f"{profiles.path}: url of profile {name!r} {wrong.message}"
        ) from None
    ca_file = profiles.ca_file_of(profile)
    return Place(url, profile.dsn, name, profile.tz, ca_file, key, profiles)
