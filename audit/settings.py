"""The configuration of the service: each setting is an option and an `AUDIT_…` variable."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

import platformdirs
from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from audit.addresses import networks_of
from audit.dsn import parse

log = logging.getLogger("audit")

_PREFIX: Final = "AUDIT_"
#: Kubernetes sets AUDIT_PORT to this for every container beside a Service named `audit`.
_SERVICE_LINK: Final = re.compile(r"(?:tcp|udp|sctp)://\S+:[0-9]+")
_ALIKE: Final = 0.8
Partition = Literal["month", "week", "day"]
LogFormat = Literal["text", "json"]
#: A task that is acknowledged must survive a crash: `off` and `local` are not among them.
SynchronousCommit = Literal["on", "remote_apply"]

_MOST_WORKERS_BY_DEFAULT: Final = 8
_POOL_BY_DEFAULT: Final = 24
#: PostgreSQL keeps three of its 100 for superusers, and one is for the command line.
_CONNECTIONS_OF_POSTGRESQL: Final = 96


def _data_dir() -> Path:
    try:
        return Path(platformdirs.user_data_dir("task-audit", appauthor=False))
    except RuntimeError:
        # There is no home folder. Only the embedded PostgreSQL needs one, and says so.
        return Path("~/.local/share/task-audit")


def _supported_dsn(dsn: SecretStr | None) -> SecretStr | None:
    """Refuse here what the drivers would quote in their errors, password and all."""
    if dsn is not None:
        parse(dsn.get_secret_value())
    return dsn


def _safe_place(place: str | None) -> str | None:
    """Keys that are read over a network in the clear could be anyone's."""
    if place is not None:
        parts = urlsplit(place)
        is_local = parts.hostname in {"localhost", "127.0.0.1", "::1"}
        if parts.scheme == "http" and not is_local:
            raise ValueError("must be a file or an https URL")
    return place


def _origins(listed: str | None) -> str | None:
    """Accept origins as browsers send them; any other text would match none."""
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


def _networks(listed: str | None) -> str | None:
    if listed is not None:
        try:
            networks_of(listed)
        except ValueError as wrong:
            raise ValueError(f"must be addresses or networks such as 10.0.0.0/8: {wrong}") from None
    return listed


def _usable_cores() -> int:
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this platform
        cores = os.cpu_count() or 1
    return min(cores, _MOST_WORKERS_BY_DEFAULT)


