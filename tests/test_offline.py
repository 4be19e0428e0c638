"""No test can use a network by accident: not here, and not in what tests start."""

import socket
import subprocess
import sys
from urllib.request import urlopen

import pytest


def by_ipv6():
    with socket.socket(socket.AF_INET6) as ipv6:
        ipv6.connect(("2001:db8::1", 80))


def by_datagram():
    with socket.socket(type=socket.SOCK_DGRAM) as datagram:
        datagram.sendto(b"", ("192.0.2.1", 53))


ATTEMPTS = {
    "by name": lambda: urlopen("https://example.com", timeout=5),
    "by address": lambda: socket.create_connection(("192.0.2.1", 80), 5),
    "by IPv6": by_ipv6,
    "by datagram": by_datagram,
}


@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS)
def test_the_network_is_forbidden(attempt):
    with pytest.raises(Exception, match="tests use no network"):  # Its class may have been imported twice.
        attempt()


def test_the_network_is_forbidden_in_what_tests_start():
    program = "import urllib.request; urllib.request.urlopen('https://example.com', timeout=5)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "Forbidden: tests use no network, but something asked for example.com" in done.stderr


def test_this_machine_is_allowed():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()[:2], 5):
        assert socket.getaddrinfo("localhost", 80)
