"""How both clients use httpx2: proxies, certificates, and what its errors mean."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from audit.client.wire import MOST_CONNECTIONS, Lost, Reply
from audit.errors import Unavailable
from audit.profiles import BadConfiguration

_CONNECT_SECONDS: Final = 10.0
#: A response that comes in pieces, but not in time.
TOO_SLOW: Final = Lost("the response did not arrive in time")
#: The service limits a page to less (`max_page_bytes`), but the program may have a wrong URL.
LARGEST_REPLY: Final = 1024**3
TOO_LARGE: Final = Lost("the response is too large", may_recover=False)


def options(url: str, ca_file: Path | None) -> dict[str, Any]:
    """Return the arguments of a client of httpx2.

    Raises:
        BadConfiguration: the certificates cannot be read.
        Unavailable: the proxy of the environment is not one.
    """
    context = httpx2.create_ssl_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as failure:  # ssl.SSLError is one
            raise BadConfiguration(f"{ca_file}: {failure.strerror or failure}") from None
    return {
        "verify": context,
        "proxy": _proxy_of(url),
        "trust_env": False,  # it is read above and below
        "limits": httpx2.Limits(
            max_connections=MOST_CONNECTIONS, max_keepalive_connections=MOST_CONNECTIONS
        ),
    }


def timeouts(seconds: float) -> httpx2.Timeout:
    """Return the time limits of one attempt. Each part of it may take all the time."""
    return httpx2.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS))


def reply(response: httpx2.Response, body: bytes) -> Reply:
    """Return the response with its body."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Reply(response.status_code, headers, body)


def lost(failure: Exception) -> Lost:
    """Return what a failure of httpx2 means, and whether another attempt may succeed."""
    reason = _reason(failure)
    if isinstance(failure, httpx2.ProxyError):
        return Lost(f"the proxy answers {reason}", may_recover=reason[:1] not in {"3", "4"})
    return Lost(reason, not isinstance(failure, httpx2.InvalidURL) and not _is_wrong_tls(failure))


def _reason(failure: BaseException) -> str:
    """Return what the system says, such as `Connection refused`, or else what httpx2 says."""
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, BaseExceptionGroup):
            # One attempt for each address of the host.
            cause = cause.exceptions[0]
        if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, ssl.SSLError):
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(failure) or type(failure).__name__


def _is_wrong_tls(failure: BaseException | None) -> bool:
    """Return whether the certificate is not trusted, or the other side does not know TLS."""
    while failure is not None:
        if isinstance(failure, ssl.SSLError):
            return not isinstance(failure, ssl.SSLEOFError | ssl.SSLZeroReturnError)
        failure = failure.__cause__ or failure.__context__
    return False


def _proxy_of(url: str) -> str | None:
    """Return the proxy for a URL according to HTTP_PROXY, HTTPS_PROXY and NO_PROXY."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    hosts = (parts.hostname or "", parts.netloc)
    if not proxy or any(map(proxy_bypass, hosts)):
        return None
    address = proxy if "://" in proxy else f"http://{proxy}"
    try:
        found = urlsplit(address)
        is_usable = found.scheme in {"http", "https"} and bool(found.hostname) and found.port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        raise Unavailable(
            f"{parts.scheme.upper()}_PROXY must look like http://proxy.example.com:3128"
        )
    return address
