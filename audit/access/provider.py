"""JSON Web Tokens of an identity provider: their validation (RFC 7519, RFC 8725)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import aiohttp
import jwt

from audit.access.identity import Identity, Scope, refused
from audit.errors import Unavailable
from audit.once import Once
from audit.settings import Settings
from audit.telemetry.throttle import Recurring

log = logging.getLogger("audit")

#: The type of key for each algorithm. Only public keys are allowed, because with a shared secret
#: the service could create tokens.
_ALGORITHMS: Final = {"RS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}
_LEEWAY_SECONDS: Final = 30
_FETCH_SECONDS: Final = 5
_MAX_BYTES: Final = 1024 * 1024
#: An unknown key may be new, so the key set is read again, but not more often than this.
_REFRESH_SECONDS: Final = 10
_MAX_TOKENS: Final = 1000
#: RFC 7517 asks for unique key ids. If an id is shared, up to this many keys are tried.
_MAX_KEYS_PER_ID: Final = 8
#: By key id. Keys without an id are under None.
KeySet = dict[str | None, list[jwt.PyJWK]]
_REASONS: Final[dict[type[jwt.PyJWTError], str]] = {
    jwt.ExpiredSignatureError: "it has expired",
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.InvalidAudienceError: "it is for another audience",
    jwt.InvalidIssuerError: "it is from another issuer",
    jwt.InvalidSignatureError: "its signature is wrong",
    jwt.MissingRequiredClaimError: "it lacks one of the claims exp, iss, aud and sub",
}
#: The claim that names the holder is cut to this length.
_MAX_NAME_LENGTH: Final = 200
#: The end of the year 9999, the last that a `datetime` can have. A token may expire later.
_LAST_SECOND: Final = 253_402_300_799


class Provider:
    """Validates the tokens of one issuer, and caches its keys and the last valid tokens."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys: KeySet | None = None
        self._read_at = float("-inf")
        self._refresh = Once[None]()
        self._reading = Recurring("reading the keys of the issuer")
        self._checked: OrderedDict[bytes, tuple[float, Identity]] = OrderedDict()

    async def check(self, token: str) -> Identity:
        """Return the identity of the holder of a token.

        Raises:
            Unauthenticated: the token is not valid for this service, or has expired.
            Unavailable: the keys of the issuer have never been read successfully.
        """
        digest = _digest(token)
        good_until, identity = self._checked.get(digest, (0.0, None))
        if identity is not None and time.time() < good_until:
            return identity
        claims = await self._claims(token)
        identity = self._identity(claims)
        self._checked[digest] = (float(claims["exp"]), identity)
        while len(self._checked) > _MAX_TOKENS:
            self._checked.popitem(last=False)
        return identity

    async def refresh(self) -> None:
        """Read the keys of the issuer, once for all concurrent callers.

        On failure, the known keys stay.
        """
        await self._refresh.result(self._read_keys)

    async def _read_keys(self) -> None:
        try:
            keys = _key_set(await _read(self._settings.jwt_jwks or ""))
        except (OSError, ValueError, aiohttp.ClientError, jwt.PyJWTError) as failure:
            self._reading.failed(repr(failure))
            return
        finally:
            self._read_at = time.monotonic()
        self._reading.succeeded()
        if self._keys is None or {*keys} != {*self._keys}:
            log.info("the issuer has %d keys", len(keys))
        self._keys = keys
        # Tokens signed by a removed key are no longer valid.
        self._checked.clear()

    async def _claims(self, token: str) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, UnicodeError):
            raise refused("the token is neither an API key nor a JSON Web Token") from None
        algorithm = str(header.get("alg"))
        keys = [
            key
            for key in await self._keys_of(header.get("kid"))
            if key.key_type == _ALGORITHMS.get(algorithm)
        ]
        if not keys:
            raise refused(f"the key of the token does not allow the algorithm {algorithm}")
        reason = "it is malformed"
        for key in keys:
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key,
                    algorithms=[algorithm],
                    issuer=self._settings.jwt_issuer,
                    audience=self._settings.jwt_audience,
                    leeway=_LEEWAY_SECONDS,
                    options={"require": ["exp", "iss", "aud", "sub"]},
                )
            except jwt.PyJWTError as failure:
                reason = _REASONS.get(type(failure), "it is malformed")
                if not isinstance(failure, jwt.InvalidSignatureError):
                    break  # the signature matched, so another key cannot do better
            else:
                return claims
        raise refused(f"the token is not valid: {reason}")

    async def _keys_of(self, kid: str | None) -> list[jwt.PyJWK]:
        is_known = self._keys is not None and kid in self._keys
        if not is_known and time.monotonic() - self._read_at >= _REFRESH_SECONDS:
            await self.refresh()
        if self._keys is None:
            raise Unavailable("the keys of the issuer cannot be read", retry_after_seconds=10)
        if kid not in self._keys:
            raise refused("the issuer has no key with the id that the token names")
        return self._keys[kid]

    def _identity(self, claims: dict[str, Any]) -> Identity:
        settings = self._settings
        given = claims.get(settings.jwt_scope_claim)
        listed = given.split() if isinstance(given, str) else given
        names = listed if isinstance(listed, list) else []
        scopes = {str(name).removeprefix(settings.jwt_scope_prefix) for name in names}
        subject = str(claims["sub"])[:_MAX_NAME_LENGTH]
        return Identity(
            _storable(subject),
            frozenset(scope for scope in Scope if scope in scopes),
            self._project_id(claims),
            int.from_bytes(_digest(subject)[:4]),
            datetime.fromtimestamp(min(claims["exp"], _LAST_SECOND), UTC),
        )

    def _project_id(self, claims: dict[str, Any]) -> UUID | None:
        name = self._settings.jwt_project_claim
        if name is None or claims.get(name) == "*":
            return None
        try:
            return UUID(str(claims.get(name)))
        except ValueError:
            raise refused(f"the claim {name} is neither a UUID nor *") from None


