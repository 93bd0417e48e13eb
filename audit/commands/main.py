"""The command `audit`: its subcommands, and how a failure ends the process with an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Final

import typer

from audit.access.identity import Insecure
from audit.commands import (
    ansible_path,
    completion,
    counts,
    demo,
    export,
    keys,
    log,
    login,
    migrate,
    open_page,
    openapi,
    record,
    serve,
    show,
    spool,
    stats,
    tail,
    tasks,
    watch,
)
from audit.commands.completion import prepare_completion
from audit.commands.exit_codes import ExitCode
from audit.commands.output import discard_output, note, prepare_streams, print_line
from audit.commands.signals import StopSignals
from audit.errors import (
    Forbidden,
    Problem,
    SchemaNotCurrent,
    TaskNotFound,
    TimedOut,
    Unauthenticated,
    Unavailable,
    UnsuitableDatabase,
)

#: The commands in the order of the help.
_COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "failures": tasks.failures,
    "query": tasks.query,
    "service": tasks.service,
    "show": show.show,
    "watch": watch.watch,
    "tail": tail.tail,
    "stats": stats.stats,
    "export": export.export,
    "open": open_page.open_page,
    "login": login.login,
    "whoami": login.whoami,
    "profiles": login.profiles,
    "completion": completion.completion,
    "serve": serve.serve,
    "migrate": migrate.migrate,
    "record": record.record,
    "demo": demo.demo,
    "counts": counts.counts,
    "openapi": openapi.openapi,
    "ansible-path": ansible_path.ansible_path,
}

#: The packages of task-audit[server] that are imported first in each part of the service.
_OF_THE_SERVER: Final = {"aiohttp", "asyncpg", "prometheus_client", "psycopg", "yoyo"}


class _NotInstalled(Problem):
    """The command needs packages that only task-audit[server] installs."""


app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Record the task history of an orchestrator in PostgreSQL, and query it over HTTP.",
    epilog=(
        "Exit codes: 0 success; 1 the task has failed, or there is one (--exit-status), or a"
        " file is not as its manifest says (--verify); 2 wrong option or variable; 65 invalid"
        " data, or wrong counts; 66 no such task; 69 the database, the service or the port is"
        " not available; 74 a file or the output cannot be read or written; 77 no valid API"
        " key, or it does not permit this; 78 migrations are missing, task-audit[server] is not"
        " installed, there are no API keys on an address that is not a loopback address, or"
        " config.toml is not valid; 124 --timeout is over; 130 interrupted; 141 the reader of"
        " the output has closed it."
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(keys.app, name="keys")
app.add_typer(log.app, name="log")
app.add_typer(spool.app, name="spool")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        print_line(f"audit {version_of('task-audit')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        sys.stderr.write(context.get_help() + "\n")
        raise typer.Exit(ExitCode.USAGE)


def main() -> None:
    """Run the command line, and end the process with one of the exit codes."""
    signals = StopSignals()
    code: int = ExitCode.INTERRUPTED
    try:
        signals.install()
        code = _run(signals)
    except KeyboardInterrupt:
        pass
    finally:
        # Python restores the default handlers while it ends. A signal would change the exit code.
        signals.ignore()
    sys.exit(code)


def _run(signals: StopSignals) -> int:
    """Run the command, and return its exit code."""
    try:
        from audit.telemetry import logs

        prepare_streams()
        prepare_completion()
        logs.set_up("text")
        code = int(app(standalone_mode=False, obj=signals) or 0)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt, SystemExit) as failure:  # noqa: BLE001 - it is reported
        return _report(failure, signals)
    return code


def _report(failure: BaseException, signals: StopSignals) -> int:
    """Report in one line why a command failed, and return its exit code."""
    if isinstance(failure, SystemExit) and isinstance(failure.__context__, OSError):
        failure = failure.__context__  # typer ends the process itself when a pipe is broken
    if isinstance(failure, ModuleNotFoundError) and failure.name in _OF_THE_SERVER:
        failure = _NotInstalled(
            f"this needs {failure.name}, which is not installed: pip install 'task-audit[server]'"
        )
    match failure:
        case KeyboardInterrupt():
            return ExitCode.INTERRUPTED
        case Problem() if signals.received:
            return ExitCode.INTERRUPTED
        case typer.TyperException():
            note(failure.format_message().replace("Value error, ", ""))
            return ExitCode.USAGE
        case Problem():
            note(_message(failure))
            return _exit_code(failure)
        case BrokenPipeError():
            discard_output()
            return ExitCode.BROKEN_PIPE
        case OSError():
            discard_output()
            name = f" {failure.filename}" if failure.filename else ""
            note(f"cannot read or write{name}: {failure.strerror or failure}")
            return ExitCode.INPUT_OUTPUT
    raise failure


def _message(problem: Problem) -> str:
    """Return what failed in one line, with the message of the driver if a database failed."""
    if not isinstance(problem, Unavailable) or problem.__cause__ is None:
        return problem.detail
    cause = " ".join(str(problem.__cause__).split())
    return f"{problem.detail}, see --dsn or AUDIT_DSN: {cause}"


def _exit_code(problem: Problem) -> ExitCode:
    from audit.profiles import BadConfiguration

    match problem:
        case (
            SchemaNotCurrent()
            | Insecure()
            | UnsuitableDatabase()
            | BadConfiguration()
            | _NotInstalled()
        ):
            return ExitCode.CONFIGURATION
        case TaskNotFound():
            return ExitCode.NO_TASK
        case Unauthenticated() | Forbidden():
            return ExitCode.NOT_ALLOWED
        case Unavailable() | TimedOut():
            return ExitCode.UNAVAILABLE
        case _:
            return ExitCode.DATA
