"""Connections to hosts on the public internet only, for addresses that strangers name.

Without this, a request could make the container fetch from its own network, for example from a cloud's metadata
service. The connection goes to the address that was checked, so a name that resolves to another address a moment later
(DNS rebinding) cannot bypass the check.
"""

import http.client
import ipaddress
import os
import socket
import urllib.request
from collections.abc import Callable
from http.client import HTTPResponse
from typing import Any

ALLOW = "PASTEL_ALLOW_PRIVATE_ADDRESSES"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NOT_PUBLIC = [
    ipaddress.ip_network(each)
    for each in ("192.0.0.0/24", "168.63.129.16/32", "fec0::/10", "64:ff9b:1::/48", "2001::/32")
]
"""Protocol and site networks that Python's table counts as global, always or in some versions, and the address at which
Azure's machines reach their host."""


class PrivateAddress(OSError):
    """The host has an address that is not on the public internet."""


def private_addresses_allowed() -> bool:
    """Return whether the operator allows requests to name hosts in private networks."""
    return os.environ.get(ALLOW) == "1"


def is_public_ip(text: str) -> bool:
    """Return whether an IP address is public. One that contains an IPv4 address is judged by that."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inside = address.ipv4_mapped or address.sixtofour
        if address in _NAT64 or 1 < int(address) < 1 << 32:  # the second is the old notation ::1.2.3.4
            inside = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inside is not None:
            return is_public_ip(str(inside))
    special = any(address in network for network in _NOT_PUBLIC if network.version == address.version)
    return address.is_global and not (address.is_multicast or address.is_reserved or special)


def is_public(host: str) -> bool:
    """Return whether all addresses of a host are public. True for a name that cannot be resolved here: the connection
    is checked again."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return True
    return bool(host) and all(is_public_ip(str(place[0])) for *_, place in found)


def connect(
    address: tuple[str, int], timeout: float | None = None, source_address: tuple[str, int] | None = None
) -> socket.socket:
    """Connect to a host on the public internet, at the address that was checked. Raises PrivateAddress."""
    host, port = address
    failure: OSError = OSError(f"{host} has no address")
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, place in found:
        if not is_public_ip(str(place[0])):
            raise PrivateAddress(f"{host} is not a host of the public internet, and only those are asked for files")
    for *_, place in found:
        try:
            return socket.create_connection((str(place[0]), port), timeout, source_address)
        except OSError as error:
            failure = error
    raise failure


class _PublicConnection(http.client.HTTPConnection):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._create_connection = connect


class _PublicSecureConnection(http.client.HTTPSConnection):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._create_connection = connect  # the certificate is still checked against the name


class PublicHTTP(urllib.request.HTTPHandler):
    """Connects to public hosts only, except for a proxy and for the operator's own server (`is_own`)."""

    def __init__(self, is_own: Callable[[str], bool]) -> None:
        super().__init__()
        self._is_own = is_own

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        free = req.has_proxy() or self._is_own(req.full_url)
        return self.do_open(http.client.HTTPConnection if free else _PublicConnection, req)


class PublicHTTPS(urllib.request.HTTPSHandler):
    """The same for HTTPS."""

    def __init__(self, is_own: Callable[[str], bool]) -> None:
        super().__init__()
        self._is_own = is_own

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        free = getattr(req, "_tunnel_host", None) or self._is_own(req.full_url)
        return self.do_open(http.client.HTTPSConnection if free else _PublicSecureConnection, req)
