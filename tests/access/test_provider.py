"""JSON Web Tokens of an identity provider: what is taken, and what is not."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import get_default_algorithms
from pytest_aiohttp.plugin import AiohttpClient

from audit.access.identity import Scope
from audit.access.provider import Provider
from audit.errors import Unauthenticated, Unavailable
from audit.settings import Settings
from audit.web.app import create_app

ISSUER, AUDIENCE = "https://id.example.com", "task-audit"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SIGNERS: dict[str, Any] = {
    "RS256": RSA,
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def public(algorithm: str, key: Any, kid: str) -> dict[str, Any]:
    described = json.loads(get_default_algorithms()[algorithm].to_jwk(key.public_key()))
    return {**described, "kid": kid, "use": "sig"}


KEY_SET = {"keys": [public(name, key, name) for name, key in SIGNERS.items()]}


def claims(**other: Any) -> dict[str, Any]:
    now = int(time.time())
    made = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ada",
        "iat": now,
        "exp": now + 60,
        "scope": "openid read",
        **other,
    }
    return {name: value for name, value in made.items() if value is not None}


def token(algorithm: str = "RS256", kid: str | None = None, **other: Any) -> str:
    return jwt.encode(
        claims(**other), SIGNERS[algorithm], algorithm, headers={"kid": kid or algorithm}
    )


@pytest.fixture
def key_set(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(KEY_SET))
    return path


def write(path: Path, text: str) -> None:
    path.write_text(text)


Made = Callable[..., Provider]


@pytest.fixture
def make(key_set: Path) -> Made:
    def make(**settings: Any) -> Provider:
        given = {"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_jwks": str(key_set)}
        return Provider(Settings(**{**given, **settings}))

    return make


@pytest.mark.parametrize("algorithm", list(SIGNERS))
async def test_a_token_gives_an_identity_with_its_scopes(make: Made, algorithm: str) -> None:
    identity = await make().check(token(algorithm))

    assert identity.name == "ada"
    assert identity.scopes == {Scope.READ}
    assert identity.project_id is None


def unsigned() -> str:
    parts = [{"alg": "none", "typ": "JWT", "kid": "RS256"}, claims()]
    encoded = [base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=") for p in parts]
    return b".".join([*encoded, b""]).decode()


def deep() -> str:
    return base64.urlsafe_b64encode(b"[" * 2500 + b"]" * 2500).rstrip(b"=").decode()


def by_secret() -> str:
    """Signed by the public key as if it were a secret that both sides know."""
    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head = {"alg": "HS256", "typ": "JWT", "kid": "RS256"}
    signed = b".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in (head, claims())
    )
    import hashlib
    import hmac

    digest = hmac.new(pem, signed, hashlib.sha256).digest()
    return (signed + b"." + base64.urlsafe_b64encode(digest).rstrip(b"=")).decode()


def changed() -> str:
    head, _, signature = token().split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims(sub="root")).encode()).rstrip(b"=")
    return f"{head}.{body.decode()}.{signature}"


def by_stranger() -> str:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return jwt.encode(claims(), other, "RS256", headers={"kid": "RS256"})


NOW = time.time()
REFUSED: dict[str, tuple[Callable[[], str], str]] = {
    "nothing": (lambda: "x", "neither an API key nor"),
    "dots": (lambda: "..", "neither an API key nor"),
    "long": (lambda: "a" * 7000, "neither an API key nor"),
    "bytes that are no text": (lambda: "a\udcff.b.c", "neither an API key nor"),
    "deep": (lambda: deep() + ".e30.x", "neither an API key nor"),
    "unsigned": (unsigned, "algorithm none"),
    "by a public key as a secret": (by_secret, "algorithm HS256"),
    "claims changed": (changed, "signature is wrong"),
    "by a stranger": (by_stranger, "signature is wrong"),
    "key of another kind": (
        lambda: token("ES256", kid="RS256"),
        "does not allow the algorithm ES256",
    ),
    "unknown key": (lambda: token(kid="gone"), "no key with the id"),
    "expired": (lambda: token(exp=int(time.time()) - 40), "has expired"),
    "not yet": (lambda: token(nbf=int(time.time()) + 90), "not valid yet"),
    "another audience": (lambda: token(aud="billing"), "another audience"),
    "another issuer": (lambda: token(iss="https://evil.example.com"), "another issuer"),
    "no expiry": (lambda: token(exp=None), "lacks"),
    "no audience": (lambda: token(aud=None), "lacks"),
    "no subject": (lambda: token(sub=None), "lacks"),
    "expiry is no number": (lambda: token(exp="soon"), "malformed"),
}


@pytest.mark.parametrize("name", list(REFUSED))
async def test_an_invalid_token_is_refused(make: Made, name: str) -> None:
    made, reason = REFUSED[name]

    with pytest.raises(Unauthenticated, match=reason) as refused:
        await make().check(made())

    assert refused.value.headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}


async def test_a_valid_token_is_decoded_once_until_it_expires(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = make()
    given = token()
    decoded: list[str] = []
    decode = jwt.decode

    def counted(text: str, *arguments: Any, **options: Any) -> Any:
        decoded.append(text)
        return decode(text, *arguments, **options)

    monkeypatch.setattr(jwt, "decode", counted)
    for _ in range(3):
        await checks.check(given)
    assert decoded == [given]

    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    # It has expired within the leeway for clocks that differ, so each check decodes it again.
    for _ in range(3):
        await checks.check(given)
    assert decoded == [given] * 4


async def test_text_that_postgresql_cannot_store_is_replaced_in_a_name(make: Made) -> None:
    assert (await make().check(token(sub="a\ud800\0b"))).name == "a??b"


@pytest.mark.parametrize(
    ("given", "scopes"),
    [
        ({"scope": "read record"}, {Scope.READ, Scope.RECORD}),
        ({"scope": ["admin", "read"]}, {Scope.ADMIN, Scope.READ}),
        ({"scope": "readonly"}, set()),
        ({"scope": None}, set()),
        ({"scope": {"read": True}}, set()),
        ({"scope": [["read"], 1]}, set()),
    ],
)
async def test_scopes_are_the_words_of_a_claim(
    make: Made, given: dict[str, Any], scopes: set[Scope]
) -> None:
    assert (await make().check(token(**given))).scopes == scopes


async def test_the_claim_and_the_prefix_of_scopes_are_settings(make: Made) -> None:
    checks = make(jwt_scope_claim="roles", jwt_scope_prefix="audit:")

    identity = await checks.check(token(roles=["audit:record", "billing:admin"], scope="read"))

    assert identity.scopes == {Scope.RECORD}


async def test_a_claim_binds_to_a_project(make: Made) -> None:
    checks = make(jwt_project_claim="project")
    project = uuid.uuid4()

    assert (await checks.check(token(project=str(project)))).project_id == project
    assert (await checks.check(token(project="*"))).project_id is None
    for wrong in ({}, {"project": "all"}, {"project": None}, {"project": [str(project)]}):
        with pytest.raises(Unauthenticated, match="neither a UUID"):
            await checks.check(token(**wrong))


async def test_keys_are_rotated(make: Made, key_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new key is found when a token names it 10 seconds after the last read, and tokens of a
    removed key are refused.
    """
    checks = make()
    given = token("RS256")
    await checks.check(given)
    write(key_set, json.dumps({"keys": [public("ES256", SIGNERS["ES256"], "new")]}))
    with pytest.raises(Unauthenticated, match="no key with the id"):
        await checks.check(token("ES256", kid="new"))

    later = time.monotonic() + 10
    monkeypatch.setattr(time, "monotonic", lambda: later)

    await checks.check(token("ES256", kid="new"))
    with pytest.raises(Unauthenticated, match="no key with the id"):
        await checks.check(given)


