"""The command `audit`. The only module that reads the environment of the process."""

# ruff: noqa: PLC0415 - a command imports what it needs: `audit --help` answers at once

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from inspect import Parameter, Signature
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, TypeVar
from uuid import UUID

import typer
from pydantic import SecretStr, ValidationError

from audit.access.identity import Insecure, Scope
from audit.dsn import parse
from audit.errors import Invalid, Problem, TimedOut, Unavailable
from audit.settings import Settings

if TYPE_CHECKING:
    from rich.progress import Progress

    from audit.access.keys import Key
    from audit.commands.record_file import Target
    from audit.history.service import Recorded
    from audit.postgres.pool import Pool
    from audit.process.serve import Started

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
Result = TypeVar("Result")
_SAME_SIGNAL_SECONDS = 1
#: When signals came. Their KeyboardInterrupt may be lost in a destructor, or come out as a failure.
_signalled_at: list[float] = []

_EX_USAGE = 2
_EX_DATA = 65
_EX_UNAVAILABLE = 69
_EX_IO = 74
_EX_CONFIG = 78
_EX_INTERRUPTED = 130
#: As the shell shows a program that SIGPIPE ended.
_EX_NO_READER = 141
_MOST_DAYS_OF_KEY = 3650
#: Recounting a long history takes minutes.
_PATIENCE = 24 * 3600
_DIFFERENCE = ("service", "grain", "bucket", "state", "intent", "expected", "counted")
_EXIT_CODES = (
    "Exit codes: 0 done; 2 wrong option or variable; 65 data that cannot be recorded, or counts "
    "that differ; 69 no database, service or port; 74 a file or the output cannot be read or "
    "written; 78 the schema is not current, or there are no keys on an address that others reach; "
    "130 interrupted; 141 the reader of the output has closed it."
)

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Records the task history of an orchestrator and answers questions about it.",
    epilog=_EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; end with one of the documented exit codes."""
    code = _EX_INTERRUPTED
    try:
        for number in _STOP_SIGNALS:
            signal.signal(number, _end)
        code = _run()
    except KeyboardInterrupt:
        pass
    finally:
        # All is left; Python would go back to handlers that end it by the signal.
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _run() -> int:
    """Run the command; return its exit code."""
    try:
        from audit.telemetry import logs

        _fill_closed_streams()
        logs.set_up("text")
        code = int(app(standalone_mode=False) or 0)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt, SystemExit) as failure:  # noqa: BLE001 - a table
        return _failed(failure)
    return code


def _failed(failure: BaseException) -> int:
    """Say in one line what a command failed with, and return its exit code."""
    if isinstance(failure, SystemExit) and isinstance(failure.__context__, OSError):
        failure = failure.__context__  # Typer ends so when a pipe is broken
    match failure:
        case KeyboardInterrupt():
            return _EX_INTERRUPTED
        case Problem() if _signalled_at:
            return _EX_INTERRUPTED
        case typer.TyperException():
            _say(failure.format_message())
            return _EX_USAGE
        case Problem():
            _say(_told(failure))
            return _exit_code(failure)
        case BrokenPipeError():
            _discard_output()
            return _EX_NO_READER
        case OSError():
            _discard_output()
            _say(f"cannot read or write: {failure.strerror or failure}")
            return _EX_IO
    raise failure


def _fill_closed_streams() -> None:
    """Replace standard streams that are closed by ones that fail when they are used.

    Otherwise the next file or connection that is opened gets the number of the closed stream.
    """
    for name, mode, unusable in (
        ("stdin", "r", os.O_WRONLY),
        ("stdout", "w", os.O_RDONLY),
        ("stderr", "w", os.O_WRONLY),
    ):
        stream = getattr(sys, name)
        if stream is None:
            number = os.open(os.devnull, unusable)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
        elif mode == "w":
            # A name in another character set must not be what a command fails with.
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Let Python flush what could not be written into nothing when it ends."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(text: str) -> None:
    """Write a line for programs and people on standard output."""
    sys.stdout.write(text + "\n")


def _print_json(value: object) -> None:
    _print(json.dumps(value, indent=2, default=_text_of))


def _text_of(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns side by side. Nothing is cut or wrapped, however narrow the terminal is."""
    from rich.cells import cell_len

    from audit.telemetry.logs import escaped

    table = [list(header), *([escaped(cell) for cell in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    for row in table:
        padded = (
            cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)
        )
        _print("  ".join(padded).rstrip())


def _say(text: str) -> None:
    """Tell a person something on standard error, beside what is printed for programs."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"audit: {text}\n")
        sys.stderr.flush()


def _end(_number: int, _frame: FrameType | None) -> None:
    """Leave every block that is entered: no PostgreSQL stays behind.

    Python's own handler is one that asyncio replaces; a task that waits for input would not end
    then. Who ends a group of processes may signal twice at once: that is one signal.
    """
    now = time.monotonic()
    again = bool(_signalled_at) and now - _signalled_at[-1] < _SAME_SIGNAL_SECONDS
    _signalled_at.append(now)
    if not again:
        raise KeyboardInterrupt


def _told(problem: Problem) -> str:
    """What failed; where a database is the reason, also what its driver said, in one line."""
    if not isinstance(problem, Unavailable) or problem.__cause__ is None:
        return problem.detail
    cause = " ".join(str(problem.__cause__).split())
    return f"{problem.detail}, see --dsn or AUDIT_DSN: {cause}"


def _exit_code(problem: Problem) -> int:
    from audit.postgres.pool import SchemaNotCurrent
    from audit.postgres.sessions import UnsuitableDatabase

    match problem:
        case SchemaNotCurrent() | Insecure() | UnsuitableDatabase():
            return _EX_CONFIG
        case Unavailable() | TimedOut():
            return _EX_UNAVAILABLE
        case _:
            return _EX_DATA


def _option(setting: str, *flags: str) -> Any:
    """An option whose help, default and variable are those of a setting."""
    field = Settings.model_fields[setting]
    words = {"None": "none", "False": "off"}
    shown = words.get(str(field.default), field.default)
    return typer.Option(
        *flags,
        help=f"{field.description} [AUDIT_{setting.upper()}; default: {shown}]",
        show_default=False,
    )


def _settings(**given: Any) -> Settings:
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as refused:
        error = refused.errors(include_url=False, include_input=False)[0]
        detail = error["msg"].removeprefix("Value error, ")
        # What several settings do not agree on begins with the name of one.
        name = str(error["loc"][0]) if error["loc"] else detail.partition(": ")[0]
        detail = detail.removeprefix(f"{name}: ")
        message = f"--{name.replace('_', '-')} or AUDIT_{name.upper()}: {detail}"
        raise typer.BadParameter(message) from None


def _http_url(given: str | None) -> str | None:
    from urllib.parse import urlsplit

    if given is None:
        return None
    try:
        parts = urlsplit(given.strip())
        fits = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or not given.isprintable():
        raise typer.BadParameter("must look like http://127.0.0.1:8080")
    if "@" in parts.netloc:
        raise typer.BadParameter("must not have a user or password; give a key by AUDIT_KEY")
    if parts.query or parts.fragment:
        raise typer.BadParameter("must end before a ? or #: give the address of the service alone")
    return given.strip()


def _access_key(given: str | None) -> str | None:
    """Validate a key without showing it; a file that holds one often ends with a line break."""
    key = (given or "").strip()
    if not all("!" <= character <= "~" for character in key):
        raise typer.BadParameter(
            "(or AUDIT_KEY) must be one key alone, without spaces or line breaks inside"
        )
    return key or None


Dsn = Annotated[str | None, _option("dsn", "--dsn")]
DataDir = Annotated[Path | None, _option("data_dir", "--data-dir")]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="AUDIT_URL",
        show_envvar=False,
        callback=_http_url,
        help="Address of the service to record through, such as http://127.0.0.1:8080. Without it,"
        " tasks go straight into the database. HTTP_PROXY, HTTPS_PROXY and NO_PROXY are used."
        " [AUDIT_URL; default: none]",
        show_default=False,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="AUDIT_KEY",
        show_envvar=False,
        callback=_access_key,
        help="API key with the scope record, for --url. Use the variable: other users of the"
        " machine can see options. [AUDIT_KEY; default: none]",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Partition = Annotated[Literal["month", "week", "day"] | None, _option("partition", "--partition")]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        _print(f"audit {version_of('task-audit')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        sys.stderr.write(context.get_help() + "\n")
        raise typer.Exit(_EX_USAGE)


def serve(**given: Any) -> None:
    """Serve the API until Ctrl-C. Without --dsn, run an embedded PostgreSQL for it."""
    settings = _settings(**given)
    try:
        from audit.process.serve import serve as run_server
        from audit.telemetry import logs

        logs.set_up(settings.log_format)
        run_server(settings, lambda started: _announce(settings, started))
    except (KeyboardInterrupt, Problem):
        if not _signalled_at:  # it is how this command ends
            raise


def _every_setting() -> Signature:
    """Return the signature of a command with one option for each setting, in their order."""
    options = []
    for name, field in Settings.model_fields.items():
        flag = "--" + name.replace("_", "-")
        if field.annotation in {bool, bool | None}:
            off = {"insecure": "--secure"}.get(name, "--no-" + flag[2:])
            flag = f"{flag}/{off}"
        kind: Any = str if field.annotation == SecretStr | None else field.annotation
        options.append(
            Parameter(
                name,
                Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind | None, _option(name, flag)],
            )
        )
    return Signature(options)


serve.__signature__ = _every_setting()  # type: ignore[attr-defined]
app.command()(serve)


def _announce(settings: Settings, started: Started) -> None:
    if _signalled_at:
        raise KeyboardInterrupt
    api = f"{started.url}/api/v1/audit"
    key = '-H "Authorization: Bearer $AUDIT_KEY" ' if started.needs_key else ""
    lines = [
        f"task-audit listens on {started.url} (read and try the API at {started.url}/docs)",
        f"Database: {_database_name(settings)}, {started.tasks:,} tasks",
        "Try, with the key of a reader in AUDIT_KEY:" if key else "Try:",
        f"  curl {key}'{api}/failures?days=7&limit=3'",
        f"  curl {key}'{api}/by-service/payments?status=failed&limit=3'",
        f"  curl {key}'{api}/query?status=failed&intent=deploy_service&days=30&limit=3'",
        "Ctrl-C stops it.",
    ]
    try:
        for line in lines:
            _print(line)
        sys.stdout.flush()
    except OSError:
        _discard_output()  # the service runs as well without anybody who reads this


@contextlib.contextmanager
def _database(settings: Settings, *, create: bool = False) -> Iterator[str]:
    """Yield the DSN of the database in use, and name it in a line on standard error."""
    from audit.process.serve import database

    with database(settings, create=create) as address:
        _say(f"database: {_database_name(settings)}")
        yield address


def _database_name(settings: Settings) -> str:
    """Where the tasks are, without any password."""
    if settings.dsn is None:
        return f"embedded PostgreSQL in {settings.data_dir}"
    return f"PostgreSQL {parse(settings.dsn.get_secret_value()).name}"


@app.command()
def migrate(
    status: Annotated[
        bool, typer.Option("--status", help="Only show which migrations are applied.")
    ] = False,
    to: Annotated[
        str | None, typer.Option("--to", help="Stop after this migration, given by its name.")
    ] = None,
    rollback: Annotated[
        bool,
        typer.Option("--rollback", help="Roll back the last migration, or every one after --to."),
    ] = False,
    grant_to: Annotated[
        list[str] | None,
        typer.Option(
            "--grant-to",
            metavar="ROLE",
            help="Afterwards grant this role the rights to serve, and revoke all others."
            " Repeatable. Give it each time you migrate.",
        ),
    ] = None,
    grant_read_to: Annotated[
        list[str] | None,
        typer.Option("--grant-read-to", metavar="ROLE", help="The same, for reading alone."),
    ] = None,
    as_json: Json = False,
    dsn: Dsn = None,
    data_dir: DataDir = None,
) -> None:
    """Apply the migrations that are missing, or roll some back. Safe to run twice."""
    from audit.postgres import migrate as migrations

    if as_json and not status:
        raise typer.BadParameter("--json needs --status")
    serving, reading = grant_to or [], grant_read_to or []
    if serving or reading:
        _judge_roles(serving, reading, is_newest=not (status or rollback or to is not None))
    settings = _settings(dsn=dsn, data_dir=data_dir, migrate=False)
    with _database(settings) as address:
        if status:
            listed = migrations.status(address)
            if as_json:
                _print_json([{"name": one.name, "applied": one.applied} for one in listed])
            else:
                rows = ((one.name, "yes" if one.applied else "no") for one in listed)
                _print_table(("migration", "applied"), rows)
            return
        try:
            done = migrations.roll_back(address, to) if rollback else migrations.apply(address, to)
        except Invalid as refused:
            raise typer.BadParameter(refused.detail, param_hint="--to") from None
        verb = "rolled back" if rollback else "applied"
        for name in done:
            _print(f"{verb} {name}")
        if serving or reading:
            _grant(address, serving, reading)
        elif not done:
            _print("nothing to do")


def _judge_roles(serving: list[str], reading: list[str], *, is_newest: bool) -> None:
    if not is_newest:
        raise typer.BadParameter(
            "--grant-to and --grant-read-to need the newest schema: leave out --status, --to and"
            " --rollback"
        )
    for role in (*serving, *reading):
        if not role.isprintable():
            raise typer.BadParameter(f"{role!r} is not the name of a role")
        if role in serving and role in reading:
            raise typer.BadParameter(f"--grant-read-to: --grant-to lets {role} read already")


def _grant(dsn: str, serving: list[str], reading: list[str]) -> None:
    from audit.postgres import migrate as migrations

    try:
        migrations.grant(dsn, serving, reading)
    except Invalid as refused:
        raise typer.BadParameter(refused.detail) from None
    for verb, roles in (("serve", serving), ("read", reading)):
        for role in roles:
            _print(f"granted {role} to {verb}")


@app.command()
def record(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="NDJSON or JSON; - is standard input.")
    ],
    url: Url = None,
    key: ApiKey = None,
    dsn: Dsn = None,
    data_dir: DataDir = None,
    partition: Partition = None,
) -> None:
    """Record tasks from files. Each task needs a task_id, so a second run adds no duplicates."""
    from audit.commands.record_file import record_file

    settings = _settings(dsn=dsn, data_dir=data_dir, partition=partition)
    with contextlib.ExitStack() as stack:
        sources = [(name, stack.enter_context(_open(name))) for name in files]
        sizes = [_size(source) for _, source in sources]

        async def work(target: Target, tally: Tally) -> None:
            for name, source in sources:
                await record_file(source, name, target, tally.add, settings)

        total = sum(size for size in sizes if size) if None not in sizes else None
        _record(work, total, settings, url, key)


@app.command()
def demo(
    tasks: Annotated[int, typer.Option("--tasks", min=1, help="Number of tasks.")] = 100_000,
    days: Annotated[
        int, typer.Option("--days", min=1, max=3650, help="Days that they span.")
    ] = 365,
    seed: Annotated[int, typer.Option("--seed", help="The same seed makes the same tasks.")] = 1,
    until: Annotated[
        str | None,
        typer.Option(
            "--until",
            help="RFC 3339 time at which the history ends.",
            show_default="the last full hour",
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--print", help="Print the tasks as NDJSON instead of recording them.")
    ] = False,
    url: Url = None,
    key: ApiKey = None,
    dsn: Dsn = None,
    data_dir: DataDir = None,
    partition: Partition = None,
) -> None:
    """Record a realistic made-up history: busy and rare services, quiet nights, failures."""
    import itertools

    from audit.commands.record_file import send_all
    from audit.history.demo import generate
    from audit.history.models import MAX_TASKS_IN_ARRAY, TimeAdapter, batch_of

    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    if until is not None:
        try:
            end = TimeAdapter.validate_python(until)
        except ValidationError as refused:
            detail = refused.errors()[0]["msg"].removeprefix("Value error, ")
            raise typer.BadParameter(detail, param_hint="--until") from None
    history = generate(tasks, days=days, until=end, seed=seed)
    if show:
        for task in history:
            _print(json.dumps(task))
        return

    async def work(target: Target, tally: Tally) -> None:
        parts = iter(lambda: list(itertools.islice(history, MAX_TASKS_IN_ARRAY)), [])
        await send_all(((batch_of(part), len(part)) for part in parts), target, tally.add)

    settings = _settings(dsn=dsn, data_dir=data_dir, partition=partition)
    _record(work, tasks, settings, url, key, create=True)


@app.command()
def counts(
    check: Annotated[
        bool, typer.Option("--check", help="Recount all tasks and show every count that is wrong.")
    ] = False,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Count all tasks anew; recording goes on.",
        ),
    ] = False,
    as_json: Json = False,
    dsn: Dsn = None,
    data_dir: DataDir = None,
) -> None:
    """Check or rebuild the counts that totals are read from. Exits with 65 if they are wrong."""
    from audit.history.service import AuditService

    if check == rebuild:
        raise typer.BadParameter("give either --check or --rebuild")
    if as_json and rebuild:
        raise typer.BadParameter("--json needs --check")
    settings = _settings(dsn=dsn, data_dir=data_dir)

    async def work(pool: Pool) -> list[tuple[Any, ...]]:
        service = AuditService(pool)
        if rebuild:
            _print(f"counted {await service.rebuild_counts():,} tasks")
            return []
        for gap in await service.find_missing_partitions():
            _say(
                f"no partition holds {gap['tasks']:,} recorded tasks, created"
                f" {_between(gap['since'], gap['until'])}: it was detached or dropped"
            )
        return [tuple(one) for one in await service.check_counts()]

    # Longer than any request may take, and so than a setting may say.
    patient = settings.model_copy(update={"statement_timeout_seconds": _PATIENCE})
    differences = _with_pool(work, patient)
    if as_json:
        _print_json([dict(zip(_DIFFERENCE, one, strict=True)) for one in differences])
    elif differences:
        _print_table(_DIFFERENCE, ([str(value) for value in one] for one in differences))
    elif check:
        _print("all counts are exact")
    if differences:
        _say("the counts differ; `audit counts --rebuild` repairs them")
        raise typer.Exit(_EX_DATA)


def _between(since: datetime | None, until: datetime | None) -> str:
    """Return a half-open range of days in words."""
    words = (("from", since), ("before", until))
    return " and ".join(f"{word} {at:%Y-%m-%d}" for word, at in words if at) or "at any time"


keys_app = typer.Typer(help="Create, list and revoke API keys.", rich_markup_mode=None)
app.add_typer(keys_app, name="keys")


@keys_app.command("create")
def create_key(
    name: Annotated[
        str,
        typer.Option("--name", help="Name of the key, never used again."),
    ],
    scope: Annotated[list[Scope], typer.Option("--scope", help="What the key allows. Repeatable.")],
    expires: Annotated[
        str,
        typer.Option("--expires", help="Days such as 90d, an RFC 3339 time, or never."),
    ] = "90d",
    project_id: Annotated[
        UUID | None,
        typer.Option("--project-id", help="Limit the key to the tasks of this project."),
    ] = None,
    as_json: Json = False,
    dsn: Dsn = None,
    data_dir: DataDir = None,
) -> None:
    """Create a key and print it. It cannot be shown again: only its SHA-256 is stored."""
    from audit.access.keys import create_key as create
    from audit.access.keys import revoke_key as revoke

    expiry = _expiry(expires)

    async def work(pool: Pool) -> datetime | None:
        key, expires_at = await create(pool, name, frozenset(scope), project_id, expiry)
        try:
            if as_json:
                made = {"name": name, "key": key, "scopes": sorted(scope)}
                _print_json({**made, "project_id": project_id, "expires_at": expires_at})
            else:
                _print(key)
            sys.stdout.flush()
        except OSError:
            await revoke(pool, name)
            _say(f"{name} is revoked again, since its key could not be shown")
            raise
        return expires_at

    expires_at = _with_pool(work, _settings(dsn=dsn, data_dir=data_dir))
    until = f"until {expires_at:%Y-%m-%d %H:%M:%S} UTC" if expires_at else "for ever"
    _say(f"{name} may {' and '.join(sorted(scope))}, {until}. The key is not shown again.")


@keys_app.command("list")
def list_keys(as_json: Json = False, dsn: Dsn = None, data_dir: DataDir = None) -> None:
    """List all keys, with revoked and expired ones. The secret part is not stored."""
    from audit.access.keys import list_keys as read

    keys = _with_pool(read, _settings(dsn=dsn, data_dir=data_dir))
    if as_json:
        _print_json(
            [
                {
                    "name": key.identity.name,
                    "scopes": sorted(key.identity.scopes),
                    "project_id": key.identity.project_id,
                    "created_at": key.created_at,
                    "expires_at": key.expires_at,
                    "revoked_at": key.revoked_at,
                    "is_valid": key.revoked_at is None and not key.has_expired(),
                }
                for key in keys
            ]
        )
        return
    rows = (
        (
            key.identity.name,
            " ".join(sorted(key.identity.scopes)),
            str(key.identity.project_id or "all"),
            f"{key.created_at:%Y-%m-%d}",
            _state(key),
        )
        for key in keys
    )
    _print_table(("name", "scopes", "project", "created", "state"), rows)


@keys_app.command("revoke")
def revoke_key(
    name: Annotated[str, typer.Argument(help="Name of the key, as `audit keys list` shows it.")],
    dsn: Dsn = None,
    data_dir: DataDir = None,
) -> None:
    """Revoke a key. Every worker refuses it within 5 seconds. Safe to run twice."""
    from audit.access.keys import revoke_key as revoke

    async def work(pool: Pool) -> datetime:
        return await revoke(pool, name)

    revoked_at = _with_pool(work, _settings(dsn=dsn, data_dir=data_dir))
    _print(f"{name} is revoked since {revoked_at:%Y-%m-%d %H:%M:%S} UTC")


def _state(key: Key) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d}"
    if key.expires_at is None:
        return "good for ever"
    is_good = key.good_until > time.monotonic()
    return f"{'good until' if is_good else 'expired'} {key.expires_at:%Y-%m-%d %H:%M}"


def _expiry(given: str) -> timedelta | datetime | None:
    from audit.history.models import TimeAdapter

    if given == "never":
        return None
    if given.endswith("d") and given[:-1].isascii() and given[:-1].isdigit():
        days = int(given[:-1][:6])
        if not 1 <= days <= _MOST_DAYS_OF_KEY:
            raise typer.BadParameter(
                f"1d to {_MOST_DAYS_OF_KEY}d, or never", param_hint="--expires"
            )
        return timedelta(days=days)
    try:
        return TimeAdapter.validate_python(given)
    except ValidationError:
        raise typer.BadParameter(
            "must be days such as 90d, an RFC 3339 time, or never", param_hint="--expires"
        ) from None


def _with_pool(
    work: Callable[[Pool], Coroutine[object, object, Result]], settings: Settings
) -> Result:
    """Run `work` on the database, whose schema is brought up to date where it is the embedded."""
    from audit.postgres.pool import open_pool, require_current
    from audit.process.workers import run

    async def through(address: str) -> Result:
        async with open_pool(settings.model_copy(update={"pool_size": 1}), address) as pool:
            await require_current(pool)
            return await work(pool)

    with _database(settings) as address:
        try:
            return run(through(address))
        except Invalid as refused:
            raise typer.BadParameter(refused.detail) from None


@app.command()
def openapi() -> None:
    """Print the OpenAPI 3.1 document."""
    from audit.web.openapi import document

    _print_json(document())


class Tally:
    """What has been recorded so far, shown by a bar on a terminal."""

    def __init__(self, bar: Progress, total: int | None) -> None:
        self.recorded = 0
        self.duplicates = 0
        self._bar = bar
        self._row = bar.add_task("recording", total=total, tasks=0)

    def add(self, size: int, done: Recorded) -> None:
        """Count a batch; `size` is its part of the whole."""
        self.recorded += done.recorded
        self.duplicates += done.duplicates
        self._bar.update(self._row, advance=size, tasks=self.recorded + self.duplicates)


def _record(
    work: Callable[[Target, Tally], Coroutine[Any, Any, None]],
    total: int | None,
    settings: Settings,
    url: str | None,
    key: str | None,
    *,
    create: bool = False,
) -> None:
    """Let `work` record through the service at `url`, or else straight into the database."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from audit.commands.record_file import database_target
    from audit.commands.record_url import api_target
    from audit.process.workers import run

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[tasks]:,} tasks"),
        TimeElapsedColumn(),
    )

    async def through(opening: AbstractAsyncContextManager[Target], tally: Tally) -> None:
        async with opening as target:
            await work(target, tally)

    # What is logged meanwhile goes through sys.stderr, which rich shows above the bar.
    screen = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    with Progress(*columns, console=screen, disable=not sys.stderr.isatty()) as bar:
        tally = Tally(bar, total)
        try:
            if url is not None:
                run(through(api_target(url, key), tally))
            else:
                with _database(settings, create=create) as dsn:
                    run(through(database_target(settings, dsn), tally))
        finally:
            bar.stop()
            _print(f"recorded {tally.recorded:,}, duplicates {tally.duplicates:,}")


def _open(name: str) -> IO[bytes]:
    try:
        if name == "-":
            os.read(sys.stdin.fileno(), 0)  # it fails where standard input is closed
            return sys.stdin.buffer
        return Path(name).open("rb")
    except OSError as failure:
        raise typer.BadParameter(f"{name}: {failure.strerror}") from None


def _size(source: IO[bytes]) -> int | None:
    """The bytes of a file; None where that cannot be known."""
    status = os.fstat(source.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None
