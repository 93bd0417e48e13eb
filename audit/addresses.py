"""The address of a client, also behind reverse proxies."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

Address = IPv4Address | IPv6Address
Networks = tuple[IPv4Network | IPv6Network, ...]


def networks_of(text: str) -> Networks:
    """Return the networks of a list such as `10.0.0.0/8, ::1`.

    Raises:
        ValueError: a part is neither an address nor a network.
    """
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


def client_address(peer: str | None, forwarded: Iterable[str], trusted: Networks) -> str | None:
    """Return the address of the client that sent a request; None if it is not known.

    `peer` is the other end of the connection, and `forwarded` has the values of X-Forwarded-For in
    their order. A trusted proxy appends the address of its own client. So the client is the last
    address that is not a trusted proxy; any client can invent the addresses before it. If there is
    no such address, or a part is not an address, the first trusted proxy is returned.
    """
    address = _address(peer or "")
    if address is None:
        return None
    hops = ",".join(forwarded)
    while hops and _is_in(address, trusted):
        hops, _, last = hops.rpartition(",")
        before = _address(last)
        if before is None:
            break
        address = before
    return str(address)


def _address(text: str) -> Address | None:
    """Parse `1.2.3.4`, `1.2.3.4:80`, `::1` or `[::1]:80`; None if the text is not an address."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # A socket that accepts IPv4 and IPv6 shows IPv4 addresses as ::ffff:1.2.3.4.
    return getattr(address, "ipv4_mapped", None) or address


def _is_in(address: Address, networks: Networks) -> bool:
    return any(address in network for network in networks)