@pytest.mark.parametrize("order", [1, -1])
async def test_all_keys_with_the_id_are_tried(make: Made, key_set: Path, order: int) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    keys = [
        public("RS256", RSA, "same"),
        public("RS256", other, "same"),
        public("ES256", SIGNERS["ES256"], "same"),
        public("RS256", RSA, "same"),
        {**public("RS256", RSA, "same"), "kid": ["no", "text"]},
    ]
    write(key_set, json.dumps({"keys": keys[::order]}))
    checking = make()

    for algorithm, key in [("RS256", RSA), ("RS256", other), ("ES256", SIGNERS["ES256"])]:
        signed = jwt.encode(claims(), key, algorithm, headers={"kid": "same"})
        assert "ada" == (await checking.check(signed)).name
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    with pytest.raises(Unauthenticated, match="its signature is wrong"):
        await checking.check(jwt.encode(claims(), stranger, "RS256", headers={"kid": "same"}))
    with pytest.raises(Unauthenticated, match="it has expired"):
        await checking.check(token(kid="same", exp=1))


async def test_a_key_set_with_too_many_keys_of_one_id_is_rejected(
    make: Made, key_set: Path
) -> None:
    keys = [public("EdDSA", ed25519.Ed25519PrivateKey.generate(), "same") for _ in range(9)]
    write(key_set, json.dumps({"keys": keys}))
    with pytest.raises(Unavailable):
        await make().check(token("EdDSA", kid="same"))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"keys":{}}', '{"keys":[]}', '{"keys":[1,{"kty":"oct","k":"eA"}]}'],
)
async def test_a_broken_key_set_does_not_replace_the_known_one(
    make: Made, key_set: Path, text: str
) -> None:
    checks = make()
    await checks.check(token())
    write(key_set, text)
    await checks.refresh()

    await checks.check(token())
    fresh = make()
    with pytest.raises(Unavailable):
        await fresh.check(token())


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def whole_set(_: web.Request) -> web.StreamResponse:
    return web.json_response(KEY_SET)


