"""`audit migrate`: applies migrations, rolls them back, and grants roles their rights."""

from __future__ import annotations

from typing import Annotated

import typer

from audit.commands.database import database
from audit.commands.options import DataDir, Dsn, Json, settings_from
from audit.commands.output import print_json, print_line, print_table
from audit.errors import Invalid


def migrate(
    status: Annotated[
        bool,
        typer.Option("--status", help="Only list the migrations, and whether each is applied."),
    ] = False,
    to: Annotated[
        str | None, typer.Option("--to", help="Name of the last migration to apply or to keep.")
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
            help="After migrating, grant this role the rights to serve, and revoke its others. Give"
            " it at each migration. Repeatable.",
        ),
    ] = None,
    grant_read_to: Annotated[
        list[str] | None,
        typer.Option(
            "--grant-read-to",
            metavar="ROLE",
            help="After migrating, grant this role the rights to read, and revoke its others. Give"
            " it at each migration. Repeatable.",
        ),
    ] = None,
    as_json: Json = False,
    dsn: Dsn = None,
    data_dir: DataDir = None,
) -> None:
    """Apply the missing migrations, or roll migrations back. Safe to run twice."""
    from audit.postgres import migrate as migrations

    if as_json and not status:
        raise typer.BadParameter("--json needs --status")
    serving, reading = grant_to or [], grant_read_to or []
    if serving or reading:
        _validate_roles(serving, reading, is_newest=not (status or rollback or to is not None))
    settings = settings_from(dsn=dsn, data_dir=data_dir, migrate=False)
    with database(settings) as address:
        if status:
            listed = migrations.status(address)
            if as_json:
                print_json([{"name": one.name, "applied": one.applied} for one in listed])
            else:
                rows = ((one.name, "yes" if one.applied else "no") for one in listed)
                print_table(("migration", "applied"), rows)
            return
        try:
            done = migrations.roll_back(address, to) if rollback else migrations.apply(address, to)
        except Invalid as problem:
            raise typer.BadParameter(problem.detail, param_hint="--to") from None
        verb = "rolled back" if rollback else "applied"
        for name in done:
            print_line(f"{verb} {name}")
        if serving or reading:
            _grant(address, serving, reading)
        elif not done:
            print_line("nothing to do")


def _validate_roles(serving: list[str], reading: list[str], *, is_newest: bool) -> None:
    if not is_newest:
        raise typer.BadParameter(
            "--grant-to and --grant-read-to need all migrations: do not give --status, --to or"
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
    except Invalid as problem:
        raise typer.BadParameter(problem.detail) from None
    for verb, roles in (("serve", serving), ("read", reading)):
        for role in roles:
            print_line(f"granted {role} to {verb}")
