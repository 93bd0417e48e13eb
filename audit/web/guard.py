"""Stands before the routes: who asks, whether they may, and how often."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from audit.access.identity import ANYONE, Identity, Scope, refused
from audit.access.keys import KEY_PREFIX, Key, Keys, read_keys
from audit.access.provider import Provider
from audit.access.rates import Rates
from audit.errors import Problem, Unauthenticated, Unavailable
from audit.postgres.admission import CALLER, Caller
from audit.settings import Settings
from audit.telemetry.logs import Recurring
from audit.web.state import IDENTITY

if TYPE_CHECKING:
    from audit.postgres.pool import Pool

#: A key that is revoked is refused after that, at most, in every worker.
_READ_EVERY_SECONDS: Final = 2
_ASK_PROVIDER_EVERY_SECONDS: Final = 300


class Guard:
    """Knows the keys; without any, and without an issuer of tokens, everyone may do everything."""

    def __init__(self, settings: Settings, rates: Rates) -> None:
        #: None: they are not known yet.
        self._keys: Keys | None = None
        #: Good keys by the header that names them: no longer than until keys are read again.
        self._sent: dict[str, Key] = {}
        self._provider = Provider(settings) if settings.jwt_issuer else None
        self._rates = rates
        self._reading = Recurring("reading the keys")

    def allow(self, scope: Scope) -> Callable[[Handler], Handler]:
        """Let only requests with the scope through to a handler."""

        def allowed(handler: Handler) -> Handler:
            async def handle(request: web.Request) -> web.StreamResponse:
                given = request.headers.getall(hdrs.AUTHORIZATION, ())
                sent = self._sent.get(given[0]) if len(given) == 1 else None
                if sent is None or sent.has_expired():
                    identity = await self._identity(given)
                else:
                    identity = sent.identity
                request[IDENTITY] = identity
                CALLER.set(Caller(identity.number, request.raw_path))
                identity.require(scope)
                left = self._rates.take(identity.number)
                response = await handler(request)
                if left is not None and not response.prepared:
                    response.headers["RateLimit-Policy"] = self._rates.policy
                    response.headers["RateLimit"] = left
                return response

            return handle

        return allowed

    async def _identity(self, given: Sequence[str]) -> Identity:
        if self._keys is None:
            raise Unavailable("the keys cannot be read", retry_after_seconds=1)
        if self._provider is None and self._keys.are_none:
            return ANYONE
        if not given:
            raise Unauthenticated(
                "send a key: Authorization: Bearer …",
                headers={"WWW-Authenticate": 'Bearer realm="task-audit"'},
            )
        scheme, _, token = given[0].partition(" ")
        token = token.strip()
        if len(given) > 1 or scheme.lower() != "bearer" or not token:
            raise refused("the header must be one, and read: Authorization: Bearer …")
        if self._provider is None or token.startswith(KEY_PREFIX):
            key = self._keys.check(token)
            if given[0] == f"Bearer {token}":  # any other spelling could be sent without end
                self._sent[given[0]] = key
            return key.identity
        return await self._provider.check(token)

    async def learn(self, pool: Pool) -> None:
        """Learn which keys were made and revoked; where that fails, those known before stay."""
        try:
            keys = await read_keys(pool, timeout_seconds=_READ_EVERY_SECONDS)
        except Problem as problem:
            self._reading.failed(problem.detail)
            return
        self._reading.succeeded()
        # Whoever empties the table does not open the doors.
        if self._keys is None or self._keys.are_none or not keys.are_none:
            self._keys = keys
            self._sent = {}

    async def keep_learning(self, pool: Pool) -> None:
        """Learn without end, of the identity provider too."""
        turns_of_provider = _ASK_PROVIDER_EVERY_SECONDS // _READ_EVERY_SECONDS
        for turn in itertools.count():
            if self._provider and turn % turns_of_provider == 0:
                await self._provider.refresh()
            await asyncio.sleep(_READ_EVERY_SECONDS)
            await self.learn(pool)
