"""The settings of the service. Each is an option of `audit serve` and an `AUDIT_…` variable."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

import platformdirs
from pydantic import AfterValidator, ConfigDict, Field, SecretStr, model_validator

from audit.addresses import networks_of
from audit.dsn import parse
from audit.limits import Limits

log = logging.getLogger("audit")

_PREFIX: Final = "AUDIT_"
#: Kubernetes sets AUDIT_PORT to this for every container beside a Service named `audit`.
_SERVICE_LINK: Final = re.compile(r"(?:tcp|udp|sctp)://\S+:[0-9]+")
#: How similar the name of an unknown variable must be to that of a setting to be logged.
_ALIKE: Final = 0.8
#: An origin in the form that browsers send.
_ORIGIN: Final = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.ASCII)
Partition = Literal["month", "week", "day"]
LogFormat = Literal["text", "json"]
#: `off` and `local` are missing, because an acknowledged task must survive a crash.
SynchronousCommit = Literal["on", "remote_apply"]

#: The standbys that a service can use.
MOST_STANDBYS: Final = 16
_MAX_DEFAULT_WORKERS: Final = 8
_MAX_DEFAULT_POOL: Final = 24
#: Of the 100 that PostgreSQL allows by default, three are for superusers and one for a command.
_DEFAULT_CONNECTIONS: Final = 96


def _data_dir() -> Path:
    try:
        return Path(platformdirs.user_data_dir("task-audit", appauthor=False))
    except RuntimeError:
        # There is no home folder. Only the embedded PostgreSQL needs one, and reports it.
        return Path("~/.local/share/task-audit")


def _validate_dsn(dsn: SecretStr | None) -> SecretStr | None:
    """Validate the DSN here, because the errors of the drivers would quote the password."""
    if dsn is not None:
        parse(dsn.get_secret_value())
    return dsn


def _validate_read_dsn(dsn: SecretStr | None) -> SecretStr | None:
    if dsn is not None:
        hosts = [str(host) for host in parse(dsn.get_secret_value()).hosts]
        if len(hosts) > MOST_STANDBYS:
            raise ValueError(f"must have at most {MOST_STANDBYS} hosts")
        if len({*hosts}) < len(hosts):
            raise ValueError("must name each host once")
    return dsn


def _validate_jwks(place: str | None) -> str | None:
    """Refuse plain HTTP, over which an attacker could replace the keys."""
    if place is not None:
        parts = urlsplit(place)
        is_local = parts.hostname in {"localhost", "127.0.0.1", "::1"}
        if parts.scheme == "http" and not is_local:
            raise ValueError("must be a file or an https URL")
    return place


def _validate_origins(listed: str | None) -> str | None:
    """Accept only origins in the form that browsers send. Any other text would match none."""
    if listed is None:
        return None
    origins = [origin.strip() for origin in listed.split(",") if origin.strip()]
    for origin in origins:
        if not _ORIGIN.fullmatch(origin) or origin.endswith((":80", ":443")):
            raise ValueError(
                f"{origin!r} must look like https://ops.example.com or http://localhost:3000: in"
                " small letters, without a path, and without the port 80 or 443"
            )
    return ",".join(origins)


def _validate_primary_url(url: str | None) -> str | None:
    if url is not None and not url.startswith(("https://", "http://")):
        raise ValueError("must be an http or https URL")
    return url


def _validate_trace_url(url: str | None) -> str | None:
    if url is not None and not (url.startswith(("https://", "http://")) and "{trace_id}" in url):
        raise ValueError("must be an http or https URL that contains {trace_id}")
    return url


def _validate_networks(listed: str | None) -> str | None:
    if listed is not None:
        try:
            networks_of(listed)
        except ValueError as failure:
            raise ValueError(
                f"must be addresses or networks such as 10.0.0.0/8: {failure}"
            ) from None
    return listed


def _usable_cores() -> int:
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this platform
        cores = os.cpu_count() or 1
    return min(cores, _MAX_DEFAULT_WORKERS)


#: Of four connections, queries use at most three at a time. The fourth is for checks.
_LEAST_STANDBY_POOL: Final = 4


def _default_pool_size(given: dict[str, Any]) -> int:
    """Divide the connections among the workers and one more, which runs during a restart."""
    workers: int = given.get("workers", 1)
    return max(4, min(_MAX_DEFAULT_POOL, _DEFAULT_CONNECTIONS // (workers + 1) - 1))


class Settings(Limits):
    """The settings. Given values override environment variables, and those override defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on. 0.0.0.0 means all IPv4 addresses, :: all IPv6 and IPv4 addresses."""
    insecure: bool = False
    """Serve on any address without API keys. Otherwise only a loopback address needs no keys."""
    rate_per_second: float = Field(default=0, ge=0, le=1_000_000, allow_inf_nan=False)
    """Rate limit of each API key in requests per second, over all workers. Requests over the limit
    get 429; 0 means unlimited."""
    jwt_issuer: str | None = None
    """Issuer (`iss`) of the JSON Web Tokens to accept as API keys. If unset, none are accepted."""
    jwt_audience: str | None = None
    """Audience (`aud`) that the tokens must have."""
    jwt_jwks: Annotated[str | None, AfterValidator(_validate_jwks)] = None
    """File or https URL of the JSON Web Key Set with the public keys of the issuer."""
    jwt_scope_claim: str = "scope"
    """Claim with the scopes of a token, as words in a string or as an array."""
    jwt_scope_prefix: str = ""
    """Prefix of `read`, `record` and `admin` in that claim."""
    jwt_project_claim: str | None = None
    """Claim with the only project_id that a token may access, or * for all projects. If unset,
    tokens may access all projects."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port to listen on. 0 means any free port."""
    workers: int = Field(default_factory=_usable_cores, ge=1, le=64)
    """Number of worker processes. If unset, one for each usable core, but at most 8."""
    dsn: Annotated[SecretStr | None, AfterValidator(_validate_dsn)] = None
    """PostgreSQL database as postgresql://user:password@host:port/database. If unset, an embedded
    PostgreSQL is used."""
    read_dsn: Annotated[SecretStr | None, AfterValidator(_validate_read_dsn)] = None
    """Standbys of that database, such as postgresql://user:password@db2,db3/database. Each host is
    a standby. They compute lists and statistics while they are fresh enough. If unset, the database
    of --dsn does."""
    primary_url: Annotated[str | None, AfterValidator(_validate_primary_url)] = None
    """URL of the service on the primary, such as https://audit.example.com. A service on a standby
    names it when it refuses a write."""
    synchronous_commit: SynchronousCommit = "on"
    """When a write is acknowledged: on means as soon as it is durable, also on synchronous
    standbys; remote_apply means as soon as queries on those standbys see it."""
    data_dir: Path = _data_dir()
    """Folder for the data of the embedded PostgreSQL."""
    demo: bool = False
    """Record 20,000 demo tasks of the last 90 days if the history is empty."""
    migrate: bool | None = None
    """Apply missing migrations before serving. If unset, only for the embedded PostgreSQL."""
    partition: Partition = "month"
    """Time range of a new partition: month, week or day."""
    pool_size: int = Field(default_factory=_default_pool_size, ge=1, le=1000)
    """Connections to PostgreSQL of each worker. If unset, 24, or fewer if 3 or more workers share
    the 100 connections that PostgreSQL allows by default."""
    queue_seconds: float = Field(default=2, gt=0, le=3600)
    """How long a request may wait for a database connection. A request that would wait longer gets
    503 at once, with a Retry-After header."""
    staleness_wait_seconds: float = Field(default=2, ge=0, le=60)
    """How long a request with Audit-Position-At-Least waits until the database server has replayed
    that position. Then it gets 503."""
    acquire_timeout_seconds: float = Field(default=5, gt=0, le=3600)
    """How long it may take to connect to PostgreSQL. Then the request gets 503."""
    statement_timeout_seconds: float = Field(default=10, gt=0, le=3600)
    """How long a statement may run. Then PostgreSQL cancels it, and the request gets 504."""
    write_timeout_seconds: float = Field(default=15, gt=0, le=3600)
    """How long all statements of a POST or PATCH may run. Then PostgreSQL rolls them back, and the
    request gets 504."""
    answers_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    """Memory of each worker for cached responses, in bytes. 0 means no cache."""
    max_connections: int = Field(default=2000, ge=1)
    """Client connections of each worker. Connections over the limit get 503."""
    max_unread_bytes: int = Field(default=256 * 1024 * 1024, ge=1024 * 1024)
    """Memory of each worker for responses that clients have not read yet, in bytes. Over the limit,
    the clients that have been reading for the longest are disconnected."""
    max_bodies_bytes: int = Field(default=256 * 1024 * 1024, ge=1024 * 1024)
    """Memory of each worker for request bodies, in bytes, without the first 64 KiB of each body. A
    request whose body does not fit gets 503."""
    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1024)
    """Size limit of a request body, both as sent and decompressed."""
    max_expansion: int = Field(default=100, ge=1)
    """How many times larger a compressed body may become. 1 MiB is always allowed."""
    cors_origin: Annotated[str | None, AfterValidator(_validate_origins)] = None
    """Origins whose web pages may call the service (CORS), separated by commas."""
    max_page_bytes: int = Field(default=32 * 1024 * 1024, ge=1024, le=512 * 1024 * 1024)
    """Size limit of a page of tasks. A page of one task may be larger."""
    most_grouped: int = Field(default=200_000, ge=1, le=10_000_000)
    """The most tasks that a statistic groups one by one. The counts of tasks by service, time,
    status and intent answer most statistics without that."""
    max_feeds: int = Field(default=100, ge=1, le=100_000)
    """Readers of the feed of changes that each worker serves at once. A reader over the limit gets
    503."""
    feed_seconds: float = Field(default=0.25, ge=0.05, le=60)
    """How often a worker looks for new changes, as long as readers of the feed wait for some."""
    max_exports: int = Field(default=2, ge=1, le=100)
    """Exports at once, of all services on a database. A further one gets 503. Each has a database
    connection of its own, besides those of pool_size."""
    export_timeout_seconds: float = Field(default=3600, gt=0, le=86_400)
    """How long an export may take. Then it is cut off, and the client can resume it."""
    request_timeout_seconds: float = Field(default=30, gt=0, le=3600)
    """How long a request may take, with its body, and then how long the client may take to read the
    response."""
    idle_timeout_seconds: float = Field(default=75, gt=0, le=3600)
    """How long a connection may stay idle, or take to send the head of a request."""
    max_partitions: int = Field(default=4000, ge=1, le=100_000)
    """Limit of the partitions. A task that would need another one gets 422."""
    max_fold_cells: int = Field(default=50_000, ge=1)
    """Limit of the counts that one fold updates: two for each change, and two for each of its
    services."""
    log_format: LogFormat = "text"
    """Format of the log: text for people, or json with one object per line."""
    log_sample: float = Field(default=0, ge=0, le=1)
    """Share of the requests to log, from 0 to 1. Up to 20 failures (5xx) per second are always
    logged."""
    trace_url: Annotated[str | None, AfterValidator(_validate_trace_url)] = None
    """URL of a trace, such as https://tempo.example.com/trace/{trace_id}. The web page then links
    each task whose outcome has a trace_id to its trace."""
    trusted_proxy: Annotated[str | None, AfterValidator(_validate_networks)] = None
    """Reverse proxies, such as 10.0.0.0/8,::1, whose X-Forwarded-For header is trusted to name the
    client in the log."""
    traces: bool = False
    """Send OpenTelemetry traces, configured by the OTEL_… variables. Needs task-audit[otel]."""

    @model_validator(mode="before")
    @classmethod
    def _add_environment(cls, given: dict[str, Any]) -> dict[str, Any]:
        return dict(_from_environment(cls.model_fields)) | given

    @property
    def standby_pool_size(self) -> int:
        """The connections to each standby. One is free for checks, whatever queries run."""
        return max(_LEAST_STANDBY_POOL, self.pool_size)

    @property
    def standbys(self) -> list[str]:
        """The hosts and ports of the standbys."""
        if self.read_dsn is None:
            return []
        return [str(host) for host in parse(self.read_dsn.get_secret_value()).hosts]

    @model_validator(mode="after")
    def _validate_standbys(self) -> Self:
        if self.read_dsn is not None and self.dsn is None:
            raise ValueError("read_dsn: needs dsn too")
        return self

    @model_validator(mode="after")
    def _validate_issuer(self) -> Self:
        needed = {"jwt_audience": self.jwt_audience, "jwt_jwks": self.jwt_jwks}
        missing = [name for name, value in needed.items() if value is None]
        if self.jwt_issuer is not None and missing:
            raise ValueError(f"jwt_issuer: needs {' and '.join(missing)} too")
        return self


#: The settings of a program that gives none. The environment does not change them.
DEFAULTS: Final = Settings.model_construct()


def _from_environment(settings: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield the settings that variables set, and log variables that only look like a setting.

    The names of variables are in capital or in small letters. An empty variable sets nothing.
    """
    for variable, value in os.environ.items():
        name = variable.upper()
        if not name.startswith(_PREFIX):
            continue
        setting = name.removeprefix(_PREFIX).lower()
        if setting not in settings:
            for meant in get_close_matches(setting, settings, n=1, cutoff=_ALIKE):
                log.warning(
                    "%s is not a setting and has no effect; is it %s?",
                    name,
                    f"{_PREFIX}{meant.upper()}",
                )
        elif _SERVICE_LINK.fullmatch(value):
            log.warning(
                "%s=%s is ignored: Kubernetes sets it for a Service of that name; to choose a"
                " port, set it for the container or give --port",
                name,
                value,
            )
        elif value:
            yield setting, value
