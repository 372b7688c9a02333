"""Linked weights awaited by a coroutine: its cancel, its lines, and all that fails at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from comfyui.errors import DownloadError, StorageError, WeightsError
from comfyui.settings import Settings
from comfyui.weights.linked.linked import Link, LinkedWeights
from comfyui.weights.linked.threads import LinksFailedError, LinkThreads
from comfyui.weights.sources import NO_TOKENS
from tests.weights.samples import files_below, safetensors
from tests.weights.tars import IMPATIENT, RangeServer

FILE = safetensors(1, 100_000)


@pytest.fixture
def storage() -> Iterator[RangeServer]:
    with RangeServer() as running:
        yield running


@pytest.fixture
def weights(settings: Settings) -> LinkedWeights:
    return LinkedWeights(settings, options=IMPATIENT)


async def test_lines_are_said_in_the_coroutine(weights: LinkedWeights, storage: RangeServer) -> None:
    said: list[tuple[str, int]] = []
    threads = LinkThreads(weights, lambda line: said.append((line, threading.get_ident())))
    link = Link(storage.put("/a.safetensors", FILE), "loras")
    with weights.lease() as lease:
        brought = await threads.bring(await threads.ask([link], NO_TOKENS), lease)
    assert brought[link].fetched
    assert said == [(f"fetching {storage.url}/a.safetensors: 1 file, 100.2 kB", threading.get_ident())]


async def test_every_link_that_fails_is_told_of(weights: LinkedWeights, storage: RangeServer) -> None:
    good = Link(storage.put("/a.safetensors", FILE), "loras")
    closed = Link(storage.put("/b.safetensors", FILE, status=403), "loras")
    pickle = Link(storage.put("/c.ckpt", FILE), "loras")
    with pytest.raises(LinksFailedError) as caught:
        await LinkThreads(weights, print).ask([good, closed, pickle], NO_TOKENS)
    assert {link: type(error) for link, error in caught.value.failures.items()} == {
        closed: DownloadError,
        pickle: WeightsError,
    }


async def test_too_much_together_is_refused_before_anything_is_fetched(
    make_settings: Callable[..., Settings], storage: RangeServer
) -> None:
    links = [Link(storage.put(f"/{number}.safetensors", safetensors(number, 60_000)), "loras") for number in range(3)]
    threads = LinkThreads(LinkedWeights(make_settings(linked_weights_bytes=150_000)), print)
    with pytest.raises(StorageError, match=r"The 3 files .* are 180\.\d kB together, more than the 150\.0 kB"):
        await threads.ask(links, NO_TOKENS)
    assert len(await threads.ask(links[:2], NO_TOKENS)) == 2


async def test_a_failed_fetch_stops_the_others_and_alone_is_to_blame(
    weights: LinkedWeights, storage: RangeServer, settings: Settings
) -> None:
    slow = Link(storage.put("/slow.safetensors", safetensors(2, 4_000_000), chunk_delay_s=0.2), "loras")
    cut = Link(storage.put("/cut.safetensors", FILE[:-1]), "loras")
    threads = LinkThreads(weights, print)
    asked = await threads.ask([slow, cut], NO_TOKENS)
    start = time.monotonic()
    with weights.lease() as lease, pytest.raises(LinksFailedError) as caught:
        await threads.bring(asked, lease)
    assert list(caught.value.failures) == [cut]
    assert time.monotonic() - start < 10
    assert files_below(settings.data_dir) == ["linked-weights/index.json"]


async def test_a_cancel_ends_the_transfer_soon_and_leaves_nothing(
    weights: LinkedWeights, storage: RangeServer, settings: Settings
) -> None:
    link = Link(storage.put("/a.safetensors", safetensors(2, 4_000_000), chunk_delay_s=0.2), "loras")
    begun = asyncio.Event()
    threads = LinkThreads(weights, lambda _line: begun.set())

    async def bring() -> None:
        with weights.lease() as lease:
            await threads.bring(await threads.ask([link], NO_TOKENS), lease)

    task = asyncio.ensure_future(bring())
    await asyncio.wait_for(begun.wait(), 20)
    start = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - start < 3
    assert files_below(settings.data_dir) == ["linked-weights/index.json"]
    assert files_below(settings.models_dir) == []


async def test_a_cancel_does_not_wait_for_a_silent_server(weights: LinkedWeights) -> None:
    asked, released = asyncio.Event(), asyncio.Event()

    async def say_nothing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await released.wait()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        link = Link(f"http://127.0.0.1:{port}/a.safetensors", "loras")
        task = asyncio.ensure_future(LinkThreads(weights, print).ask([link], NO_TOKENS))
        await asyncio.wait_for(asked.wait(), 20)
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - start < 2
        released.set()
