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
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from inspect import Parameter, Signature
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, TypeVar
from uuid import UUID

import typer
from pydantic import SecretStr, ValidationError
from rich.console import Console
from rich.table import Column, Table

from audit.access import Insecure, Scope
from audit.dsn import parse
from audit.errors import Invalid, Problem, TimedOut, Unavailable
from audit.settings import Settings

if TYPE_CHECKING:
    from rich.progress import Progress

    from audit.database import Pool
    from audit.ingest import Target
    from audit.keys import Key
    from audit.service import Recorded

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
Result = TypeVar("Result")
_SAME_SIGNAL_SECONDS = 1
#: When signals came. Their KeyboardInterrupt may be lost in a destructor, or come out as a failure.
_signalled_at: list[float] = []

_EX_INTERRUPTED = 130
_EX_USAGE = 2
_EX_DATA = 65
_EX_UNAVAILABLE = 69
_EX_CONFIG = 78
_MOST_DAYS_OF_KEY = 3650
_UUID_WIDTH = 36
#: Recounting a long history takes minutes.
_PATIENCE = 24 * 3600
_DIFFERENCE = ("service", "grain", "bucket", "state", "intent", "expected", "counted")
_EXIT_CODES = (
    "Exit codes: 0 done, 2 a wrong option or variable, 65 data that cannot be recorded, "
    "69 no database, service or port, 78 a schema that is not current, or no keys where others "
    "could ask."
)

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Records the task history of an orchestrator and answers questions about it.",
    epilog=_EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def main() -> None:
    """Run the command line; end with one of the documented exit codes."""
    from audit import logs

    logs.set_up("text")
    for number in _STOP_SIGNALS:
        signal.signal(number, _end)
    try:
        sys.exit(app(standalone_mode=False))
    except typer.TyperException as wrong:
        err.print(f"audit: {wrong.format_message()}", markup=False)
        sys.exit(_EX_USAGE)
    except Problem as problem:
        if _signalled_at:
            sys.exit(_EX_INTERRUPTED)
        err.print(f"audit: {_told(problem)}", markup=False)
        sys.exit(_exit_code(problem))
    finally:
        # All is left; Python would go back to handlers that end it by the signal.
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


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
    from audit.connecting import UnsuitableDatabase
    from audit.database import SchemaNotCurrent

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

    try:
        fits = given is None or urlsplit(given).scheme in {"http", "https"}
    except ValueError:
        fits = False
    if not fits:
        raise typer.BadParameter("must look like http://127.0.0.1:8080")
    return given