def _fitting_pool(given: dict[str, Any]) -> int:
    """Return a pool for each of the workers, and of one more while a worker is replaced."""
    workers: int = given.get("workers", 1)
    return max(4, min(_POOL_BY_DEFAULT, _CONNECTIONS_OF_POSTGRESQL // (workers + 1) - 1))


_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.ASCII)


class Settings(BaseSettings):
    """Given values come before variables of the environment, and those before the defaults."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on; 0.0.0.0 for all of IPv4, :: for all of IPv6 and IPv4."""
    insecure: bool = False
    """Answer on any address, and not only on a loopback one, while there are no keys."""
    rate_per_second: float = Field(default=0, ge=0, le=1_000_000, allow_inf_nan=False)
    """Requests a second for each key, over all workers; others get 429; 0: no rate limit."""
    jwt_issuer: str | None = None
    """Issuer (`iss`) of JSON Web Tokens that are taken as keys; without it, none are."""
    jwt_audience: str | None = None
    """Audience (`aud`) that they must be for."""
    jwt_jwks: Annotated[str | None, AfterValidator(_safe_place)] = None
    """The issuer's public keys, a JSON Web Key Set: a file, or an https URL."""
    jwt_scope_claim: str = "scope"
    """Claim that holds the scopes: words, or an array of them."""
    jwt_scope_prefix: str = ""
    """What stands before `read`, `record` and `admin` in that claim."""
    jwt_project_claim: str | None = None
    """Claim that holds the only project_id that a token is for, or *; unset: it is for all."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port to listen on; 0: any that is free."""
    workers: int = Field(default_factory=_usable_cores, ge=1, le=64)
    """Processes that share the listening socket; unset: one for each usable core, at most 8."""
    dsn: Annotated[SecretStr | None, AfterValidator(_supported_dsn)] = None
    """PostgreSQL, postgresql://user:password@host:port/database; without it, an embedded one."""
    synchronous_commit: SynchronousCommit = "on"
    """When a write is acknowledged: on, once it is durable, on synchronous standbys too if there
    are any; remote_apply, once queries on those standbys see it."""
    data_dir: Path = _data_dir()
    """Where the embedded PostgreSQL keeps its data."""
    demo: bool = False
    """Record 20,000 demo tasks of the last 90 days if the history is empty."""
    migrate: bool | None = None
    """Bring the schema up to date before serving; unset: only on the embedded database."""
    partition: Partition = "month"
    """Range of time of new partitions: month, week or day."""
    pool_size: int = Field(default_factory=_fitting_pool, ge=1, le=1000)
    """Connections to PostgreSQL for each worker; unset: 24, or fewer if 3 or more workers share
    the 100 that PostgreSQL allows by default."""
    queue_seconds: float = Field(default=2, gt=0, le=3600)
    """How long a request may wait for its turn in the database; one that would wait longer is
    refused at once with 503 and the time to come back (Retry-After)."""
    acquire_timeout_seconds: float = Field(default=5, gt=0, le=3600)
    """How long it may take to get a connection to PostgreSQL; a request then gets 503."""
    statement_timeout_seconds: float = Field(default=10, gt=0, le=3600)
    """How long a statement may run before it is refused with 504."""
    write_timeout_seconds: float = Field(default=15, gt=0, le=3600)
    """How long the statements of one POST or PATCH may run together. PostgreSQL then ends them,
    nothing is recorded, and the client gets 504."""
    answers_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    """Memory of each worker for answers to send again while no task changes; 0: none, no ETags."""
    max_connections: int = Field(default=2000, ge=1)
    """Connections of clients to one worker; one more is refused with 503."""
    max_unread_bytes: int = Field(default=256 * 1024 * 1024, ge=1024 * 1024)
    """Memory of each worker for responses that clients have not read yet. Over it, those who have
    been reading for the longest are cut off."""
    max_bodies_bytes: int = Field(default=256 * 1024 * 1024, ge=1024 * 1024)
    """Memory of each worker for the bodies of all requests, beyond 64 KiB of each; a request whose
    body does not fit gets 503."""
    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1024)
    """Longest body of a POST or PATCH, as sent and after its Content-Encoding is undone."""
    max_expansion: int = Field(default=100, ge=1)
    """How many times its size a compressed body may expand to; 1 MiB is always allowed."""
    max_lines_per_request: int = Field(default=200_000, ge=1)
    """Lines of an NDJSON body, blank ones included."""
    max_tasks_per_request: int = Field(default=100_000, ge=1)
    """Tasks of an NDJSON body. A JSON array may contain 1,000 at most."""
    max_task_bytes: int = Field(default=1024 * 1024, ge=1024)
    """Longest JSON text of a task or of a change to one, with its numbers written out."""
    max_number_digits: int = Field(default=1000, ge=20, le=4000)
    """Most digits of a number in JSON, when it is written out: 1e9 has ten."""
    max_nesting: int = Field(default=64, ge=2, le=180)
    """Most levels of objects and arrays in a task; the task itself is the first."""
    max_errors: int = Field(default=20, ge=1, le=10_000)
    """Most errors that a response lists; it names the total number too."""
    cors_origin: Annotated[str | None, AfterValidator(_origins)] = None
    """Origins whose pages may call the service, with commas between them; unset: none."""
    max_page_bytes: int = Field(default=32 * 1024 * 1024, ge=1024, le=512 * 1024 * 1024)
    """Longest page of a list, in bytes; a page of one task may be longer."""
    request_timeout_seconds: float = Field(default=30, gt=0, le=3600)
    """How long a request may take, its body included, and then how long its answer to be read."""
    idle_timeout_seconds: float = Field(default=75, gt=0, le=3600)
    """How long a connection may be idle between requests, or take to send the head of one."""
    max_partitions: int = Field(default=4000, ge=1, le=100_000)
    """Partitions of the history; a task that needs one more is refused with 422."""
    max_fold_cells: int = Field(default=50_000, ge=1)
    """Work of one fold: two for each service of a change, and two for the change itself."""
    log_format: LogFormat = "text"
    """How the log is written: text for people, or json, an object a line."""
    log_sample: float = Field(default=0, ge=0, le=1)
    """Share of the requests that are logged, 0 to 1; of those that fail with 5xx, 20 a second."""
    trusted_proxy: Annotated[str | None, AfterValidator(_networks)] = None
    """Proxies, as 10.0.0.0/8,::1, whose X-Forwarded-For names the client's address in the log."""
    traces: bool = False
    """Send traces by OpenTelemetry, as OTEL_… variables say; needs task-audit[otel]."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the given values and the environment, without what others set there."""
        assert isinstance(env_settings, EnvSettingsSource)  # noqa: S101 - pydantic's default
        env_settings.env_vars = dict(_meant_for_us(env_settings.env_vars, cls))
        return init_settings, env_settings

    @model_validator(mode="after")
    def _issuer_is_whole(self) -> Self:
        needed = {"jwt_audience": self.jwt_audience, "jwt_jwks": self.jwt_jwks}
        missing = [name for name, value in needed.items() if value is None]
        if self.jwt_issuer is not None and missing:
            raise ValueError(f"jwt_issuer: needs {' and '.join(missing)} too")
        return self


#: The settings of a program that gives none. The environment does not change them.
DEFAULTS: Final = Settings.model_construct()


def _meant_for_us(
    variables: Mapping[str, str | None], settings: type[BaseSettings]
) -> Iterator[tuple[str, str | None]]:
    """Yield the variables, and log those that look like ours and have no effect."""
    known = [f"{_PREFIX}{field.upper()}" for field in settings.model_fields]
    for variable, value in variables.items():
        name = variable.upper()
        if name in known and value and _SERVICE_LINK.fullmatch(value):
            log.warning(
                "%s=%s is ignored: Kubernetes sets it for a Service of that name; to choose a"
                " port, set it for the container or give --port",
                name,
                value,
            )
            continue
        if name.startswith(_PREFIX) and name not in known:
            end = name.removeprefix(_PREFIX).lower()
            for meant in get_close_matches(end, settings.model_fields, n=1, cutoff=_ALIKE):
                log.warning(
                    "%s is not a setting and has no effect; is it %s?",
                    name,
                    f"{_PREFIX}{meant.upper()}",
                )
        yield variable, value
