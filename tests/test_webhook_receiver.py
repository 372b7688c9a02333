"""The example receiver of webhooks: real HTTP on loopback, with Replicate and its file storage played by this file.

Messages are signed here as the Standard Webhooks specification says; the official client's own check, and an example
that implementations of the specification share, say that this is right.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import gzip
import hashlib
import hmac
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from replicate.webhook import InvalidSignatureError, Webhooks, WebhookSigningSecret

from comfyui.errors import DownloadError
from comfyui.settings import PROJECT_ROOT
from examples.webhook_receiver import outputs
from examples.webhook_receiver.__main__ import SECRET_VARIABLE, main
from examples.webhook_receiver.events import read_prediction
from examples.webhook_receiver.outputs import Limits
from examples.webhook_receiver.receiver import Receiver
from examples.webhook_receiver.signature import TOLERANCE_S, SignatureError, claims_of, read_secret, verify
from examples.webhook_receiver.store import SEEN_S, Store, write_whole

SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(range(1, 25))).decode()
LIMITS = Limits(first_pause_s=0.0)
ID = "ufawqhfynnddngldkgtslldrkq"
WAIT_S = 30.0


def body_of(status: str = "succeeded", output: Any = None, **more: Any) -> bytes:
    return json.dumps({"id": ID, "status": status, "output": output, "input": {"seed": 5}, **more}).encode()


def signature_of(body: bytes, event_id: str, timestamp: str, secret: str = SECRET) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{event_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def signed(body: bytes, event_id: str = "msg_1", age_s: float = 0.0, secret: str = SECRET) -> dict[str, str]:
    """The headers that Replicate sends with `body`."""
    timestamp = str(int(time.time() - age_s))
    return {
        "Content-Type": "application/json",
        "webhook-id": event_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": signature_of(body, event_id, timestamp, secret),
    }


@dataclass
class Running:
    """A receiver at work."""

    receiver: Receiver
    folder: Path
    port: int
    session: aiohttp.ClientSession

    async def post(self, body: Any, headers: Mapping[str, str]) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.port}/replicate"
        async with self.session.post(url, data=body, headers=headers) as response:
            return response.status, (await response.text()).strip()

    async def tell(self, body: bytes, event_id: str = "msg_1") -> list[dict[str, Any]] | None:
        """Send an event that must be kept; its prediction's files.json, None where there is none."""
        assert await self.post(body, signed(body, event_id)) == (200, "kept")
        async with asyncio.timeout(WAIT_S):
            await self.receiver.all_fetched()
        path = self.folder / ID / "files.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else None

    def kept(self) -> list[str]:
        """Every file there is, marks of events aside."""
        found = [path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file()]
        return sorted(path.as_posix() for path in found if path.parts[0] != ".seen")

    def prediction(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.folder / ID / "prediction.json").read_text("utf-8"))
        return value


@asynccontextmanager
async def running(folder: Path, **options: Any) -> AsyncIterator[Running]:
    defaults: dict[str, Any] = {"allow_private_urls": True, "limits": LIMITS}
    receiver = Receiver(read_secret(SECRET), Store(folder), **(defaults | options))
    runner = web.AppRunner(receiver.app(), access_log=None, auto_decompress=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=WAIT_S)) as session:
            yield Running(receiver, folder, runner.addresses[0][1], session)
    finally:
        await runner.cleanup()


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "kept") as found:
        yield found


@dataclass
class Storage:
    """Stands in for Replicate's file storage: gives each path's answers one after the other, the last one for ever."""

    url: str = ""
    files: dict[str, list[web.StreamResponse]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, path: str, *answers: tuple[int, bytes] | tuple[int, bytes, dict[str, str]]) -> str:
        made = [web.Response(status=a[0], body=a[1], headers=a[2] if len(a) == 3 else {}) for a in answers]
        self.files[path] = list(made)
        return self.url + path

    async def give(self, request: web.Request) -> web.StreamResponse:
        path = request.path_qs
        self.asked.append(path)
        if path == "/held":
            await self.let_go.wait()
        if path == "/endless":
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(bytes(65536))
        if path == "/cut":
            response = web.StreamResponse(headers={"Content-Length": "100"})
            await response.prepare(request)
            await response.write(b"half")
            assert request.transport is not None
            request.transport.close()
            return response
        answers = self.files.get(path, [])
        if not answers:
            return web.Response(body=path.encode())
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        assert isinstance(answer, web.Response)
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)