Dsn = Annotated[str | None, _option("dsn", "--dsn")]
DataDir = Annotated[Path | None, _option("data_dir", "--data-dir")]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="AUDIT_URL",
        show_envvar=False,
        callback=_http_url,
        help="Service to record through, such as http://127.0.0.1:8080; without it, straight"
        " into the database. [AUDIT_URL; default: none]",
        show_default=False,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="AUDIT_KEY",
        show_envvar=False,
        help="Key with the scope record, for --url; better as a variable, since others see"
        " options. [AUDIT_KEY; default: none]",
        show_default=False,
    ),
]
Partition = Annotated[Literal["month", "week", "day"] | None, _option("partition", "--partition")]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        out.print(f"audit {version_of('task-audit')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        err.print(context.get_help(), markup=False)
        raise typer.Exit(_EX_USAGE)


def serve(**given: Any) -> None:
    """Serve the API until Ctrl-C; without a --dsn, on an embedded PostgreSQL."""
    settings = _settings(**given)
    try:
        from audit import logs
        from audit.server import serve as run_server

        logs.set_up(settings.log_format)
        run_server(settings, lambda url, tasks: _announce(settings, url, tasks))
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


def _announce(settings: Settings, url: str, tasks: int) -> None:
    if _signalled_at:
        raise KeyboardInterrupt
    api = f"{url}/api/v1/audit"
    out.print(f"task-audit listens on {url} (read and try the API at {url}/docs)")
    out.print(f"Database: {_database_name(settings)}, {tasks:,} tasks", markup=False)
    out.print("Try:")
    out.print(f"  curl '{api}/failures?days=7&limit=3'")
    out.print(f"  curl '{api}/by-service/payments?status=failed&limit=3'")
    out.print(f"  curl '{api}/query?status=failed&intent=deploy_service&days=30&limit=3'")
    out.print("Ctrl-C stops it.")
    sys.stdout.flush()


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
        str | None, typer.Option("--to", help="Name of the last migration to have applied.")
    ] = None,
    rollback: Annotated[
        bool,
        typer.Option("--rollback", help="Roll back the last migration, or all after --to."),
    ] = False,
    grant_to: Annotated[
        list[str] | None,
        typer.Option(
            "--grant-to",
            metavar="ROLE",
            help="Then let this role do what the service does, and nothing else. Repeatable;"
            " give it with every migration.",
        ),
    ] = None,
    grant_read_to: Annotated[
        list[str] | None,
        typer.Option("--grant-read-to", metavar="ROLE", help="The same for a role that reads."),
    ] = None,
    dsn: Dsn = None,
    data_dir: DataDir = None,
) -> None:
    """Bring the schema up to date, or back. Safe to start twice, and to start again."""
    from audit import migrate as migrations
    from audit.server import database

    serving, reading = grant_to or [], grant_read_to or []
    if serving or reading:
        _judge_roles(serving, reading, is_newest=not (status or rollback or to is not None))
    settings = _settings(dsn=dsn, data_dir=data_dir, migrate=False)
    with database(settings) as address:
        if status:
            table = Table("migration", "applied", box=None)
            for migration in migrations.status(address):
                table.add_row(migration.name, "yes" if migration.applied else "no")
            out.print(table)
            return
        try:
            done = migrations.roll_back(address, to) if rollback else migrations.apply(address, to)
        except Invalid as refused:
            raise typer.BadParameter(refused.detail, param_hint="--to") from None
        verb = "rolled back" if rollback else "applied"
        for name in done:
            out.print(f"{verb} {name}")
        if serving or reading:
            _grant(address, serving, reading)
        elif not done:
            out.print("nothing to do")


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
    from audit import migrate as migrations

    try:
        migrations.grant(dsn, serving, reading)
    except Invalid as refused:
        raise typer.BadParameter(refused.detail) from None
    for verb, roles in (("serve", serving), ("read", reading)):
        for role in roles:
            out.print(f"granted {role} to {verb}", markup=False)


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
    """Record files of tasks, each with its task_id. Run again, it records nothing twice."""
    from audit.ingest import record_file

    settings = _settings(dsn=dsn, data_dir=data_dir, partition=partition)
    with contextlib.ExitStack() as stack:
        sources = [(name, stack.enter_context(_open(name))) for name in files]
        sizes = [_size(source) for _, source in sources]

        async def work(target: Target, tally: Tally) -> None:
            for name, source in sources:
                await record_file(source, name, target, tally.add)

        total = sum(size for size in sizes if size) if None not in sizes else None
        _record(work, total, settings, url, key)


@app.command()
def demo(
    tasks: Annotated[
        int, typer.Option("--tasks", min=1, help="How many tasks to make up.")
    ] = 100_000,
    days: Annotated[int, typer.Option("--days", min=1, max=3650, help="Over how many days.")] = 365,
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
    """Make up a lifelike history: skewed services, daily and weekly rhythm, bursts of failures."""
    import itertools

    from audit.demo import generate
    from audit.ingest import send_all
    from audit.models import MAX_TASKS_IN_ARRAY, TimeAdapter, batch_of

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
            sys.stdout.write(json.dumps(task) + "\n")
        return

    async def work(target: Target, tally: Tally) -> None:
        parts = iter(lambda: list(itertools.islice(history, MAX_TASKS_IN_ARRAY)), [])
        await send_all(((batch_of(part), len(part)) for part in parts), target, tally.add)

    _record(work, tasks, _settings(dsn=dsn, data_dir=data_dir, partition=partition), url, key)


@app.command()
def counts(
    check: Annotated[
        bool, typer.Option("--check", help="Recount all tasks and show every count that differs.")
    ] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Count all tasks anew, while others record.")
    ] = False,
    dsn: Dsn = None,
    data_dir: DataDir = None,
) -> None:
    """Check or rebuild the counts that totals come from. Exits with 65 where they differ."""
    from audit.service import AuditService

    if check == rebuild:
        raise typer.BadParameter("give either --check or --rebuild")
    settings = _settings(dsn=dsn, data_dir=data_dir)

    async def work(pool: Pool) -> list[list[str]]:
        service = AuditService(pool)
        if rebuild:
            out.print(f"counted {await service.rebuild_counts():,} tasks")
            return []
        return [[str(value) for value in one] for one in await service.check_counts()]

    # Longer than any request may take, and so than a setting may say.
    patient = settings.model_copy(update={"statement_timeout_seconds": _PATIENCE})
    differences = _with_pool(work, patient)
    if differences:
        table = Table(*_DIFFERENCE, box=None)
        for difference in differences:
            table.add_row(*difference)
        out.print(table)
        err.print("audit: the counts differ; `audit counts --rebuild` repairs them")
        raise typer.Exit(_EX_DATA)
    if check:
        out.print("all counts are exact")