async def served(answer: Answer) -> TestServer:
    app = web.Application()
    app.router.add_get("/jwks", answer)
    app.router.add_get("/elsewhere", whole_set)
    server = TestServer(app)
    await server.start_server()
    return server


async def test_a_key_set_is_read_from_a_url(make: Made) -> None:
    server = await served(whole_set)
    try:
        await make(jwt_jwks=str(server.make_url("/jwks"))).check(token())
    finally:
        await server.close()


async def test_unknown_key_ids_cause_one_read_of_the_key_set(make: Made) -> None:
    reads = 0

    async def counted(request: web.Request) -> web.StreamResponse:
        nonlocal reads
        reads += 1
        return await whole_set(request)

    server = await served(counted)
    checks = make(jwt_jwks=str(server.make_url("/jwks")))
    try:
        refusals = await asyncio.gather(
            *(checks.check(token(kid=f"unknown-{number}")) for number in range(20)),
            return_exceptions=True,
        )
        with pytest.raises(Unauthenticated):
            await checks.check(token(kid="unknown-20"))
    finally:
        await server.close()

    assert all(isinstance(refusal, Unauthenticated) for refusal in refusals)
    assert reads == 1


@pytest.mark.parametrize("kind", ["redirect", "huge", "failing"])
async def test_a_key_set_with_a_redirect_or_an_error_is_rejected(make: Made, kind: str) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        if kind == "redirect":
            raise web.HTTPFound("/elsewhere")
        if kind == "failing":
            raise web.HTTPServiceUnavailable
        return web.Response(body=json.dumps(KEY_SET).encode() + b" " * 2**20)

    server = await served(answer)
    try:
        with pytest.raises(Unavailable):
            await make(jwt_jwks=str(server.make_url("/jwks"))).check(token())
    finally:
        await server.close()


async def test_the_service_accepts_tokens_and_keys(
    dsn: str, key_set: Path, aiohttp_client: AiohttpClient
) -> None:
    settings = Settings(
        pool_size=2, jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_jwks=str(key_set)
    )
    client = await aiohttp_client(create_app(settings, dsn))

    async def status(header: str | None, method: str = "GET", path: str = "query") -> int:
        headers = {"Authorization": header} if header else {}
        response = await client.request(method, f"/api/v1/audit/{path}", headers=headers)
        return int(response.status)

    assert await status(f"Bearer {token()}") == 200
    assert await status(f"bearer {token()}") == 200
    assert await status(f"Bearer {token()}", "POST", "tasks") == 403
    assert await status(f"Bearer {token(scope='record')}") == 403
    assert await status(None) == 401
    assert await status("Bearer taskaudit_unknown") == 401