@pytest.fixture
async def storage() -> AsyncIterator[Storage]:
    found = Storage()
    app = web.Application()
    app.router.add_get("/{path:[^?]*}", found.give)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


# --- Signatures ------------------------------------------------------------------------------------------------------


def test_the_shared_example_of_the_specification_is_right() -> None:
    headers = {
        "Webhook-Id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "Webhook-Timestamp": "1614265330",
        "Webhook-Signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    key = read_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    verify(claims_of(headers, 1614265330.0), b'{"test": 2432232314}', key)
    with pytest.raises(SignatureError, match="fits the body and the secret"):
        verify(claims_of(headers, 1614265330.0), b'{"test": 2432232315}', key)


def test_the_official_client_believes_what_is_signed_here() -> None:
    headers, secret = signed(body_of()), WebhookSigningSecret(key=SECRET)
    Webhooks.validate(headers=headers, body=body_of().decode(), secret=secret, tolerance=TOLERANCE_S)
    with pytest.raises(InvalidSignatureError):
        Webhooks.validate(headers=headers, body=body_of("failed").decode(), secret=secret)


@pytest.mark.parametrize("age_s", [-TOLERANCE_S, 0, TOLERANCE_S])
def test_a_message_may_be_as_old_as_is_allowed_and_no_second_older(age_s: int) -> None:
    headers = signed(b"{}")
    now_s = int(headers["webhook-timestamp"]) + age_s
    assert claims_of(headers, now_s).id == "msg_1"
    if age_s:
        with pytest.raises(SignatureError, match=r"old, and 300 s are allowed|ahead of this machine's clock"):
            claims_of(headers, now_s + (1 if age_s > 0 else -1))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("whsec_", "it is empty"),
        (SECRET[:-8], "18 bytes"),
        (SECRET + "*", "followed by base64"),
        ("geheimé", "followed by base64"),
    ],
)
def test_a_secret_that_is_none_is_refused_without_being_told(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        read_secret(text)
    assert len(text) <= len("whsec_") or text.removeprefix("whsec_") not in str(caught.value)
    assert read_secret(f" {SECRET}\n") == bytes(range(24))


BODY = body_of()


def wrong() -> dict[str, tuple[dict[str, str], str]]:
    """Headers that must not pass, and the reason given; made anew each time, since a signature grows old."""
    return {
        "no id": ({"webhook-id": ""}, "the header webhook-id is missing"),
        "no time": ({"webhook-timestamp": ""}, "the header webhook-timestamp is missing"),
        "no signature": ({"webhook-signature": ""}, "the header webhook-signature is missing"),
        "another event's id": ({"webhook-id": "msg_2"}, "no signature"),
        "id of a strange form": ({"webhook-id": "a b"}, "has characters that no id has"),
        "endless id": ({"webhook-id": "a" * 257}, "too long"),
        "another time": ({"webhook-timestamp": str(int(time.time()) + 100)}, "no signature"),
        "time in words": ({"webhook-timestamp": "now"}, "not a number of seconds"),
        "time as others write digits": ({"webhook-timestamp": "١٧٦٣"}, "not a number of seconds"),
        "time that is no number": ({"webhook-timestamp": "nan"}, "not a number of seconds"),
        "old": (signed(BODY, age_s=TOLERANCE_S + 60), "s old, and 300 s are allowed"),
        "of the future": (signed(BODY, age_s=-TOLERANCE_S - 3600), "ahead of this machine's clock"),
        "another secret": (signed(BODY, secret=OTHER), "no signature"),
        "another body": (signed(body_of("failed")), "no signature"),
        "another version": ({"webhook-signature": "v2," + signed(BODY)["webhook-signature"][3:]}, "no signature"),
        "no version": ({"webhook-signature": signed(BODY)["webhook-signature"][3:]}, "no signature"),
        "nothing behind the version": ({"webhook-signature": "v1, v1 ,"}, "no signature"),
        "no letters": ({"webhook-signature": "v1,é"}, "no signature"),
    }


@pytest.mark.parametrize("case", wrong())
async def test_a_message_that_is_not_proven_is_refused_and_leaves_nothing(here: Running, case: str) -> None:
    changes, reason = wrong()[case]
    status, text = await here.post(BODY, signed(BODY) | changes)
    assert status == 401
    assert reason in text
    assert here.kept() == []
    assert await here.post(BODY, signed(BODY)) == (200, "kept")


async def test_one_right_signature_among_several_is_enough(here: Running) -> None:
    headers = signed(BODY)
    wrong = signed(BODY, secret=OTHER)["webhook-signature"]
    headers["webhook-signature"] = f"v1a,x {wrong} {headers['webhook-signature']}"
    assert await here.post(BODY, headers) == (200, "kept")


# --- Once and in order -----------------------------------------------------------------------------------------------


async def test_a_replay_and_a_retry_are_answered_and_change_nothing_also_after_a_restart(tmp_path: Path) -> None:
    first = body_of("processing", logs="one")
    replayed = signed(first)
    async with running(tmp_path) as here:
        assert await here.post(first, replayed) == (200, "kept")
        await here.tell(body_of("processing", logs="one, two"), "msg_2")
        assert await here.post(first, replayed) == (200, "known")
        assert await here.post(first, signed(first, age_s=-2)) == (200, "known")
        assert here.prediction()["logs"] == "one, two"
    async with running(tmp_path) as here:
        assert await here.post(first, replayed) == (200, "known")
        assert here.prediction()["logs"] == "one, two"


async def test_of_many_retries_at_once_one_counts(here: Running) -> None:
    answers = await asyncio.gather(*(here.post(BODY, signed(BODY)) for _ in range(10)))
    assert sorted(answers) == [(200, "kept")] + [(200, "known")] * 9


async def test_an_event_that_was_overtaken_does_not_undo_the_end(here: Running) -> None:
    await here.tell(body_of("failed", error="out of memory"), "msg_2")
    await here.tell(body_of("processing"), "msg_1")
    assert here.prediction()["error"] == "out of memory"
    assert (here.folder / ID / "prediction.json").read_bytes() == body_of("failed", error="out of memory")


async def test_what_the_disk_refused_is_taken_when_it_is_sent_again(here: Running) -> None:
    (here.folder / ID).write_bytes(b"in the way")
    assert (await here.post(BODY, signed(BODY)))[0] == 503
    (here.folder / ID).unlink()
    assert await here.post(BODY, signed(BODY)) == (200, "kept")


async def test_files_that_the_disk_refused_are_fetched_at_the_next_start(tmp_path: Path, storage: Storage) -> None:
    url = f"{storage.url}/a"
    (tmp_path / ID).mkdir()
    (tmp_path / ID / "files").write_bytes(b"in the way")
    async with running(tmp_path) as here:
        assert await here.tell(body_of(output=url)) is None
        other = body_of(output=url).replace(ID.encode(), b"other")
        assert await here.post(other, signed(other, "msg_2")) == (200, "kept")
        await here.receiver.all_fetched()
        assert (tmp_path / "other" / "files" / "000-a").exists()
    (tmp_path / ID / "files").unlink()
    async with running(tmp_path) as here:
        await here.receiver.all_fetched()
        assert (tmp_path / ID / "files" / "000-a").exists()


def test_what_is_written_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_whole(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_marks_of_old_events_are_swept_and_others_kept(tmp_path: Path) -> None:
    prediction = json.dumps({"id": ID, "status": "processing"}).encode()
    store = Store(tmp_path)
    for event_id in ("old", "new"):
        assert store.record(event_id, read_prediction(prediction), prediction)
    old = tmp_path / ".seen" / hashlib.sha256(b"old").hexdigest()
    os.utime(old, (0, time.time() - SEEN_S - 60))
    again = Store(tmp_path)
    assert not old.exists()
    assert not again.record("new", read_prediction(prediction), prediction)


# --- Bodies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large_is_not_kept(tmp_path: Path, chunked: bool) -> None:
    async with running(tmp_path, max_body_bytes=100_000) as here:
        body = body_of(logs="x" * 200_000)

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(body), 10_000):
                yield body[start : start + 10_000]

        assert (await here.post(pieces() if chunked else body, signed(body)))[0] == 413
        assert here.kept() == []
        small = body_of(logs="x" * 90_000)
        assert await here.post(small, signed(small)) == (200, "kept")


async def test_a_body_that_says_it_is_too_large_is_not_waited_for(tmp_path: Path) -> None:
    async with running(tmp_path, max_body_bytes=1000) as here:
        answer, _ = await raw(here, b"", length=10**12)
        assert answer.startswith(b"HTTP/1.1 413 ")


async def test_a_body_that_stops_coming_is_given_up(tmp_path: Path) -> None:
    async with running(tmp_path, body_timeout_s=0.2) as here:
        answer, _ = await raw(here, BODY[:50], length=len(BODY))
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert here.kept() == []


async def test_a_body_that_is_cut_is_not_kept_and_the_whole_one_is(
    here: Running, caplog: pytest.LogCaptureFixture
) -> None:
    # What came is valid by itself, and signed: only its length says that it is not all.
    await raw(here, BODY, length=len(BODY) + 10, hang_up=True)
    assert await here.post(BODY, signed(BODY)) == (200, "kept")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_packed_body_is_not_unpacked(here: Running) -> None:
    packed = gzip.compress(BODY)
    headers = {"Content-Encoding": "gzip"}
    assert (await here.post(packed, signed(BODY) | headers))[0] == 401
    assert await here.post(packed, signed(packed) | headers) == (400, "the body is not JSON")


async def raw(here: Running, body: bytes, *, length: int, hang_up: bool = False) -> tuple[bytes, bytes]:
    """Send a request by hand; the first line of the answer and the rest."""
    reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
    headers = {"Host": "localhost", "Content-Length": str(length)} | signed(BODY)
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"POST /replicate HTTP/1.1\r\n{head}\r\n".encode() + body)
    await writer.drain()
    if hang_up:
        writer.write_eof()
    async with asyncio.timeout(WAIT_S):
        answer = await reader.readline(), b"" if hang_up else await reader.readline()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"7",
        b"[" * 100_000,
        b'{"id": "a"}',
        b'{"status": "succeeded"}',
        b'{"id": 7, "status": "succeeded"}',
        b'{"id": "../a", "status": "succeeded"}',
        b'{"id": ".seen", "status": "succeeded"}',
        b'{"id": "a\\n", "status": "succeeded"}',
        b'{"id": "A", "status": "succeeded"}',
        b'{"id": "", "status": "succeeded"}',
        json.dumps({"id": "a" * 65, "status": "succeeded"}).encode(),
        b'{"id": "a", "status": "succeeded\\n"}',
        b'{"id": "a", "status": null}',
    ],
)
async def test_a_signed_body_that_is_no_prediction_is_refused(here: Running, body: bytes) -> None:
    assert (await here.post(body, signed(body)))[0] == 400
    assert here.kept() == []


