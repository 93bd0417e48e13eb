"""Reads a DSN as libpq does, so that it means the same to both drivers.

libpq itself splits the text, in its URI form and its `key=value` form, and reads the `PG…`
variables. The table below says which parameters are supported. Any other is refused by its name,
before anything connects: a parameter that one driver obeys and the other ignores is worse than an
error.
No message contains a value, which could be a password or a part of one.
"""

from __future__ import annotations

import os
import pwd
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FORM: Final = (
    "must look like postgresql://user:password@host:port/database, where special characters of a"
    " name or password are percent-encoded, or like host=… port=… dbname=… user=… password=…"
)
_ENCODE: Final = "percent-encode the characters / : @ of a user or password, such as %2F for /"
_DEFAULT_PORT: Final = "5432"
_LAST_PORT: Final = 65535
#: Where Debian's and PostgreSQL's own builds put the socket.
_SOCKET_FOLDERS: Final = ("/var/run/postgresql", "/tmp")  # noqa: S108 - PostgreSQL's default
_LEAST_CONNECT_SECONDS: Final = 2
_VERIFYING: Final = ("verify-ca", "verify-full")

#: Supported whatever the value is; libpq or the code below checks the value.
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
#: Parameters for which libpq has a default, so their presence says nothing about the DSN.
_HARMLESS: Final = {"krbsrvname": "postgres"}
#: How libpq names a parameter in a complaint about the text.
_NAMED: Final = re.compile(
    r"(?:connection option|URI query parameter:?|in URI query parameter:) \"([a-z][a-z_]*)\""
)
_FIELD: Final = r"((?:\\.|[^:\\])*)"
#: host:port:database:user:password, where a backslash escapes itself and the colon.
_PASSWORD_LINE: Final = re.compile(":".join([_FIELD] * 5))


@dataclass(frozen=True, slots=True)
class Host:
    """One place where a server may answer."""

    name: str
    """As given: a name, an address, or the folder of a socket."""
    address: str
    """Where to connect: `hostaddr` if that is given, else the name."""
    port: int

    @property
    def is_socket(self) -> bool:
        """Whether it is a folder with a Unix socket."""
        return self.address.startswith("/")

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        return f"{name}:{self.port}"


@dataclass(frozen=True, slots=True)
class Dsn:
    """A DSN whose every parameter is supported. Its `repr` shows no password."""

    hosts: tuple[Host, ...]
    _parameters: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Dsn({self.name!r})"

    def __getitem__(self, parameter: str) -> str:
        """Return the value of a parameter, "" if it has none."""
        return self._parameters.get(parameter, "")

    @property
    def name(self) -> str:
        """Name the database for people: hosts, ports and database, without user or password."""
        return f"{','.join(map(str, self.hosts))}/{self['dbname']}"

    @property
    def connect_seconds(self) -> float | None:
        """How long to try each host; None: the DSN sets no limit."""
        seconds = int(self["connect_timeout"] or 0)
        return max(seconds, _LEAST_CONNECT_SECONDS) if seconds > 0 else None

    @property
    def may_write(self) -> bool:
        """Whether a server that can write is the one to look for."""
        return self["target_session_attrs"] in {"any", "read-write", "primary"}

    def parameters(self, **changes: str) -> dict[str, str]:
        """Return what libpq needs to connect without reading anything else of the environment.

        With several hosts, `any` becomes `read-write`: psycopg is for commands that write.
        """
        if len(self.hosts) > 1 and self["target_session_attrs"] == "any":
            changes = {"target_session_attrs": "read-write", **changes}
        return {**self._parameters, **changes}

    def password_for(self, host: Host) -> str | None:
        """Return the password to send to a host: the one given, or that of the password file."""
        if self["password"] or not self["passfile"]:
            return self["password"] or None
        is_default = not host.name or host.name in _SOCKET_FOLDERS
        key = ("localhost" if is_default else host.name, str(host.port))
        return _password_in_file(Path(self["passfile"]), (*key, self["dbname"], self["user"]))


def parse(text: str) -> Dsn:
    """Return what a DSN and the `PG…` variables mean together.

    Raises:
        ValueError: it cannot be read, or has a parameter that is not supported; the message says
            which, and shows no value.
    """
    given = _split(text)
    effective = {**_from_environment(), **given}
    for name, value in effective.items():
        _require_supported(name, value, variable=None if name in given else _VARIABLES.get(name))
    if "host" in given and "hostaddr" not in given and effective.get("hostaddr"):
        # libpq would connect there instead.
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
    is_mode_given = "sslmode" in given or bool(os.environ.get("PGSSLMODE"))
    found.update(_tls_files(found, is_mode_given=is_mode_given))
    if not found.get("passfile") and (home := _home()):
        found["passfile"] = str(home / ".pgpass")
    return Dsn(hosts, {name: value for name, value in found.items() if value})


#: Filled when the first DSN is read.
_VARIABLES: dict[str, str] = {}


def _split(text: str) -> dict[str, str]:
    # Importing psycopg takes longer than `audit --help` should.
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
    """Whether a word that libpq took for a parameter may be a piece of a password."""
    before, _, after = text.rpartition(word)
    return "@" in after or bool(re.search(r"password\s*=\s*\S+\s+$", before))


def _from_environment() -> dict[str, str]:
    """Return what libpq takes from the environment, and its own defaults."""
    from psycopg.pq import Conninfo  # noqa: PLC0415

    if os.environ.get("PGSERVICE"):
        raise ValueError("PGSERVICE: service files are not supported; put their content here")
    values = {}
    for option in Conninfo.get_defaults():
        name = option.keyword.decode()
        if option.envvar:
            _VARIABLES[name] = option.envvar.decode()
        # Without a variable, libpq fills in the name of the user, by the system's list of users.
        if option.val and name != "user":
            values[name] = option.val.decode("utf-8", "surrogateescape")
    if user := os.environ.get("PGUSER"):
        values["user"] = user
    return values


def _require_supported(name: str, value: str, *, variable: str | None) -> None:
    shown = f"{variable} ({name})" if variable and os.environ.get(variable) else name
    if name in _FREE:
        if name in _NUMBERS and not re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", value):
            raise ValueError(f"{shown}: must be a whole number")
        return
    if name in _BOUND:
        if value not in _BOUND[name]:
            allowed = " or ".join(one for one in _BOUND[name] if one)
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
    """Return the home folder as libpq finds it; None: there is none, or it cannot be entered."""
    home = os.environ.get("HOME")
    if not home:
        try:
            home = pwd.getpwuid(os.geteuid()).pw_dir
        except KeyError:
            return None
    return Path(home) if os.access(home, os.X_OK) else None


def _tls_files(values: Mapping[str, str], *, is_mode_given: bool) -> dict[str, str]:
    """Name the files of TLS, the default ones of the home folder too if they are there."""
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
    """Return the password of the first line that fits host, port, database and user."""
    try:
        status = path.stat()
        # Like libpq: a file that others may read is not used.
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
