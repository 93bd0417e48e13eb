"""Which service a person or a program uses, and its API key: as given, or from the environment.

The file of profiles has the services that a user names, and where the keys for them are.
"""

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
from urllib.parse import urlsplit

from platformdirs import user_config_path
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from audit.errors import Problem
from audit.files import replaceable

DEFAULT_URL: Final = "http://127.0.0.1:8080"
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
    path = replaceable(path)
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


@dataclass(frozen=True)
class ServiceAddress:
    """Where a service is, and how to be let in."""

    url: str
    key: SecretStr | None = None
    ca_file: Path | None = None


def locate_service(
    url: str | None = None, key: str | None = None, profile: str | None = None
) -> ServiceAddress:
    """Return the service that is given, or that of the environment, or of the default profile.

    Raises:
        BadConfiguration: a value is not valid, there is no such profile, or it is for a database.
    """
    if url and profile:
        raise BadConfiguration("url and profile name different services: give only one")
    if not url and not profile:
        url, profile = (os.environ.get(name) for name in ("AUDIT_URL", "AUDIT_PROFILE"))
        if url and profile:
            raise BadConfiguration("AUDIT_URL and AUDIT_PROFILE name different services")
    key = key or os.environ.get("AUDIT_KEY")
    if url:
        return _address(url, key)
    profiles = read_profiles()
    name = profile or profiles.default
    if name is None:
        return _address(DEFAULT_URL, key)
    found = profiles.get(name)
    if found.url is None:
        raise BadConfiguration(f"{profiles.path}: profile {name!r} has no url")
    return _address(found.url, key or profiles.key_of(found), profiles.ca_file_of(found))


def _address(url: str, key: str | None, ca_file: Path | None = None) -> ServiceAddress:
    name = "the URL of the service"
    try:
        valid_url, name = validate_url(url), "the API key"
        valid_key = validate_key(key)
    except ValueError as wrong:
        raise BadConfiguration(f"{name} {wrong}") from None
    return ServiceAddress(valid_url, SecretStr(valid_key) if valid_key else None, ca_file)


def validate_url(url: str) -> str:
    """Return the URL of a service.

    Raises:
        ValueError: it is not one, or has a password.
    """
    try:
        parts = urlsplit(url.strip())
        is_valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid or not url.isprintable():
        raise ValueError("must look like http://127.0.0.1:8080")
    if "@" in parts.netloc:
        raise ValueError("must not have a user or password; give the API key in AUDIT_KEY")
    if parts.query or parts.fragment:
        raise ValueError("must be the address of the service, without ? or #")
    return url.strip()


def validate_key(key: str | None) -> str | None:
    """Return an API key, which the error does not show. If it is from a file, a line may end."""
    stripped = (key or "").strip()
    if not all("!" <= character <= "~" for character in stripped):
        raise ValueError("must be a single API key, without spaces or line breaks")
    return stripped or None