async def test_other_methods_and_paths_are_none_of_ours(here: Running) -> None:
    for method, path, status in (("GET", "/replicate", 405), ("POST", "/", 404)):
        async with here.session.request(method, f"http://127.0.0.1:{here.port}{path}") as response:
            assert response.status == status


# --- Files -----------------------------------------------------------------------------------------------------------


async def test_the_files_of_a_success_are_fetched_in_order(here: Running, storage: Storage) -> None:
    urls = [
        storage.put("/a/out.png?sig=secret", (200, b"one")),
        storage.put("/b/out.png", (302, b"", {"Location": "/c"})),
    ]
    storage.put("/c", (200, b"two"))
    files = await here.tell(body_of(output=[urls[0], {"url": urls[1]}, "a text"]))
    assert files == [
        {
            "url": f"{storage.url}/a/out.png",
            "file": "files/000-out.png",
            "size": 3,
            "sha256": hashlib.sha256(b"one").hexdigest(),
        },
        {
            "url": f"{storage.url}/b/out.png",
            "file": "files/001-out.png",
            "size": 3,
            "sha256": hashlib.sha256(b"two").hexdigest(),
        },
    ]
    assert (here.folder / ID / "files" / "001-out.png").read_bytes() == b"two"
    assert here.kept() == [
        f"{ID}/{name}" for name in ("files.json", "files/000-out.png", "files/001-out.png", "prediction.json")
    ]
    assert here.folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("status", ["starting", "processing", "failed", "canceled"])
