"""Checks the JSON Web Tokens of a company's identity provider (RFC 7519, RFC 8725)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import aiohttp
import jwt

from audit.access.identity import Identity, Scope, refused
from audit.errors import Unavailable
from audit.settings import Settings
from audit.telemetry.logs import Recurring

log = logging.getLogger("audit")

#: Only with public keys: a secret that both sides know would let the service make tokens.
_ALGORITHMS: Final = {"RS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}
_LEEWAY_SECONDS: Final = 30
_FETCH_SECONDS: Final = 5
_MOST_BYTES: Final = 1024 * 1024
#: A key that is not known may have just been made: so often that is looked at.
_LOOK_AGAIN_SECONDS: Final = 10
_MOST_TOKENS: Final = 1000
#: RFC 7517 asks for different key ids. Up to this many keys of one id are tried for a token.
_MOST_OF_ONE_ID: Final = 8
#: By id; those without one are under None.
KeySet = dict[str | None, list[jwt.PyJWK]]
_REASONS: Final[dict[type[jwt.PyJWTError], str]] = {
    jwt.ExpiredSignatureError: "it has expired",
    jwt.ImmatureSignatureError: "it is not good yet",
    jwt.InvalidAudienceError: "it is for another audience",
    jwt.InvalidIssuerError: "it is of another issuer",
    jwt.InvalidSignatureError: "its signature is wrong",
    jwt.MissingRequiredClaimError: "one of the claims exp, iss, aud and sub is missing",
}
#: Claims that name the holder: as long as that, at most.
_MOST_NAME: Final = 200


class Provider:
    """Knows the public keys of an issuer, and the tokens that were checked last."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys: KeySet | None = None
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._refreshing = Recurring("the keys of the issuer cannot be read")
        self._checked: OrderedDict[bytes, tuple[float, Identity]] = OrderedDict()

    async def check(self, token: str) -> Identity:
        """Return whose token it is.

        Raises:
            Unauthenticated: it is not one of the issuer, or not for us, or expired.
            Unavailable: the issuer's keys could not be read yet.
        """
        digest = _digest(token)
        good_until, identity = self._checked.get(digest, (0.0, None))
        if identity is not None and time.time() < good_until:
            return identity
        claims = await self._claims(token)
        identity = self._identity(claims)
        self._checked[digest] = (float(claims["exp"]), identity)
        while len(self._checked) > _MOST_TOKENS:
            self._checked.popitem(last=False)
        return identity

    async def refresh(self, *, not_within_seconds: float = 0) -> None:
        """Read the issuer's keys, unless it was done just now; failing that, keep the known."""
        async with self._reading:
            if time.monotonic() - self._read_at < not_within_seconds:
                return
            self._read_at = time.monotonic()
            try:
                keys = _key_set(await _read(self._settings.jwt_jwks or ""))
            except (OSError, ValueError, aiohttp.ClientError, jwt.PyJWTError) as failure:
                self._refreshing.failed(repr(failure))
                return
            self._refreshing.succeeded()
            if self._keys is None or {*keys} != {*self._keys}:
                log.info("the issuer has %d keys", len(keys))
            self._keys = keys
            # What a key has signed that is gone is not good any more.
            self._checked.clear()

    async def _claims(self, token: str) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, UnicodeError):
            raise refused("the token is neither a key nor a JSON Web Token") from None
        algorithm = str(header.get("alg"))
        keys = [
            key
            for key in await self._keys_of(header.get("kid"))
            if key.key_type == _ALGORITHMS.get(algorithm)
        ]
        if not keys:
            raise refused(f"the token is signed by {algorithm}, which its key is not for")
        reason = "it is broken"
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
                reason = _REASONS.get(type(failure), "it is broken")
                if not isinstance(failure, jwt.InvalidSignatureError):
                    break  # the signature is right, and another key cannot make it so
            else:
                return claims
        raise refused(f"the token is not good here: {reason}")

    async def _keys_of(self, kid: str | None) -> list[jwt.PyJWK]:
        if self._keys is None or kid not in self._keys:
            await self.refresh(not_within_seconds=_LOOK_AGAIN_SECONDS)
        if self._keys is None:
            raise Unavailable("the keys of the issuer cannot be read", retry_after_seconds=10)
        if kid not in self._keys:
            raise refused("the token is signed by a key that the issuer does not name")
        return self._keys[kid]

    def _identity(self, claims: dict[str, Any]) -> Identity:
        settings = self._settings
        told = claims.get(settings.jwt_scope_claim, "")
        listed = told.split() if isinstance(told, str) else told if isinstance(told, list) else []
        names = {str(one).removeprefix(settings.jwt_scope_prefix) for one in listed}
        project_id = None
        if settings.jwt_project_claim is not None:
            project = claims.get(settings.jwt_project_claim)
            if project != "*":
                try:
                    project_id = UUID(str(project))
                except ValueError:
                    raise refused(
                        f"the claim {settings.jwt_project_claim} is neither a UUID nor *"
                    ) from None
        subject = str(claims["sub"])[:_MOST_NAME]
        number = int.from_bytes(_digest(subject)[:4])
        return Identity(
            subject, frozenset(scope for scope in Scope if scope in names), project_id, number
        )


def _digest(text: str) -> bytes:
    # A header may hold bytes, and a claim halves of characters, that are no text.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _key_set(text: bytes) -> KeySet:
    """Return the public keys that we can use.

    Different keys may have the same id, although RFC 7517 advises against it: an issuer may offer
    a key of another kind as an alternative. None of them is dropped in favour of another.
    """
    read = json.loads(text)
    if not isinstance(read, dict) or not isinstance(read.get("keys"), list):
        raise ValueError("this is no JSON Web Key Set")
    keys: KeySet = {}
    read_already = []
    for one in read["keys"]:
        if not isinstance(one, dict) or one.get("use", "sig") != "sig" or one in read_already:
            continue
        read_already.append(one)
        kid = one.get("kid")
        if not isinstance(kid, str | None):
            continue
        try:
            key = jwt.PyJWK(one)
        except jwt.PyJWTError:
            continue  # of a kind that we have no use for
        if key.key_type in _ALGORITHMS.values():
            keys.setdefault(kid, []).append(key)
            if len(keys[kid]) > _MOST_OF_ONE_ID:
                raise ValueError(f"more than {_MOST_OF_ONE_ID} keys have the id {kid!r}")
    if not keys:
        raise ValueError("it has no key that could sign a token")
    return keys


async def _read(place: str) -> bytes:
    """Read a file, or what is at a URL, without following it anywhere else."""
    if urlsplit(place).scheme not in {"http", "https"}:
        return await asyncio.to_thread(Path(place).read_bytes)
    timeout = aiohttp.ClientTimeout(total=_FETCH_SECONDS)
    async with (
        aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
        session.get(place, allow_redirects=False, raise_for_status=True) as response,
    ):
        body = await response.content.read(_MOST_BYTES + 1)
        while len(body) <= _MOST_BYTES and (more := await response.content.read(_MOST_BYTES)):
            body += more
    if len(body) > _MOST_BYTES:
        raise ValueError(f"it is over {_MOST_BYTES} bytes")
    return body
