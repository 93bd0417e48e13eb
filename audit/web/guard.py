"""The access check of a request: identity, scope and rate limit."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web

from audit.access.identity import ANYONE, Identity, Scope, Via, refused
from audit.access.keys import KEY_PREFIX, Keys, read_keys
from audit.access.provider import Provider
from audit.access.rates import Rates
from audit.deadlines import stop
from audit.errors import Forbidden, Problem, Unauthenticated, Unavailable
from audit.postgres.admission import CALLER, Caller
from audit.settings import Settings
from audit.telemetry.throttle import Recurring
from audit.web.state import IDENTITY, VIA

if TYPE_CHECKING:
    from audit.postgres.pool import Pool

#: Every worker refuses a revoked key after this time at most.
_READ_EVERY_SECONDS: Final = 2
_REFRESH_PROVIDER_EVERY_SECONDS: Final = 300
#: The cookie that holds the key of a session.
COOKIE: Final = "task_audit_session"
#: Browsers say which page sends a request: one of this origin, or none if a person typed the URL or
#: follows a bookmark. No script can set this header.
FETCH_SITE: Final = "Sec-Fetch-Site"
_SITES_OF_SESSION: Final = frozenset({"same-origin", "none"})
_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="task-audit"'}


class Guard:
    """Checks who sends a request.

    Everyone may do everything if no key exists and no issuer of tokens is configured.
    """

    def __init__(self, settings: Settings, rates: Rates) -> None:
        #: None: the keys have not been read yet.
        self._keys: Keys | None = None
        self._provider = Provider(settings) if settings.jwt_issuer else None
        self._rates = rates
        self._reading = Recurring("reading the keys")

    async def admit(
        self, request: web.Request, scope: Scope | None, *, allows_session: bool
    ) -> dict[str, str]:
        """Note the identity of a request, and return the headers about its rate limit.

        If `scope` is None, any scope is enough. `allows_session` says whether the session of the
        web page is accepted instead of a key in `Authorization`.

        Raises:
            Problem: the request has no valid key or token, lacks the scope, or comes too early.
        """
        identity, via = await self._identity(request, allows_session)
        request[IDENTITY], request[VIA] = identity, via
        CALLER.set(Caller(identity.number, request.raw_path))
        if scope:
            identity.require(scope)
        return self._rates.take(identity.number)

    async def still_admits(self, request: web.Request, scope: Scope) -> bool:
        """Return whether a request that was admitted before would be admitted now.

        It would not if its key was revoked or has expired, or if the service now requires a key.
        """
        try:
            identity, _ = await self._identity(request, True)
            identity.require(scope)
        except (Unauthenticated, Forbidden):
            return False
        return identity.project_id == request[IDENTITY].project_id

    async def admit_to_session(self, request: web.Request, token: str) -> dict[str, str]:
        """Like `admit`, for a request that opens a session with a key or token.

        Raises:
            Problem: it is not valid, has another scope than `read`, or comes too early.
        """
        identity, _ = await self._holder(token)
        request[IDENTITY] = identity
        identity.require(Scope.READ)
        if more := identity.scopes - {Scope.READ}:
            raise Forbidden(
                f"a session only reads, and {identity.name} also has the scope"
                f" {' and '.join(sorted(more))}; create a key for the web page: audit keys create"
                " --name ada --scope read --expires 90d"
            )
        return self._rates.take(identity.number)

    async def _identity(self, request: web.Request, allows_session: bool) -> tuple[Identity, Via]:
        if self._provider is None and self._known_keys.are_none:
            return ANYONE, Via.NO_KEY
        given = request.headers.getall(hdrs.AUTHORIZATION, ())
        if not given:
            identity, _ = await self._holder(_token_of_session(request, allows_session))
            return identity, Via.SESSION
        scheme, _, token = given[0].partition(" ")
        token = token.strip()
        if len(given) > 1 or scheme.lower() != "bearer" or not token:
            raise refused("send one Authorization header of the form: Bearer …")
        return await self._holder(token)

    async def _holder(self, token: str) -> tuple[Identity, Via]:
        """Return the holder of an API key or of a JSON Web Token."""
        keys = self._known_keys
        if self._provider is None or token.startswith(KEY_PREFIX):
            return keys.check(token).identity, Via.KEY
        return await self._provider.check(token), Via.TOKEN

    @property
    def _known_keys(self) -> Keys:
        if self._keys is None:
            raise Unavailable("the keys cannot be read", retry_after_seconds=1)
        return self._keys

    async def read_keys(self, pool: Pool) -> None:
        """Read all keys from the database; keep the known ones if that fails."""
        try:
            keys = await read_keys(pool, timeout_seconds=_READ_EVERY_SECONDS)
        except Problem as problem:
            self._reading.failed(problem.detail)
            return
        self._reading.succeeded()
        # An emptied table does not give access to everyone.
        if self._keys is None or self._keys.are_none or not keys.are_none:
            self._keys = keys

    @contextlib.asynccontextmanager
    async def watching(self, pool: Pool) -> AsyncIterator[None]:
        """Read the keys now, and regularly for as long as the block runs."""
        await self.read_keys(pool)
        watch = asyncio.create_task(self._keep_reading(pool))
        try:
            yield
        finally:
            await stop(watch)

    async def _keep_reading(self, pool: Pool) -> None:
        turns_of_provider = _REFRESH_PROVIDER_EVERY_SECONDS // _READ_EVERY_SECONDS
        for turn in itertools.count():
            if self._provider and turn % turns_of_provider == 0:
                await self._provider.refresh()
            await asyncio.sleep(_READ_EVERY_SECONDS)
            await self.read_keys(pool)


GUARD: Final = web.AppKey("guard", Guard)


def _token_of_session(request: web.Request, allows_session: bool) -> str:
    """Return the key or token in the cookie.

    Other pages could make a browser send the cookie. So it is accepted only if the browser says
    that none has done so, and only on routes that read.
    """
    token = request.cookies.get(COOKIE) if hdrs.COOKIE in request.headers else None
    if not token:
        raise Unauthenticated("an API key is required: Authorization: Bearer …", headers=_CHALLENGE)
    if not allows_session or request.headers.get(FETCH_SITE) not in _SITES_OF_SESSION:
        raise Unauthenticated(
            "a session only allows the web page of this service to read; send an API key:"
            " Authorization: Bearer …",
            headers=_CHALLENGE,
        )
    return token