async def test_other_ends_and_states_are_kept_too(here: Running, status: str) -> None:
    assert await here.tell(body_of(status, error="why")) is None
    assert here.prediction()["status"] == status
    assert here.kept() == [f"{ID}/prediction.json"]


async def test_what_is_no_file_is_not_fetched(here: Running, storage: Storage) -> None:
    training = {"version": "me/model:1", "weights": f"{storage.url}/trained_model.tar"}
    for number, output in enumerate([training, "text", ["data:text/plain,a", 7, None, {"url": 7}], {"url": None}, []]):
        assert await here.tell(body_of(output=output), f"msg_{number}") is None
    assert storage.asked == []


async def test_the_answer_does_not_wait_for_the_files_and_two_events_fetch_them_once(
    here: Running, storage: Storage
) -> None:
    for event_id in ("msg_1", "msg_2"):
        body = body_of(output=f"{storage.url}/held")
        assert await here.post(body, signed(body, event_id)) == (200, "kept")
    assert here.kept() == [f"{ID}/prediction.json"]
    storage.let_go.set()
    await here.tell(body_of(output=f"{storage.url}/held"), "msg_3")
    assert storage.asked == ["/held"]


async def test_files_that_were_not_fetched_before_the_end_are_fetched_at_the_next_start(
    tmp_path: Path, storage: Storage
) -> None:
    body = body_of(output=[f"{storage.url}/held", f"{storage.url}/b"])
    async with running(tmp_path) as here:
        assert await here.post(body, signed(body)) == (200, "kept")
    assert not (tmp_path / ID / "files.json").exists()
    storage.let_go.set()
    async with running(tmp_path) as here:
        async with asyncio.timeout(WAIT_S):
            await here.receiver.all_fetched()
        assert here.kept() == [
            f"{ID}/{name}" for name in ("files.json", "files/000-held", "files/001-b", "prediction.json")
        ]


