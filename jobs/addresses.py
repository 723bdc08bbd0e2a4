"""Which addresses a URL from outside may lead to: public ones, and what the operator allows."""

import socket
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address, ip_network

from jobs.errors import UrlRefused
from jobs.settings import Network

Address = IPv4Address | IPv6Address
Resolve = Callable[[str], Iterable[str]]

_NAT64 = ip_network("64:ff9b::/96")
_PUBLIC_IPV6 = ip_network("2000::/3")  # ipaddress takes fec0::/10 and others for global
# What ipaddress, or an older version of it, takes for global too: Oracle's and Azure's metadata,
# relays of 6to4, documentation.
_NEVER = tuple(map(ip_network, ("192.0.0.0/24", "168.63.129.16/32", "192.88.99.0/24", "3fff::/20")))


def addresses(host: str, flags: int = 0) -> list[str]:
    """Raises: OSError or UnicodeError, for a name that is not known."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags)
    return [str(sockaddr[0]) for *_, sockaddr in found]


def check_addresses(found: Iterable[Address], private: tuple[Network, ...]) -> None:
    """Raises: UrlRefused if any is not allowed, which it does not name: it may be one of ours."""
    if not all(_allowed(address, private) for address in found):
        raise UrlRefused("The URL's host is not on the public internet.")


def _allowed(address: Address, private: tuple[Network, ...]) -> bool:
    if any(address in network for network in private):
        return True
    if inner := _inner(address):
        return _allowed(inner, private)
    if address.version == 6 and address not in _PUBLIC_IPV6:
        return False
    if address.is_multicast or address.is_reserved or address.is_unspecified:
        return False
    return address.is_global and not any(address in network for network in _NEVER)


def _inner(address: Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address is a way to. Teredo's are not public anyway."""
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
