"""`audit openapi`: prints the OpenAPI document of the service."""

from __future__ import annotations

from audit.commands.output import print_json


def openapi() -> None:
    """Print the OpenAPI 3.1 document."""
    from audit.web.openapi import document

    print_json(document())
