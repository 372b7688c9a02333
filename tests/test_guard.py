"""The guard must really refuse, here and in children; otherwise every other test could lie."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from loopback_only import OutsideConnectionError

REACH_OUT = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"


def test_this_process_cannot_leave_loopback() -> None:
    with socket.socket() as outside, pytest.raises(OutsideConnectionError, match=r"192\.0\.2\.1"):
        outside.connect(("192.0.2.1", 80))


def test_a_child_process_cannot_leave_loopback() -> None:
    child = subprocess.run([sys.executable, "-c", REACH_OUT], capture_output=True, text=True, check=False)
    assert child.returncode != 0
    assert "OutsideConnectionError" in child.stderr
