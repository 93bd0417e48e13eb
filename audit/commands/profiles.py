"""The file of profiles: which service a person reads, and where the API key for it is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import tomllib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from platformdirs import user_config_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from audit.errors import Problem

_NAME = re.compile("[A-Za-z0-9_-]{1,64}", re.ASCII)
_OF_OTHERS: Final = 0o077
_KEY_COMMAND_SECONDS: Final = 120


class BadConfiguration(Problem):
    """The file of profiles, or a file or program that it names, cannot be used."""


class Profile(BaseModel):
    """One profile of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str | None = None
    dsn: str | None = None
    key: str | None = Field(default=None, repr=False)
    key_file: Path | None = None
    key_command: list[str] | None = Field(default=None, min_length=1)
    tz: str | None = None
    ca_file: Path | None = None

    @property
    def key_source(self) -> str:
        """Where the key comes from, without the key."""
        if self.key_command:
            return "key_command"
        if self.key_file:
            return f"key_file {self.key_file}"
        return "key" if self.key else ""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    default: str | None = None
    profile: dict[str, Profile] = Field(default_factory=dict)


@dataclass(frozen=True)
class Profiles:
    """All profiles of a user."""

    folder: Path
    default: str | None = None
    by_name: dict[str, Profile] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The file of profiles."""
        return _path(self.folder)

    def get(self, name: str) -> Profile:
        """Return a profile.

        Raises:
            BadConfiguration: there is none of this name.
        """
        try:
            return self.by_name[name]
        except KeyError:
            known = ", ".join(sorted(self.by_name)) or "none"
            raise BadConfiguration(f"{self.path} has no profile {name!r}; it has {known}") from None

    def key_of(self, profile: Profile) -> str | None:
        """Return the key of a profile, from its file or its program.

        Raises:
            BadConfiguration: other users may read the file, or the program fails.
        """
        given = [profile.key, profile.key_file, profile.key_command]
        if sum(value is not None for value in given) > 1:
            raise BadConfiguration(f"{self.path}: give one of key, key_file and key_command")
        if profile.key_command is not None:
            return _output_of(profile.key_command)
        if profile.key_file is not None:
            return _read_secret(self._located(profile.key_file))
        return profile.key

    def ca_file_of(self, profile: Profile) -> Path | None:
        """Return the file of certificates that a profile trusts besides those of the system."""
        return profile.ca_file and self._located(profile.ca_file)

    def _located(self, path: Path) -> Path:
        """Return the path of a file that a profile names, relative to the folder of profiles."""
        return self.folder / path.expanduser()

    def require_storable(self, name: str, url: str) -> Path:
        """Return the file for the key of a profile, which may be new.

        Raises:
            BadConfiguration: the profile is for another URL, or takes its key from elsewhere.
        """
        profile = self.by_name.get(name)
        if profile is None:
            return self.folder / "keys" / name
        if profile.url != url:
            place = profile.url or "a database"
            raise BadConfiguration(
                f"{self.path}: profile {name!r} is for {place}; choose another name with --profile"
            )
        if profile.key_file is None:
            source = profile.key_source or "no key"
            raise BadConfiguration(
                f'{self.path}: profile {name!r} has {source}; give it key_file = "keys/{name}"'
                " instead"
            )
        return self._located(profile.key_file)

    def save_key(self, name: str, url: str, key: str) -> Path:
        """Store the key of a profile in a file that its owner alone may read; return its path.

        A profile that is new is added to the file of profiles.
        """
        path = self.require_storable(name, url)
        for folder in (self.folder, path.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _replace(path, f"{key}\n")
        if name not in self.by_name:
            _replace(self.path, self._with(name, url))
        return path

    def _with(self, name: str, url: str) -> str:
        """Return the text of the file with a new profile at its end."""
        text = self.path.read_text() if self.path.exists() else f"default = {_quoted(name)}\n"
        profile = f'[profile.{name}]\nurl = {_quoted(url)}\nkey_file = "keys/{name}"\n'
        return f"{text.rstrip()}\n\n{profile}"


def _path(folder: Path) -> Path:
    return folder / "config.toml"


def read_profiles() -> Profiles:
    """Read the file of profiles; without one, there are no profiles.

    Raises:
        BadConfiguration: the file is not valid, or has secrets that other users may read.
    """
    folder = user_config_path("task-audit")
    path = _path(folder)
    try:
        text = path.read_text()
        read = _File.model_validate(tomllib.loads(text))
    except (FileNotFoundError, NotADirectoryError):
        return Profiles(folder)
    except OSError as failure:
        raise BadConfiguration(f"{path}: {failure.strerror}") from None
    except ValidationError as failure:
        error = failure.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, error["loc"]))
        raise BadConfiguration(f"{path}: {place}: {error['msg']}") from None
    except ValueError as broken:
        raise BadConfiguration(f"{path}: {broken}") from None
    for name, profile in read.profile.items():
        if not _NAME.fullmatch(name):
            raise BadConfiguration(f"{path}: the name {name!r} may have letters, digits, _ and -")
        if profile.key or profile.dsn:
            _require_private(path)
    return Profiles(folder, read.default, read.profile)


def is_profile_name(name: str) -> bool:
    """Whether a profile, and the file of its key, may have this name."""
    return bool(_NAME.fullmatch(name))


def _require_private(path: Path) -> None:
    mode = path.stat().st_mode
    if mode & _OF_OTHERS:
        raise BadConfiguration(
            f"{path} has a secret, and other users may read it (mode {mode & 0o777:04o}):"
            f" run chmod 600 {path}"
        )


def _read_secret(path: Path) -> str:
    try:
        _require_private(path)
        return path.read_text().strip()
    except OSError as failure:
        raise BadConfiguration(f"{path}: {failure.strerror}") from None


def _output_of(command: list[str]) -> str:
    """Run a program that prints a key. It may ask the user on the terminal."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, timeout=_KEY_COMMAND_SECONDS
        )
    except OSError as failure:
        raise BadConfiguration(f"key_command {command[0]}: {failure.strerror}") from None
    except subprocess.SubprocessError as failure:
        raise BadConfiguration(f"key_command {command[0]}: {_reason(failure)}") from None
    return done.stdout.strip()


def _reason(failure: subprocess.SubprocessError) -> str:
    if isinstance(failure, subprocess.CalledProcessError):
        return f"ended with {failure.returncode}"
    return f"took longer than {_KEY_COMMAND_SECONDS} seconds"


def _replace(path: Path, text: str) -> None:
    """Write a file that its owner alone may read. If that fails, the old file stays as it was."""
    mode = path.stat().st_mode & 0o700 if path.exists() else 0o600
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(number, "w") as file:
            file.write(text)
            file.flush()
            os.fchmod(number, mode)
            os.fsync(number)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _quoted(value: str) -> str:
    """Return text as TOML. A basic string of TOML has the escapes of JSON."""
    return json.dumps(value, ensure_ascii=False)
