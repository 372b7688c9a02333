"""Let this process talk to loopback only: a test that would reach another host fails at once and by name."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any


class OutsideConnectionError(RuntimeError):
    """A test, or a process it started, tried to leave this machine."""


def _refuse_outside(family: int, address: Any) -> None:
    if family not in (socket.AF_INET, socket.AF_INET6):
        return
    host = address[0]
    if host == "localhost":
        return
    try:
        inside = ipaddress.ip_address(host).is_loopback
    except ValueError:
        inside = False
    if not inside:
        raise OutsideConnectionError(f"a test tried to reach {address!r}; tests may only reach loopback")


def install() -> None:
    """Wrap connect and connect_ex of every socket made from now on."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guarded_connect(self: socket.socket, address: Any) -> None:
        _refuse_outside(self.family, address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        _refuse_outside(self.family, address)
        return connect_ex(self, address)

    socket.socket.connect = guarded_connect  # type: ignore[method-assign,assignment]
    socket.socket.connect_ex = guarded_connect_ex  # type: ignore[method-assign,assignment]
