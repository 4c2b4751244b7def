"""Those who have no credentials."""

import socket
import ssl

import distributed
import pytest

from tests.cluster import lab

GUARD = 60


def refused(session, count):
    """A scheduler and its workers let none of them in."""
    client = session.executor._client
    addresses = [client.cluster.scheduler_address, *client.scheduler_info()["workers"]]
    assert len(addresses) == count
    for address in addresses:
        assert address.startswith(f"tls://{lab.NET}.")
        host, port = address.removeprefix("tls://").split(":")
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection((host, int(port)), GUARD) as plain,
            # With TLS 1.3 the refusal comes with the first answer.
            pytest.raises(OSError, match=r"certificate required|handshake failure|reset"),
            context.wrap_socket(plain) as nobody,
        ):
            nobody.recv(1)
    other = distributed.Security.temporary()
    with pytest.raises(OSError, match=r"SSL|certificate|timed out"):
        distributed.Client(addresses[0], security=other, timeout=5)
    with pytest.raises((OSError, ValueError, TypeError)):
        distributed.Client(addresses[0].replace("tls:", "tcp:"), timeout=5)
