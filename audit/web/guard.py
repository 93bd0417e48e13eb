"""The access check of a request: identity, scope and rate limit."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web

from audit.access.identity import ANYONE, Identity, Scope, refused
from audit.access.keys import KEY_PREFIX, Keys, read_keys
from audit.access.provider import Provider
from audit.access.rates import Rates
from audit.deadlines import stop
from audit.errors import Problem, Unauthenticated, Unavailable
from audit.postgres.admission import CALLER, Caller
from audit.settings import Settings
from audit.telemetry.throttle import Recurring
from audit.web.state import IDENTITY

if TYPE_CHECKING:
    from audit.postgres.pool import Pool

#: Every worker refuses a revoked key after this time at most.
_READ_EVERY_SECONDS: Final = 2
_REFRESH_PROVIDER_EVERY_SECONDS: Final = 300


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

    async def admit(self, request: web.Request, scope: Scope) -> dict[str, str]:
        """Note the identity of a request, and return the headers about its rate limit.

        Raises:
            Problem: the request has no valid key or token, lacks the scope, or comes too early.
        """
        identity = request[IDENTITY] = await self._identity(request)
        CALLER.set(Caller(identity.number, request.raw_path))
        identity.require(scope)
        return self._rates.take(identity.number)

    async def _identity(self, request: web.Request) -> Identity:
        if self._keys is None:
            raise Unavailable("the keys cannot be read", retry_after_seconds=1)
        if self._provider is None and self._keys.are_none:
            return ANYONE
        given = request.headers.getall(hdrs.AUTHORIZATION, ())
        if not given:
            raise Unauthenticated(
                "an API key is required: Authorization: Bearer …",
                headers={"WWW-Authenticate": 'Bearer realm="task-audit"'},
            )
        scheme, _, token = given[0].partition(" ")
        token = token.strip()
        if len(given) > 1 or scheme.lower() != "bearer" or not token:
            raise refused("send one Authorization header of the form: Bearer …")
        if self._provider is None or token.startswith(KEY_PREFIX):
            return self._keys.check(token).identity
        return await self._provider.check(token)

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
