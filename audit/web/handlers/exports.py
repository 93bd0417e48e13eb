"""The routes of exports."""

from __future__ import annotations

import logging
import zlib
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from multidict import istr

from audit.access.identity import Scope
from audit.history.export_query import ExportPath, ExportQuery, ExportsQuery
from audit.history.query import parse_query
from audit.history.recording import Author
from audit.web.handlers.asking import parse
from audit.web.negotiation import accepts_gzip
from audit.web.responses import BytesResponse
from audit.web.state import EXPORTS, IDENTITY, REQUEST_ID, ROWS
from audit.web.urls import path_and_query_params, query_params

if TYPE_CHECKING:
    from audit.history.exports import Export

log = logging.getLogger("audit")

CSV: Final = "text/csv"
_CONTENT_TYPES: Final = {
    "ndjson": "application/x-ndjson",
    "csv": f"{CSV}; charset=utf-8; header=present",
}
_HEADERS: Final[dict[str, str]] = {hdrs.CACHE_CONTROL: "no-store"}
_MANIFEST_HEADERS: Final[dict[str, str]] = {
    **_HEADERS,
    hdrs.CONTENT_TYPE: "application/json",
    hdrs.VARY: "Authorization, Cookie",
}
_EXPORT_ID: Final = istr("X-Export-ID")
_SINCE: Final = istr("X-Since")
_SNAPSHOT: Final = istr("X-Snapshot")
_TOTAL: Final = istr("X-Total")
#: The time limit for a client to read holds for each piece.
_PIECE_BYTES: Final = 64 * 1024
#: Higher levels take much longer and save little.
_GZIP_LEVEL: Final = 1
_GZIP_BITS: Final = 31


async def export_tasks(request: web.Request) -> web.StreamResponse:
    """Get all tasks that match all filters as a file, of one snapshot.

    Newest first, as lists. The response has no end if the export is cut off, which every client
    reports as an error. The export can then be resumed with `after`. The manifest of the export
    has the number of tasks and the SHA-256 of the file before compression.
    """
    query = parse(request, ExportQuery)
    author = Author(request[IDENTITY].actor, request[REQUEST_ID])
    async with AsyncExitStack() as stack:
        export = await stack.enter_async_context(request.app[EXPORTS].open(query, author))
        request[ROWS] = export.total
        headers = _headers(export)
        if accepts_gzip(request):
            headers[hdrs.CONTENT_ENCODING] = "gzip"
        if request.method == hdrs.METH_HEAD:
            return BytesResponse(None, headers)
        if export.export_id is not None:
            headers[_EXPORT_ID] = str(export.export_id)
        return _ExportResponse(export, headers, stack.pop_all())


async def get_export(request: web.Request) -> BytesResponse:
    """Get the manifest of an export.

    An API key gets the manifests of its own exports. One of scope `admin` gets all.
    """
    query = parse_query(ExportPath, path_and_query_params(request, "export_id"))
    identity = request[IDENTITY]
    key_name = None if Scope.ADMIN in identity.scopes else identity.name
    body = await request.app[EXPORTS].get(
        query.export_id, key_name=key_name, project_id=identity.project_id
    )
    return BytesResponse(body, _MANIFEST_HEADERS)


async def list_exports(request: web.Request) -> BytesResponse:
    """List the manifests of all exports, that of the export that ended last first."""
    query = parse_query(ExportsQuery, query_params(request))
    body = await request.app[EXPORTS].list(query, project_id=request[IDENTITY].project_id)
    return BytesResponse(body, _MANIFEST_HEADERS)


class _ExportResponse(web.StreamResponse):
    """A response that sends its head, and then the export as PostgreSQL writes it.

    `prepare` does both, because by then all headers have been added.
    """

    def __init__(self, export: Export, headers: dict[str, str], stack: AsyncExitStack) -> None:
        """`stack` is closed when the export has ended."""
        super().__init__(headers=headers)
        self._export = export
        self._stack = stack
        self._gzip = None
        if hdrs.CONTENT_ENCODING in headers:
            self._gzip = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_BITS)

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the head and the export.

        Raises:
            ConnectionResetError: the export was cut off, and so is the connection.
        """
        export = self._export
        try:
            async with self._stack:
                writer = await super().prepare(request)
                await export.send(self._write)
                if self._gzip:
                    await self.write(self._gzip.flush())
                await self.write_eof()
        except Exception as failure:
            # Without a transport, the client has left, and whatever failed is a consequence.
            if request.transport is not None and not request.transport.is_closing():
                # The status has been sent. Only a response without an end says that it failed.
                request.transport.abort()
                sent = f"{export.tasks} of {export.total} tasks"
                log.warning(
                    "the export %s was cut off after %s: %r", export.export_id, sent, failure
                )
            raise ConnectionResetError("the export was cut off") from failure
        return writer

    async def _write(self, piece: bytes) -> None:
        for at in range(0, len(piece), _PIECE_BYTES):
            part = piece[at : at + _PIECE_BYTES]
            if self._gzip:
                part = self._gzip.compress(part)
            if part:
                await self.write(part)


def _headers(export: Export) -> dict[str, str]:
    form = export.query.format
    return {
        **_HEADERS,
        hdrs.CONTENT_TYPE: _CONTENT_TYPES[form],
        hdrs.CONTENT_DISPOSITION: (
            f'attachment; filename="tasks-{export.taken_at:%Y%m%dT%H%M%SZ}.{form}"'
        ),
        hdrs.VARY: "Accept-Encoding, Authorization, Cookie",
        _TOTAL: str(export.total),
        _SNAPSHOT: export.snapshot,
        **({} if export.since is None else {_SINCE: export.since}),
    }