keys_app = typer.Typer(
    help="Make, list and revoke the keys that programs send.", rich_markup_mode=None
)
app.add_typer(keys_app, name="keys")


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Option("--name", help="Who it is for; never used twice.")],
    scope: Annotated[
        list[Scope], typer.Option("--scope", help="What it may do; may be given several times.")
    ],
    expires: Annotated[
        str,
        typer.Option("--expires", help="Days, such as 90d; an RFC 3339 time; or never."),
    ] = "90d",
    project_id: Annotated[
        UUID | None,
        typer.Option("--project-id", help="The only project whose tasks it sees and records."),
    ] = None,
    dsn: Dsn = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it, this once: only its SHA-256 is kept."""
    from audit.keys import create_key as create

    expiry = _expiry(expires)

    async def work(pool: Pool) -> tuple[str, datetime | None]:
        return await create(pool, name, frozenset(scope), project_id, expiry)

    key, expires_at = _with_pool(work, _settings(dsn=dsn, data_dir=data_dir))
    out.print(key, markup=False)
    until = f"until {expires_at:%Y-%m-%d %H:%M:%S} UTC" if expires_at else "for ever"
    err.print(f"{name} may {' and '.join(sorted(scope))}, {until}. The key is not shown again.")


@keys_app.command("list")
def list_keys(dsn: Dsn = None, data_dir: DataDir = None) -> None:
    """List all keys ever made; the keys themselves are not kept."""
    from audit.keys import list_keys as read

    table = Table(
        Column("name", overflow="fold"), "scopes", Column("project", min_width=_UUID_WIDTH),
        "created", "state", box=None,
    )  # fmt: skip
    for key in _with_pool(read, _settings(dsn=dsn, data_dir=data_dir)):
        identity = key.identity
        project = str(identity.project_id or "all")
        created = f"{key.created_at:%Y-%m-%d}"
        table.add_row(
            identity.name, " ".join(sorted(identity.scopes)), project, created, _state(key)
        )
    out.print(table)


@keys_app.command("revoke")
def revoke_key(
    name: Annotated[str, typer.Argument(help="As `audit keys list` shows it.")],
    dsn: Dsn = None,
    data_dir: DataDir = None,
) -> None:
    """Have a key refused, in every worker within 5 seconds. Safe to do twice."""
    from audit.keys import revoke_key as revoke

    async def work(pool: Pool) -> datetime:
        return await revoke(pool, name)

    revoked_at = _with_pool(work, _settings(dsn=dsn, data_dir=data_dir))
    out.print(f"{name} is revoked since {revoked_at:%Y-%m-%d %H:%M:%S} UTC", markup=False)


def _state(key: Key) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d}"
    if key.expires_at is None:
        return "good for ever"
    is_good = key.good_until > time.monotonic()
    return f"{'good until' if is_good else 'expired'} {key.expires_at:%Y-%m-%d %H:%M}"


def _expiry(given: str) -> timedelta | datetime | None:
    from audit.models import TimeAdapter

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
    from audit.database import open_pool
    from audit.server import database
    from audit.workers import run

    async def through(address: str) -> Result:
        async with open_pool(settings.model_copy(update={"pool_size": 1}), address) as pool:
            return await work(pool)

    with database(settings) as address:
        try:
            return run(through(address))
        except Invalid as refused:
            raise typer.BadParameter(refused.detail) from None


@app.command()
def openapi() -> None:
    """Print the OpenAPI 3.1 document."""
    from audit.openapi import document

    sys.stdout.write(json.dumps(document(), indent=2) + "\n")


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
) -> None:
    """Let `work` record through the service at `url`, or else straight into the database."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from audit.ingest import api_target, database_target
    from audit.server import database
    from audit.workers import run

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[tasks]:,} tasks"),
        TimeElapsedColumn(),
    )

    async def through(opening: AbstractAsyncContextManager[Target], tally: Tally) -> None:
        async with opening as target:
            await work(target, tally)

    with Progress(*columns, console=err, disable=not sys.stderr.isatty()) as bar:
        tally = Tally(bar, total)
        try:
            if url is not None:
                run(through(api_target(url, key), tally))
            else:
                with database(settings) as dsn:
                    run(through(database_target(settings, dsn), tally))
        finally:
            bar.stop()
            out.print(f"recorded {tally.recorded:,}, duplicates {tally.duplicates:,}")


def _open(name: str) -> IO[bytes]:
    if name == "-":
        return sys.stdin.buffer
    try:
        return Path(name).open("rb")
    except OSError as failure:
        raise typer.BadParameter(f"{name}: {failure.strerror}") from None


def _size(source: IO[bytes]) -> int | None:
    """The bytes of a file; None where that cannot be known."""
    status = os.fstat(source.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None
