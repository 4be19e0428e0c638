"""Forbids the network beyond this machine, in the process that imports it.

In a folder of PYTHONPATH, Python imports it by its name when it starts, so that what tests start is held to it too.
"""

import ipaddress
import sys


class Forbidden(Exception):
    """A test tried to use a network. Not an OSError, so that nothing takes it for a network that fails."""


def is_here(host: object) -> bool:
    """Whether a host is this machine."""
    name = host.decode() if isinstance(host, bytes) else host
    if not isinstance(name, str) or name in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _hear(event: str, arguments: tuple) -> None:
    if event in ("socket.connect", "socket.sendto"):
        host = arguments[1][0] if isinstance(arguments[1], tuple) else None  # A path, for a socket of this machine.
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    if not is_here(host):
        raise Forbidden(f"tests use no network, but something asked for {host}")


sys.addaudithook(_hear)
