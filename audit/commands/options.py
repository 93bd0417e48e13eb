"""The options that commands share, generated from the settings where they are settings."""

from __future__ import annotations

from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import SecretStr, ValidationError

from audit import settings
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
    for name, field in Settings.model_fields.items():
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


def _validate_url(given: str | None) -> str | None:
    from urllib.parse import urlsplit

    if given is None:
        return None
    try:
        parts = urlsplit(given.strip())
        is_valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid or not given.isprintable():
        raise typer.BadParameter("must look like http://127.0.0.1:8080")
    if "@" in parts.netloc:
        raise typer.BadParameter("must not have a user or password; give the API key in AUDIT_KEY")
    if parts.query or parts.fragment:
        raise typer.BadParameter("must be the address of the service, without ? or #")
    return given.strip()


def _validate_key(given: str | None) -> str | None:
    """Validate a key without showing it. A key that was read from a file may end a line."""
    key = (given or "").strip()
    if not all("!" <= character <= "~" for character in key):
        raise typer.BadParameter(
            "(or AUDIT_KEY) must be a single API key, without spaces or line breaks"
        )
    return key or None


Dsn = Annotated[str | None, _option("dsn", "--dsn")]
DataDir = Annotated[Path | None, _option("data_dir", "--data-dir")]
Partition = Annotated[settings.Partition | None, _option("partition", "--partition")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def _url_option(purpose: str, otherwise: str) -> Any:
    return typer.Option(
        "--url",
        envvar="AUDIT_URL",
        show_envvar=False,
        callback=_validate_url,
        help=f"URL of the service to {purpose}, such as http://127.0.0.1:8080. Without it, the"
        f" command {otherwise} the database. HTTP_PROXY, HTTPS_PROXY and NO_PROXY are used."
        " [AUDIT_URL; default: none]",
        show_default=False,
    )


def _key_option(scope: str) -> Any:
    return typer.Option(
        "--key",
        envvar="AUDIT_KEY",
        show_envvar=False,
        callback=_validate_key,
        help=f"API key of scope {scope}, for --url. Prefer the variable, because other users of the"
        " machine can see options. [AUDIT_KEY; default: none]",
        show_default=False,
    )


#: To record through a service.
Url = Annotated[str | None, _url_option("record through", "records in")]
ApiKey = Annotated[str | None, _key_option("record")]
#: To read from a service.
ReadUrl = Annotated[str | None, _url_option("ask", "reads")]
ReadKey = Annotated[str | None, _key_option("read")]