async def test_a_server_in_trouble_is_asked_again_and_one_that_refuses_is_not(here: Running, storage: Storage) -> None:
    urls = [
        storage.put("/a", (503, b""), (429, b""), (200, b"at last")),
        storage.put("/b", (404, b"")),
        storage.put("/c", (500, b"")),
        f"{storage.url}/cut",
        f"{storage.url}/d",
    ]
    files = await here.tell(body_of(output=urls))
    assert files is not None
    assert [entry.get("size") for entry in files] == [7, None, None, None, 2]
    assert [entry["error"].removeprefix(storage.url) for entry in files if "error" in entry] == [
        "/b: the server answered 404.",
        "/c could not be fetched in 4 attempts: the server answered 500.",
        "/cut could not be fetched in 4 attempts: ClientPayloadError.",
    ]
    assert [storage.asked.count(path) for path in ("/a", "/b", "/c", "/cut")] == [3, 1, 4, 4]
    assert sorted(path.name for path in (here.folder / ID / "files").iterdir()) == ["000-a", "004-d"]


async def test_number_and_bytes_of_files_are_bounded(tmp_path: Path, storage: Storage) -> None:
    async with running(tmp_path, limits=replace(LIMITS, files=3, total_bytes=1000)) as here:
        urls = [f"{storage.url}{path}" for path in ("/endless", "/a", "/b", "/c")]
        storage.put("/a", (200, bytes(900)))
        storage.put("/b", (200, bytes(200)))
        files = await here.tell(body_of(output=urls))
    assert files is not None
    assert [entry.get("error", "").removeprefix(storage.url) for entry in files] == [
        "/endless is more than the 1000 bytes that are left for this prediction.",
        "",
        "/b is more than the 100 bytes that are left for this prediction.",
        "Only the first 3 files of a prediction are fetched.",
    ]
    assert [path.name for path in (tmp_path / ID / "files").iterdir()] == ["001-a"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/..%2f..%2f..%2fevil.sh", "000-evil.sh"),
        ("/a/..%5c..%5cevil.exe", "000-evil.exe"),
        ("/%2e%2e", "000-output"),
        ("/", "000-output"),
        ("/.bashrc", "000-bashrc"),
        ("/a%00b%0a.png", "000-ab.png"),
        ("/C%3a%5cCON.png", "000-CON.png"),
        ("/" + "%C3%A9" * 200 + ".png", "000-" + "é" * 123 + ".png"),
        ("/%FF%FE.png", "000-\ufffd\ufffd.png"),
    ],
)
async def test_no_name_leads_out_of_the_folder(here: Running, storage: Storage, path: str, name: str) -> None:
    files = await here.tell(body_of(output=[storage.url + path]))
    assert files is not None
    assert [entry["file"] for entry in files] == [f"files/{name}"]
    assert here.kept() == [f"{ID}/files.json", f"{ID}/files/{name}", f"{ID}/prediction.json"]
    assert [path.name for path in here.folder.parent.iterdir()] == ["kept"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "127.1"])
