"""A file server on loopback that limits what each connection gets, and how many there may be at once.

nginx's limit_rate will not do: it counts for each request anew and lets a second's worth through at once, which is
more than a whole piece. Files go out by sendfile in small portions, each at its time.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

LIMITED_MIB_S = 60
CONNECTIONS = 8
_PORTION_BYTES = 256 * 1024


@contextmanager
def serve_limited(root: Path) -> Iterator[str]:
    """Serve the files in `root` from a process of its own; yields its URL."""
    command = [sys.executable, "-m", "benchmarks.limited_server", str(root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


def main(root: str) -> None:
    """Serve for ever; prints the port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(listener.getsockname()[1], flush=True)
    places = threading.BoundedSemaphore(CONNECTIONS)
    while True:
        connection = listener.accept()[0]
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_serve, args=(connection, Path(root), places), daemon=True).start()


def _serve(connection: socket.socket, root: Path, places: threading.BoundedSemaphore) -> None:
    free_at = time.monotonic()
    with connection, connection.makefile("rb") as stream, suppress(OSError):
        while (request := _read_head(stream)) is not None:
            path, span = request
            # A kept connection that is idle takes no place.
            with places, (root / path).open("rb") as file:
                free_at = _answer(connection, file, span, max(free_at, time.monotonic()))


def _read_head(stream: BinaryIO) -> tuple[str, str | None] | None:
    path = stream.readline().decode().split(" ")[1:2]
    span = None
    while (line := stream.readline()) not in (b"\r\n", b""):
        if line.lower().startswith(b"range:"):
            span = line.decode().partition(":")[2].strip()
    return (path[0].strip("/").partition("?")[0], span) if path else None


def _answer(connection: socket.socket, file: BinaryIO, span: str | None, free_at: float) -> float:
    size = os.fstat(file.fileno()).st_size
    start, end = 0, size - 1
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n"
    if span and (found := re.fullmatch(r"bytes=(\d+)-(\d*)", span)):
        start, end = int(found[1]), min(int(found[2] or end), end)
        head = f"HTTP/1.1 206 Partial Content\r\nContent-Length: {end - start + 1}\r\n"
        head += f"Content-Range: bytes {start}-{end}/{size}\r\n"
    connection.sendall(f'{head}ETag: "{size}"\r\n\r\n'.encode())
    while start <= end:
        count = os.sendfile(connection.fileno(), file.fileno(), start, min(_PORTION_BYTES, end + 1 - start))
        start += count
        free_at += count / (LIMITED_MIB_S * 1024**2)
        time.sleep(max(0.0, free_at - time.monotonic()))
    return free_at


if __name__ == "__main__":
    main(sys.argv[1])
