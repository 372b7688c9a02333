"""Models on Replicate: making one, with the list of hardware where one is refused, and waiting for a pushed version."""

from __future__ import annotations

import time
from collections.abc import Callable

from comfyui.errors import RequestError
from comfyui.local.replicate.api import Api, Model
from comfyui.local.replicate.failures import ServiceError
from comfyui.local.replicate.prices import price_text
from comfyui.suggest import nearest_input

VERSION_WAIT_S = 20.0
"""How long a version may take to be listed after its push."""
VERSION_POLL_S = 1.0


def make_model(api: Api, name: tuple[str, str], *, public: bool, hardware: str) -> tuple[Model, bool]:
    """The model of that owner and name, made if it was not there, and whether it was made now.

    Raises RequestError with the hardware there is where the one asked for is none of it, ServiceError.
    """
    there = api.model(*name)
    if there is not None:
        return there, False
    try:
        return api.create_model(*name, visibility="public" if public else "private", hardware=hardware), True
    except ServiceError as error:
        if error.status not in (400, 422):
            raise
        known = api.hardware()
        if hardware in [sku for sku, _ in known]:
            raise
        raise RequestError(_no_such_hardware(hardware, known, error.detail)) from error


def _no_such_hardware(hardware: str, known: list[tuple[str, str]], detail: str) -> str:
    near = nearest_input(hardware, [sku for sku, _ in known])
    width = max((len(sku) for sku, _ in known), default=0)
    lines = [f"  {sku:{width}}  {name}  {price_text(sku)}".rstrip() for sku, name in known]
    hint = f" Did you mean {near}?" if near else ""
    return (
        f"Replicate has no hardware {hardware!r} for your models ({detail}).{hint} Choose one with --hardware:\n"
        + "\n".join(lines)
    )


def wait_for_version(
    api: Api, name: tuple[str, str], before: str | None, sleep: Callable[[float], None] = time.sleep
) -> str:
    """The id of a model's newest version once it is another one than `before`, which was the newest before a push.

    After VERSION_WAIT_S it is the same one: a push of an unchanged image makes no new version. Raises ServiceError
    where there is none at all.
    """
    end = time.monotonic() + VERSION_WAIT_S
    while True:
        model = api.model(*name)
        latest = model.latest_version if model is not None else None
        if latest is not None and (latest != before or time.monotonic() > end):
            return latest
        if time.monotonic() > end:
            raise ServiceError(
                f"Replicate shows no version of {'/'.join(name)} {VERSION_WAIT_S:g} s after its push. Look at "
                f"https://replicate.com/{'/'.join(name)}/versions, and run the same command again.",
                service="Replicate",
            )
        sleep(VERSION_POLL_S)
