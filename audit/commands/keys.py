"""`audit keys`: creates, lists and revokes API keys."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from audit.access.identity import Scope
from audit.commands.database import run_with_pool
from audit.commands.options import DataDir, Dsn, Json, settings_from
from audit.commands.output import note, print_json, print_line, print_table

if TYPE_CHECKING:
    from audit.access.keys import Key
    from audit.postgres.pool import Pool

_MAX_DAYS = 3650

app = typer.Typer(help="Create, list and revoke API keys.", rich_markup_mode=None)


@app.command("create")
def create_key(
    name: Annotated[
        str, typer.Option("--name", help="Name of the key. A name cannot be used again.")
    ],
    scope: Annotated[list[Scope], typer.Option("--scope", help="Scope of the key. Repeatable.")],
    expires: Annotated[
        str,
        typer.Option("--expires", help="Lifetime in days such as 90d, an RFC 3339 time, or never."),
    ] = "90d",
    project_id: Annotated[
        UUID | None,
        typer.Option("--project-id", help="Limit the key to the tasks of this project."),
    ] = None,
    as_json: Json = False,
    dsn: Dsn = None,
    data_dir: DataDir = None,
) -> None:
    """Create an API key and print it. Only its SHA-256 is stored, so it is printed only once."""
    from audit.access import keys

    expiry = _expiry(expires)

    async def create(pool: Pool) -> datetime | None:
        key, expires_at = await keys.create_key(pool, name, frozenset(scope), project_id, expiry)
        try:
            if as_json:
                made = {"name": name, "key": key, "scopes": sorted(scope)}
                print_json({**made, "project_id": project_id, "expires_at": expires_at})
            else:
                print_line(key)
            sys.stdout.flush()
        except OSError:
            await keys.revoke_key(pool, name)
            note(f"the key could not be printed, so {name} is revoked")
            raise
        return expires_at

    expires_at = run_with_pool(create, settings_from(dsn=dsn, data_dir=data_dir))
    expiry_text = (
        f"expires on {expires_at:%Y-%m-%d %H:%M:%S} UTC" if expires_at else "never expires"
    )
    scopes = " and ".join(sorted(scope))
    note(f"created {name}: it may {scopes}, and {expiry_text}. The key is not shown again.")


@app.command("list")
def list_keys(as_json: Json = False, dsn: Dsn = None, data_dir: DataDir = None) -> None:
    """List all API keys, also revoked and expired ones, without their secrets."""
    from audit.access import keys

    listed = run_with_pool(keys.list_keys, settings_from(dsn=dsn, data_dir=data_dir))
    if as_json:
        print_json(
            [
                {
                    "name": key.identity.name,
                    "scopes": sorted(key.identity.scopes),
                    "project_id": key.identity.project_id,
                    "created_at": key.created_at,
                    "expires_at": key.identity.expires_at,
                    "revoked_at": key.revoked_at,
                    "is_valid": key.revoked_at is None and not key.has_expired(),
                }
                for key in listed
            ]
        )
        return
    rows = (
        (
            key.identity.name,
            " ".join(sorted(key.identity.scopes)),
            str(key.identity.project_id or "all"),
            f"{key.created_at:%Y-%m-%d}",
            _validity(key),
        )
        for key in listed
    )
    print_table(("name", "scopes", "project", "created", "state"), rows)


@app.command("revoke")
def revoke_key(
    name: Annotated[str, typer.Argument(help="Name of the key, as `audit keys list` shows it.")],
    dsn: Dsn = None,
    data_dir: DataDir = None,
) -> None:
    """Revoke an API key. All workers refuse it within 5 seconds. Safe to run twice."""
    from audit.access import keys

    async def revoke(pool: Pool) -> datetime:
        return await keys.revoke_key(pool, name)

    revoked_at = run_with_pool(revoke, settings_from(dsn=dsn, data_dir=data_dir))
    print_line(f"{name} was revoked at {revoked_at:%Y-%m-%d %H:%M:%S} UTC")


def _validity(key: Key) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d}"
    if key.identity.expires_at is None:
        return "valid"
    state = "expired" if key.has_expired() else "valid until"
    return f"{state} {key.identity.expires_at:%Y-%m-%d %H:%M}"


def _expiry(given: str) -> timedelta | datetime | None:
    from audit.history.values import parse_time

    if given == "never":
        return None
    if given.endswith("d") and given[:-1].isascii() and given[:-1].isdigit():
        days = int(given[:-1][:6])
        if not 1 <= days <= _MAX_DAYS:
            raise typer.BadParameter(f"1d to {_MAX_DAYS}d, or never", param_hint="--expires")
        return timedelta(days=days)
    try:
        return parse_time(given)
    except ValueError:
        raise typer.BadParameter(
            "must be days such as 90d, an RFC 3339 time, or never", param_hint="--expires"
        ) from None
