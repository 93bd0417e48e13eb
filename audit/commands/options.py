"""The options that commands share, generated from the settings where they are settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from pydantic import SecretStr, ValidationError

from audit import profiles, settings
from audit.errors import Problem
from audit.settings import Settings


def _option(setting: str, *flags: str) -> Any:
    """Return an option that takes its help, default and variable from a setting."""
    field = Settings.model_fields[setting]
    words = {"None": "none", "False": "off", "": "empty", "PydanticUndefined": "automatic"}
    shown = words.get(str(field.default), field.default)
    return typer.Option(
        *flags,
        help=f"{field.description} [AUDIT_{setting.upper()}; default: {shown}]",
        show_default=False,
    )


def setting_parameters() -> list[Parameter]:
    """Return one option for each setting, as parameters of a command."""
    parameters = []
    # The limits of a request, which Settings inherits, come last.
    own_first = {**Settings.__annotations__, **Settings.model_fields}
    for name in (name for name in own_first if name in Settings.model_fields):
        field = Settings.model_fields[name]
        flag = "--" + name.replace("_", "-")
        if field.annotation in {bool, bool | None}:
            off = {"insecure": "--secure"}.get(name, "--no-" + flag[2:])
            flag = f"{flag}/{off}"
        kind: Any = str if field.annotation == SecretStr | None else field.annotation
        annotation = Annotated[kind | None, _option(name, flag)]
        parameters.append(
            Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    return parameters


def settings_from(**options: Any) -> Settings:
    """Return the settings that the given options and the environment make.

    Raises:
        typer.BadParameter: a value is not valid; the message names its option and its variable.
    """
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as failure:
        error = failure.errors(include_url=False, include_input=False)[0]
        detail = error["msg"].removeprefix("Value error, ")
        # An error of several settings together begins with the name of one of them.
        name = str(error["loc"][0]) if error["loc"] else detail.partition(": ")[0]
        detail = detail.removeprefix(f"{name}: ")
        message = f"--{name.replace('_', '-')} or AUDIT_{name.upper()}: {detail}"
        raise typer.BadParameter(message) from None


def refused_option(problem: Problem) -> typer.BadParameter:
    """Return a parameter that the service refuses as an error of its option."""
    name, colon, detail = problem.detail.partition(": ")
    if not colon or not name.isidentifier():
        return typer.BadParameter(problem.detail)
    option = {"interval": "by"}.get(name, name).replace("_", "-")
    return typer.BadParameter(f"--{option}: {detail}")


def validate_url(given: str | None) -> str | None:
    """Validate the URL of a service.

    Raises:
        typer.BadParameter: it is not one, or has a password.
    """
    try:
        return None if given is None else profiles.validate_url(given)
    except ValueError as wrong:
        raise typer.BadParameter(str(wrong)) from None


def validate_key(given: str | None) -> str | None:
    """Validate a key without showing it. A key that was read from a file may end a line."""
    try:
        return profiles.validate_key(given)
    except ValueError as wrong:
        raise typer.BadParameter(f"(or AUDIT_KEY) {wrong}") from None


Dsn = Annotated[str | None, _option("dsn", "--dsn")]
DataDir = Annotated[Path | None, _option("data_dir", "--data-dir")]
Partition = Annotated[settings.Partition | None, _option("partition", "--partition")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="AUDIT_URL",
        show_envvar=False,
        callback=validate_url,
        help="URL of the service to record through, such as http://127.0.0.1:8080. Without it, the"
        " command records in the database. HTTP_PROXY, HTTPS_PROXY and NO_PROXY are used."
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
        callback=validate_key,
        help="API key of scope record, for --url. Prefer the variable, because other users of the"
        " machine can see options. [AUDIT_KEY; default: none]",
        show_default=False,
    ),
]

Timeout = Annotated[
    str | None,
    typer.Option("--timeout", help="End with 124 after this time, such as 90s, 10m or 2h."),
]

_Done = TypeVar("_Done")


def seconds_of(timeout: str | None) -> float | None:
    """Return the value of --timeout in seconds."""
    from audit.commands.rendering.times import read_span

    if timeout is None:
        return None
    span = read_span(timeout)
    if span is None:
        raise typer.BadParameter("--timeout must be a time such as 90s, 10m or 2h")
    return span.total_seconds()


def with_option_groups(command: Callable[..., _Done]) -> Callable[..., _Done]:
    """Return a command that takes the fields of its groups of options as its own options.

    A group is a dataclass whose fields are annotated as options. So commands share options without
    repeating them.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {}
    parameters = []
    for name, parameter in signature(command).parameters.items():
        if not is_dataclass(hints[name]):
            parameters.append(parameter.replace(annotation=hints[name]))
            continue
        groups[name] = hints[name]
        options = get_type_hints(hints[name], include_extras=True)
        parameters += [
            Parameter(
                field.name,
                Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=options[field.name],
            )
            for field in fields(hints[name])
        ]

    def run(**given: Any) -> _Done:
        made = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        return command(**made, **given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    ordered = sorted(parameters, key=lambda parameter: parameter.kind)
    run.__signature__ = Signature(ordered)  # type: ignore[attr-defined]
    return run