async def test_an_output_does_not_lead_into_the_network_around_us(tmp_path: Path, storage: Storage, host: str) -> None:
    port = storage.url.rpartition(":")[2]
    async with running(tmp_path, allow_private_urls=False) as here:
        files = await here.tell(body_of(output=[f"http://{host}:{port}/admin"]))
    assert files is not None
    assert "not a public internet address" in files[0]["error"] or "InvalidUrlClientError" in files[0]["error"]
    assert storage.asked == []


async def test_a_redirect_is_held_to_the_same_rules(
    tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.1 plays a public address here, and 127.0.0.2 a private one."""

    def only_one(address: str, *, shown: str) -> None:
        if address != "127.0.0.1":
            raise DownloadError(f"{shown} is refused: {address}", url=shown)

    monkeypatch.setattr(outputs, "check_address", only_one)
    inside = storage.url.replace("127.0.0.1", "127.0.0.2")
    urls = [
        storage.put("/a", (302, b"", {"Location": f"{inside}/admin"})),
        storage.put("/b", (302, b"", {"Location": "file:///etc/passwd"})),
        storage.put("/c", (302, b"", {"Location": "/c"})),
        storage.put("/d", (302, b"", {"Location": "/e"})),
    ]
    async with running(tmp_path, allow_private_urls=False) as here:
        files = await here.tell(body_of(output=urls))
    assert files is not None
    assert [entry.get("error", "").removeprefix(storage.url) for entry in files] == [
        "A URL of the output is refused: 127.0.0.2",
        "/b could not be fetched: NonHttpUrlRedirectClientError.",
        "/c could not be fetched: TooManyRedirects.",
        "",
    ]
    assert "/admin" not in storage.asked


@pytest.mark.parametrize("url", ["http://", "http://[::1", "http://a b/", "http://\ud800/", "https://user:pw@"])
async def test_a_url_that_is_none_is_an_entry_with_an_error(here: Running, url: str) -> None:
    files = await here.tell(body_of(output=[url]))
    assert files is not None
    assert list(files[0]) == ["url", "error"]
    assert "pw" not in json.dumps(files)


# --- The command line ------------------------------------------------------------------------------------------------


async def test_the_command_line_receives_until_it_is_told_to_stop_and_never_tells_the_secret(
    tmp_path: Path, storage: Storage
) -> None:
    environ = os.environ | {SECRET_VARIABLE: SECRET, "ALLOW_PRIVATE_URLS": "1"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "examples.webhook_receiver", "--port", "0", "--folder", str(tmp_path / "kept")),
        cwd=PROJECT_ROOT,
        env=environ,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(WAIT_S), aiohttp.ClientSession() as session:
            url = ""
            async for line in process.stderr:
                lines.append(line.decode())
                if "listening at " in lines[-1]:
                    url = lines[-1].split("listening at ")[1].split(";")[0]
                    packed = gzip.compress(BODY)
                    headers = signed(packed) | {"Content-Encoding": "gzip"}
                    async with session.post(url, data=packed, headers=headers) as response:
                        assert response.status == 400
                    body = body_of(output=f"{storage.url}/a.png?token=geheim")
                    async with session.post(url, data=body, headers=signed(body)) as response:
                        assert response.status == 200
                if "has 1 files" in lines[-1]:
                    process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert url.startswith("http://127.0.0.1:")
    assert (tmp_path / "kept" / ID / "files" / "000-a.png").read_bytes() == b"/a.png?token=geheim"
    said = "".join(lines)
    assert SECRET.removeprefix("whsec_") not in said
    assert "geheim" not in said


@pytest.mark.parametrize(
    ("secret", "reason"), [("", "it is empty"), ("r8_token", "followed by base64"), (SECRET[:-8], "18 bytes")]
)
def test_without_a_secret_nothing_is_received(
    secret: str, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, secret)
    assert main(["--folder", str(tmp_path / "kept")]) == 1
    assert reason in caplog.text
    assert not secret or secret not in caplog.text
    assert not (tmp_path / "kept").exists()


def test_an_address_that_is_taken_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["--port", port, "--folder", str(tmp_path / "kept")]) == 1
    assert "address already in use" in caplog.text
