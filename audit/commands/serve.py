"""`audit serve`: runs the service, with one option for each setting."""

from __future__ import annotations

import sys
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any

import typer

from audit.commands.database import name_of
from audit.commands.options import setting_parameters, settings_from
from audit.commands.output import discard_output, print_line
from audit.commands.signals import StopSignals
from audit.errors import Problem
from audit.settings import Settings

if TYPE_CHECKING:
    from audit.process.serve import Started


def serve(context: typer.Context, **options: Any) -> None:
    """Serve the API until Ctrl-C. Without --dsn, start an embedded PostgreSQL and use it."""
    signals: StopSignals = context.obj
    settings = settings_from(**options)

    def announce(started: Started) -> None:
        if signals.received:
            raise KeyboardInterrupt
        _announce(settings, started)

    try:
        from audit.process.serve import serve as run_server
        from audit.telemetry import logs

        logs.set_up(settings.log_format)
        run_server(settings, announce)
    except (KeyboardInterrupt, Problem):
        if not signals.received:  # a signal is the ordinary end of this command
            raise


serve.__signature__ = Signature(  # type: ignore[attr-defined]
    [
        Parameter("context", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *setting_parameters(),
    ]
)


def _announce(settings: Settings, started: Started) -> None:
    api = f"{started.url}/api/v1/audit"
    key = '-H "Authorization: Bearer $AUDIT_KEY" ' if started.needs_key else ""
    lines = [
        f"task-audit listens on {started.url} (open it in a browser; API: {started.url}/docs)",
        f"Database: {name_of(settings)}, {started.tasks:,} tasks",
        "Try, with an API key of scope read in AUDIT_KEY:" if key else "Try:",
        f"  curl {key}'{api}/failures?days=7&limit=3'",
        f"  curl {key}'{api}/by-service/payments?status=failed&limit=3'",
        f"  curl {key}'{api}/query?status=failed&intent=deploy_service&days=30&limit=3'",
        "Ctrl-C stops it.",
    ]
    try:
        for line in lines:
            print_line(line)
        sys.stdout.flush()
    except OSError:
        discard_output()  # a closed or full output does not stop the service
