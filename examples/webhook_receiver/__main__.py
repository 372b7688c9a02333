"""The command line. Exit codes: 0 stopped by Ctrl-C or SIGTERM, 1 failed with a reason, 2 wrong usage."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from comfyui.errors import ComfyUIModelError
from comfyui.settings import Settings
from examples.webhook_receiver.receiver import PATH, Receiver
from examples.webhook_receiver.signature import read_secret
from examples.webhook_receiver.store import Store

SECRET_VARIABLE = "REPLICATE_WEBHOOK_SECRET"  # noqa: S105 - the name of the variable
STOP_S = 5.0
"""How long requests that are under way may take after Ctrl-C."""

log = logging.getLogger("webhook_receiver")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.webhook_receiver",
        description="Receive Replicate's webhooks until Ctrl-C: check who sent them, and keep predictions and their "
        f"files. The signing secret is read from {SECRET_VARIABLE}; README.md says how to get it.",
    )
    parser.add_argument("--folder", type=Path, default=Path("outputs/webhooks"), help="default outputs/webhooks")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on (default 8080; 0 takes a free one)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        key = read_secret(os.environ.get(SECRET_VARIABLE, ""))
    except ValueError as error:
        log.error("%s cannot be used: %s. README.md here says how to get the signing secret.", SECRET_VARIABLE, error)
        return 1
    try:
        asyncio.run(_serve(key, options.folder.absolute(), options.host, options.port))
    except (ComfyUIModelError, OSError) as error:
        log.error("%s", error)
        return 1
    return 0


async def _serve(key: bytes, folder: Path, host: str, port: int) -> None:
    """Listen until a signal comes. Raises OSError for an address that is taken and a folder that cannot be made."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    receiver = Receiver(key, Store(folder), allow_private_urls=Settings.from_environ().allow_private_urls)
    # A signature is of the bytes that were sent: nothing may be unpacked before it.
    runner = web.AppRunner(receiver.app(), access_log=None, auto_decompress=False, shutdown_timeout=STOP_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound_host, bound_port = runner.addresses[0][:2]
        log.info("listening at http://%s:%s%s; keeping what comes in %s", bound_host, bound_port, PATH, folder)
        await stop.wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    sys.exit(main())
