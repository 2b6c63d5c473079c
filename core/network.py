"""The networks that this machine is in."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys

if sys.platform == "linux":
    import fcntl

_SIOCGIFADDR = 0x8915
"""Linux: the address of an interface."""


def interface_towards(host: str) -> str | None:
    """Return the name of the network interface that leads to a host; nothing is sent.

    Returns:
        None where that cannot be told, or the host is this machine by a name that only this machine knows it by.
    """
    if sys.platform != "linux":
        return None
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        own_address = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has no address
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == own_address:
                    return None if own_address.startswith("127.") else name
    return None