def _storable(name: str) -> str:
    """Return a name that PostgreSQL can store: it takes no NUL and no half of a surrogate pair."""
    return name.encode("utf-8", "replace").decode().replace("\0", "?")


def _digest(text: str) -> bytes:
    # A header may contain bytes, and a claim half a surrogate pair, that are not valid text.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _key_set(text: bytes) -> KeySet:
    """Return the usable public keys of a JSON Web Key Set.

    Several keys may have the same id, although RFC 7517 advises against it. All of them are kept.
    """
    read = json.loads(text)
    if not isinstance(read, dict) or not isinstance(read.get("keys"), list):
        raise ValueError("not a JSON Web Key Set")
    keys: KeySet = {}
    seen = []
    for one in read["keys"]:
        if not isinstance(one, dict) or one.get("use", "sig") != "sig" or one in seen:
            continue
        seen.append(one)
        kid = one.get("kid")
        if not isinstance(kid, str | None):
            continue
        try:
            key = jwt.PyJWK(one)
        except jwt.PyJWTError:
            continue  # an unsupported kind of key
        if key.key_type in _ALGORITHMS.values():
            keys.setdefault(kid, []).append(key)
            if len(keys[kid]) > _MAX_KEYS_PER_ID:
                raise ValueError(f"more than {_MAX_KEYS_PER_ID} keys have the id {kid!r}")
    if not keys:
        raise ValueError("the key set has no key that can sign a token")
    return keys


async def _read(location: str) -> bytes:
    """Read a file or a URL, without following redirects."""
    if urlsplit(location).scheme not in {"http", "https"}:
        return await asyncio.to_thread(Path(location).read_bytes)
    timeout = aiohttp.ClientTimeout(total=_FETCH_SECONDS)
    async with (
        aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
        session.get(location, allow_redirects=False, raise_for_status=True) as response,
    ):
        body = await response.content.read(_MAX_BYTES + 1)
        while len(body) <= _MAX_BYTES and (more := await response.content.read(_MAX_BYTES)):
            body += more
    if len(body) > _MAX_BYTES:
        raise ValueError(f"the key set is over {_MAX_BYTES} bytes")
    return body
