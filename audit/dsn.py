"""Reads a DSN as libpq does, so that asyncpg and psycopg connect in the same way.

libpq itself splits the text, which is a URI or has the form `key=value`, and reads the `PG…`
variables. Only the parameters in the tables below are supported. Any other is refused before
anything connects, because one of the drivers might ignore it. No error message contains a value,
which could be a password or a part of one.
"""

from __future__ import annotations

import os
import pwd
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

_FORM: Final = (
    "must look like postgresql://user:password@host:port/database, where special characters of a"
    " name or password are percent-encoded, or like host=… port=… dbname=… user=… password=…"
)
_ENCODE: Final = "percent-encode the characters / : @ of a user or password, such as %2F for /"
_DEFAULT_PORT: Final = "5432"
_LAST_PORT: Final = 65535
#: The folders in which the builds of Debian and of PostgreSQL create the socket.
_SOCKET_FOLDERS: Final = ("/var/run/postgresql", "/tmp")  # noqa: S108 - PostgreSQL's default
_LEAST_CONNECT_SECONDS: Final = 2
_VERIFYING: Final = ("verify-ca", "verify-full")

#: Supported with any value. libpq or the code below validates it.
_FREE: Final = frozenset({
    "application_name", "connect_timeout", "dbname", "fallback_application_name", "host",
    "hostaddr", "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval",
    "options", "passfile", "password", "port", "sslcert", "sslcrl", "sslkey", "sslpassword",
    "sslrootcert", "tcp_user_timeout", "user",
})  # fmt: skip
_NUMBERS: Final = (
    "connect_timeout", "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval",
    "tcp_user_timeout",
)  # fmt: skip
_TLS_VERSIONS: Final = ("", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
#: Supported with these values only.
_BOUND: Final[Mapping[str, tuple[str, ...]]] = {
    "channel_binding": ("prefer", "disable"),
    "client_encoding": ("UTF8", "utf8", "UTF-8", "utf-8"),
    "gssdelegation": ("0",),
    "gssencmode": ("disable", "prefer"),
    "load_balance_hosts": ("disable", "random"),
    "ssl_max_protocol_version": _TLS_VERSIONS,
    "ssl_min_protocol_version": _TLS_VERSIONS,
    "sslcertmode": ("allow", "disable"),
    "sslcompression": ("0",),
    "sslmode": ("disable", "allow", "prefer", "require", *_VERIFYING),
    "sslnegotiation": ("postgres",),
    "sslsni": ("1",),
    "target_session_attrs": (
        "any", "read-write", "read-only", "primary", "standby", "prefer-standby",
    ),
}  # fmt: skip
#: Ignored with these values, which are defaults of libpq and need not be part of the DSN.
_HARMLESS: Final = {"krbsrvname": "postgres"}
#: The name of a parameter in an error message of libpq.
_NAMED: Final = re.compile(
    r"(?:connection option|URI query parameter:?|in URI query parameter:) \"([a-z][a-z_]*)\""
)
_FIELD: Final = r"((?:\\.|[^:\\])*)"
#: host:port:database:user:password, in which a backslash escapes a colon or a backslash.
_PASSWORD_LINE: Final = re.compile(":".join([_FIELD] * 5))


@dataclass(frozen=True, slots=True)
class Host:
    """A host of the DSN and its port."""

    name: str
    """A name, an address, or the folder of a socket, as the DSN has it."""
    address: str
    """The address to connect to: `hostaddr` if it is given, or else the name."""
    port: int

    @property
    def is_socket(self) -> bool:
        """Whether it is the folder of a Unix socket."""
        return self.address.startswith("/")

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        return f"{name}:{self.port}"


@dataclass(frozen=True, slots=True)
class Dsn:
    """A DSN whose parameters are all supported. Its `repr` shows no password."""

    hosts: tuple[Host, ...]
    _parameters: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Dsn({self.name!r})"

    def __getitem__(self, parameter: str) -> str:
        """Return the value of a parameter, or an empty text if it has none."""
        return self._parameters.get(parameter, "")

    def each_host(self) -> list[Dsn]:
        """Return a DSN for each of the hosts."""
        return [replace(self, hosts=(host,)) for host in self.hosts]

    @property
    def name(self) -> str:
        """Hosts, ports and database for a message, without user or password."""
        return f"{','.join(map(str, self.hosts))}/{self['dbname']}"

    @property
    def connect_seconds(self) -> float | None:
        """The time limit for each host, or None if the DSN sets no limit."""
        seconds = int(self["connect_timeout"] or 0)
        return max(seconds, _LEAST_CONNECT_SECONDS) if seconds > 0 else None

    @property
    def may_write(self) -> bool:
        """Whether the service prefers a server that can write."""
        return self["target_session_attrs"] in {"any", "read-write", "primary"}

    def parameters(self, **changes: str) -> dict[str, str]:
        """Return all parameters for psycopg, so that libpq reads no variables.

        With several hosts, `any` becomes `read-write`, because the commands that use psycopg write.
        """
        if len(self.hosts) > 1 and self["target_session_attrs"] == "any":
            changes = {"target_session_attrs": "read-write", **changes}
        return {**self._parameters, **changes}

    def password_for(self, host: Host) -> str | None:
        """Return the password for a host, from the DSN or from the password file."""
        if self["password"] or not self["passfile"]:
            return self["password"] or None
        is_default = not host.name or host.name in _SOCKET_FOLDERS
        key = ("localhost" if is_default else host.name, str(host.port))
        return _password_in_file(Path(self["passfile"]), (*key, self["dbname"], self["user"]))


def parse(text: str) -> Dsn:
    """Combine a DSN with the `PG…` variables, as libpq does.

    Raises:
        ValueError: it cannot be read, or has a parameter that is not supported. The message
            contains the name of the parameter, but no value.
    """
    given = _split(text)
    defaults, variables = _from_environment()
    effective = {**defaults, **given}
    for name, value in effective.items():
        _require_supported(name, value, variable=None if name in given else variables.get(name))
    if "host" in given and "hostaddr" not in given and effective.get("hostaddr"):
        # libpq would connect to this address instead of the host.
        raise ValueError("PGHOSTADDR: must not be set if the DSN names a host")
    hosts = _hosts(effective)
    found = {name: value for name, value in effective.items() if name not in _HARMLESS}
    found["user"] = found.get("user") or _user()
    found["dbname"] = found.get("dbname") or found["user"]
    found["host"] = ",".join(host.name for host in hosts)
    found["port"] = ",".join(str(host.port) for host in hosts)
    if any(host.address != host.name for host in hosts):
        found["hostaddr"] = ",".join(host.address for host in hosts)
    found["client_encoding"] = "UTF8"
    is_mode_given = "sslmode" in {**given, **variables}
    found.update(_tls_files(found, is_mode_given=is_mode_given))
    if not found.get("passfile") and (home := _home()):
        found["passfile"] = str(home / ".pgpass")
    return Dsn(hosts, {name: value for name, value in found.items() if value})


def _split(text: str) -> dict[str, str]:
    # The import of psycopg would slow down `audit --help`.
    import psycopg  # noqa: PLC0415
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

    if not text.strip() or "\0" in text:
        raise ValueError(_FORM)
    try:
        read = conninfo_to_dict(text)
    except (psycopg.Error, UnicodeError) as failure:
        named = _NAMED.search(str(failure))
        if named is None or _could_be_secret(named[1], text):
            raise ValueError(_FORM) from None
        if "key/value separator" in str(failure):
            raise ValueError(f"{named[1]}: must be followed by one = and its value") from None
        raise ValueError(f"{named[1]}: is not a parameter of PostgreSQL") from None
    return {name: str(value) for name, value in read.items() if value not in {None, ""}}


def _could_be_secret(word: str, text: str) -> bool:
    """Return whether a word that libpq took for a parameter may be part of a password."""
    before, _, after = text.rpartition(word)
    return "@" in after or bool(re.search(r"password\s*=\s*\S+\s+$", before))


def _from_environment() -> tuple[dict[str, str], dict[str, str]]:
    """Return the defaults of libpq and of the environment, and the variables that are set."""
    from psycopg.pq import Conninfo  # noqa: PLC0415

    if os.environ.get("PGSERVICE"):
        raise ValueError("PGSERVICE: service files are not supported; put their content here")
    values = {}
    variables = {}
    for option in Conninfo.get_defaults():
        name = option.keyword.decode()
        variable = option.envvar.decode() if option.envvar else ""
        if os.environ.get(variable):
            variables[name] = variable
        # Without PGUSER, libpq returns the name of the system user, which `_user` looks up later.
        if option.val and (name != "user" or name in variables):
            values[name] = option.val.decode("utf-8", "surrogateescape")
    return values, variables


def _require_supported(name: str, value: str, *, variable: str | None) -> None:
    shown = f"{variable} ({name})" if variable else name
    if name in _FREE:
        if name in _NUMBERS and not re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", value):
            raise ValueError(f"{shown}: must be a whole number")
        return
    if name in _BOUND:
        if value not in _BOUND[name]:
            allowed = " or ".join(filter(None, _BOUND[name]))
            raise ValueError(f"{shown}: must be {allowed}; other values are not supported")
        return
    if value and _HARMLESS.get(name) != value:
        raise ValueError(f"{shown}: is not supported")


def _hosts(values: Mapping[str, str]) -> tuple[Host, ...]:
    names = values.get("host", "").split(",")
    addresses = values.get("hostaddr", "").split(",") if values.get("hostaddr") else []
    if addresses and not values.get("host"):
        names = [""] * len(addresses)
    if addresses and len(addresses) != len(names):
        raise ValueError("hostaddr: must have as many entries as host")
    ports = values.get("port", "").split(",")
    if len(ports) == 1:
        ports *= len(names)
    if len(ports) != len(names):
        raise ValueError("port: must be one, or as many as there are hosts")
    hosts = []
    for name, address, port in zip(names, addresses or names, ports, strict=True):
        if "@" in name:
            raise ValueError(f"host: must not contain @; {_ENCODE}")
        number = port.strip() or _DEFAULT_PORT
        if not re.fullmatch("[0-9]{1,5}", number) or not 1 <= int(number) <= _LAST_PORT:
            raise ValueError(f"port: must be a number from 1 to {_LAST_PORT}; {_ENCODE}")
        where = address or name or _socket_folder()
        hosts.append(Host(name or where, where, int(number)))
    return tuple(hosts)


def _socket_folder() -> str:
    found = (folder for folder in _SOCKET_FOLDERS if Path(folder).is_dir())
    return next(found, _SOCKET_FOLDERS[-1])


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise ValueError(
            f"user: is missing, and the user id {os.geteuid()} has no name to take instead"
        ) from None


def _home() -> Path | None:
    """Return the home folder as libpq does, or None if there is none or it cannot be entered."""
    home = os.environ.get("HOME")
    if not home:
        try:
            home = pwd.getpwuid(os.geteuid()).pw_dir
        except KeyError:
            return None
    return Path(home) if os.access(home, os.X_OK) else None


def _tls_files(values: Mapping[str, str], *, is_mode_given: bool) -> dict[str, str]:
    """Return the parameters of TLS. Files that are not named come from the home folder."""
    mode = values["sslmode"]
    root = values.get("sslrootcert", "")
    if root == "system" and not is_mode_given:
        mode = "verify-full"
    if root == "system" and mode != "verify-full":
        raise ValueError("sslmode: must be verify-full with sslrootcert=system")
    if mode == "disable":
        return {"sslmode": mode, "sslrootcert": "", "sslcertmode": "disable"}
    home = _home()
    folder = home / ".postgresql" if home else None
    for name in ("sslrootcert", "sslcert", "sslkey", "sslcrl"):
        given = values.get(name)
        if given and given != "system" and not os.access(given, os.R_OK):
            raise ValueError(f"{name}: names a file that cannot be read")
    root = root or _present(folder, "root.crt")
    if not root and mode in _VERIFYING:
        raise ValueError(
            f"sslrootcert: is needed by sslmode={mode}; name a file of certificates, or system"
        )
    files = {"sslmode": mode, "sslrootcert": root}
    files["sslcrl"] = values.get("sslcrl") or (root and _present(folder, "root.crl"))
    files["sslcert"] = values.get("sslcert") or _present(folder, "postgresql.crt")
    if values.get("sslcertmode") == "disable" or not files["sslcert"]:
        return {**files, "sslcert": "", "sslkey": "", "sslcertmode": "disable"}
    files["sslkey"] = values.get("sslkey") or _present(folder, "postgresql.key")
    if not files["sslkey"]:
        raise ValueError("sslkey: is needed by sslcert")
    return files


def _present(folder: Path | None, name: str) -> str:
    return str(folder / name) if folder and os.access(folder / name, os.R_OK) else ""


def _password_in_file(path: Path, wanted: tuple[str, str, str, str]) -> str | None:
    """Return the password in the first line that matches host, port, database and user."""
    try:
        status = path.stat()
        # Like libpq, ignore a file that other users may read.
        if not stat.S_ISREG(status.st_mode) or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            return None
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    for line in lines:
        entry = _PASSWORD_LINE.match(line)
        if entry is None or line.startswith("#"):
            continue
        *fields, password = entry.groups()
        if all(
            field == "*" or _unescaped(field) == want
            for field, want in zip(fields, wanted, strict=True)
        ):
            return _unescaped(password)
    return None


def _unescaped(field: str) -> str:
    return re.sub(r"\\(.)", r"\1", field)
