"""From links to a tar, with a real server."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import tarfile
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from comfyui.errors import ComfyUIModelError, DownloadError, StoppedError, TrainingInputError, WeightsError
from comfyui.settings import Settings
from comfyui.weights import listener
from comfyui.weights.bake.bake import bake
from comfyui.weights.folders import TRAINING_INPUTS
from comfyui.weights.listener import PlainLines
from comfyui.weights.manifest import Manifest
from comfyui.weights.sources import NO_TOKENS, Tokens
from comfyui.weights.transfer.pump import TransferOptions
from comfyui.weights.transfer.retry import RetryPolicy
from tests.weights.civitai_standin import GOOD as SITE_TOKEN
from tests.weights.civitai_standin import CivitaiStandin, File, Version
from tests.weights.fault_server import Fault, FaultServer
from tests.weights.file_server import FileServer
from tests.weights.hugging_face_standin import GOOD as HUB_TOKEN
from tests.weights.hugging_face_standin import HuggingFaceStandin, Repo
from tests.weights.samples import Report, files_below, safetensors, sha256
from tests.weights.storage_standin import Answer, StorageStandin

A, B = safetensors(1, 50_000), safetensors(2, 2_500_000)
HASTY = TransferOptions(
    piece_bytes=256 * 1024,
    policy=RetryPolicy(first_wait_s=0.001, longest_wait_s=0.002, slow_piece_s=0.1, question_waits_s=(0.0, 0.0)),
    read_timeout_s=2.0,
)

NEVER_TWICE = replace(HASTY, policy=replace(HASTY.policy, slow_piece_s=60.0))
"""No piece counts as late, so that requests can be counted: a busy machine is silent for longer than 0.1 s."""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "weights.tar"


@pytest.fixture
def faulty() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def run(request: dict[str, str | None], out: Path, settings: Settings, **more: Any) -> tuple[Manifest, Report]:
    report = Report()
    manifest = bake(request, out, settings, NO_TOKENS, PlainLines(report), **{"options": HASTY, **more})
    return manifest, report


def members(out: Path) -> dict[str, bytes]:
    with tarfile.open(out) as tar:
        return {name: inside.read() for name in tar.getnames()[1:] if (inside := tar.extractfile(name)) is not None}


def nothing_left(out: Path) -> bool:
    return not out.parent.exists() or files_below(out.parent) == []


def test_links_become_a_tar(server: FileServer, settings: Settings, out: Path) -> None:
    a = server.put("/a.safetensors", A)
    b = server.put("/get", B, headers={"Content-Disposition": "attachment; filename=b.safetensors"}, chunked=True)
    manifest, report = run({"checkpoints": None, "vaes": b + "?q=1", "loras": f"\n {a} \n"}, out, settings)
    assert [(weight.path, weight.url, weight.size, weight.sha256) for weight in manifest.weights] == [
        ("loras/a.safetensors", a, len(A), sha256(A)),
        ("vae/b.safetensors", b, len(B), sha256(B)),
    ]
    with tarfile.open(out) as tar:
        assert tar.getnames()[1:] == ["loras/a.safetensors", "vae/b.safetensors"]
    assert files_below(out.parent) == ["weights.tar"]
    assert f"loras: {a} (another server)" in report
    assert "baking 2 files, size unknown" in report
    assert f"  loras/a.safetensors: 50.2 kB, sha256 {sha256(A)[:12]}…" in report
    assert '  vae/b.safetensors: VAELoader.vae_name = "b.safetensors"' in report


def test_two_bakes_give_the_same_bytes(server: FileServer, settings: Settings, tmp_path: Path) -> None:
    request: dict[str, str | None] = {"loras": server.put("/a.safetensors", A, chunked=True)}
    run(request, tmp_path / "1.tar", settings)
    server.put("/a.safetensors", A)
    run(request, tmp_path / "2.tar", settings)
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()


@pytest.mark.parametrize("request_", [{}, {"loras": None}, {"loras": " \n", "checkpoints": ""}])
def test_nothing_given(settings: Settings, out: Path, request_: dict[str, str | None]) -> None:
    with pytest.raises(TrainingInputError, match="No weights were given") as caught:
        run(request_, out, settings)
    assert all(name in str(caught.value) for name in TRAINING_INPUTS)
    assert nothing_left(out)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("hf_lora", "loras"),
        ("hf_loras", "loras"),
        ("hf_checkpoints", "checkpoints"),
        ("hf_checkpoint", "checkpoints"),
        ("lora", "loras"),
        ("checkpoint", "checkpoints"),
        ("checkpoint_url", "checkpoints"),
        ("vae", "vaes"),
        ("embeddings", "embedding_models"),
        ("controlnet", "controlnets"),
        ("LoRAs", "loras"),
    ],
)
def test_a_wrong_name_gets_the_right_one(settings: Settings, out: Path, wrong: str, right: str) -> None:
    with pytest.raises(TrainingInputError, match=rf"no input '{wrong}'; did you mean '{right}'\?") as caught:
        run({wrong: "https://example.com/a.safetensors"}, out, settings)
    assert caught.value.input_name == wrong
    assert all(name in str(caught.value) for name in TRAINING_INPUTS)


def test_two_links_for_one_file(server: FileServer, other_server: FileServer, settings: Settings, out: Path) -> None:
    one, two = server.put("/x/a.safetensors", A), other_server.put("/y/A.safetensors", B)
    with pytest.raises(TrainingInputError, match=r"both become loras/A\.safetensors") as caught:
        run({"loras": f"{one}\n{two}"}, out, settings)
    assert one in str(caught.value)
    assert two in str(caught.value)
    assert caught.value.input_name == "loras"
    assert nothing_left(out)
    run({"loras": one, "vaes": two}, out, settings)


def test_what_is_certain_is_refused_before_anything_is_asked(
    server: FileServer, make_settings: Callable[..., Settings], out: Path
) -> None:
    settings = make_settings(hf_endpoint=server.url)
    first = f"{server.url}/me/r1/resolve/main/a.safetensors"
    with pytest.raises(TrainingInputError, match="given twice in loras"):
        run({"loras": f"{first}\n{first}"}, out, settings)
    with pytest.raises(TrainingInputError, match="only http and https are accepted"):
        run({"loras": f"{first}\nftp://x/y"}, out, settings)
    assert server.seen == []


def test_what_is_known_from_the_servers_is_refused_before_anything_is_fetched(
    faulty: FaultServer, settings: Settings, out: Path
) -> None:
    first, second = faulty.put("/x/a.safetensors", A), faulty.put("/y/a.safetensors", B)
    with pytest.raises(TrainingInputError, match="both become"):
        run({"loras": f"{first}\n{second}"}, out, settings)
    with pytest.raises(WeightsError, match="can run any code"):
        run({"loras": faulty.put("/a.ckpt", A)}, out, settings)
    assert {request.range for request in faulty.seen} == {(0, 0)}
    run({"loras": f"{first}\n{second}#name=b.safetensors"}, out, settings)
    assert members(out) == {"loras/a.safetensors": A, "loras/b.safetensors": B}


@pytest.mark.parametrize(
    ("reply", "error", "word"),
    [
        ({"status": 404}, DownloadError, "404"),
        ({"body": b"<html><body>sorry</body></html>"}, WeightsError, "a web page"),
        ({"body": b'{"error": "no"}'}, WeightsError, "a JSON text"),
        ({"body": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"}, WeightsError, "LFS pointer"),
        ({"body": b""}, WeightsError, "an empty file"),
        ({"body": A, "cut_after": 40_000}, DownloadError, "ended early after 40000 of 50.* bytes, each time"),
        ({"body": A[:-1]}, WeightsError, "is cut"),
        ({"body": A + b"x"}, WeightsError, "after its last tensor"),
        ({"body": A + b"x" * 50, "declared": len(A) - 1}, WeightsError, "is cut"),
        ({"body": A, "chunked": True, "cut_after": 40_000}, DownloadError, r"the connection broke \(.*\), each time"),
    ],
)
def test_a_bad_file_leaves_no_tar(
    server: FileServer, settings: Settings, out: Path, reply: dict[str, object], error: type[Exception], word: str
) -> None:
    good, bad = server.put("/good.safetensors", B), server.put("/bad.safetensors", **reply)  # type: ignore[arg-type]
    with pytest.raises(error, match=word) as caught:
        run({"loras": f"{good}\n{bad}"}, out, settings)
    assert "bad.safetensors" in str(caught.value)
    assert nothing_left(out)


def test_pickles_only_when_asked_for(server: FileServer, settings: Settings, out: Path) -> None:
    url = server.put("/a.pt", b"PK\x03\x04" + bytes(500))
    with pytest.raises(WeightsError, match="can run any code"):
        run({"embedding_models": url}, out, settings)
    assert run({"embedding_models": url}, out, settings, allow_pickle=True)[0].weights[0].path == "embeddings/a.pt"


def test_a_link_without_a_name(server: FileServer, settings: Settings, out: Path) -> None:
    with pytest.raises(DownloadError, match="has no file name"):
        run({"loras": server.put("/", A)}, out, settings)


@pytest.mark.parametrize("at", range(10))
def test_ctrl_c_leaves_nothing(
    faulty: FaultServer, settings: Settings, out: Path, at: int, ctrl_c: Callable[[], None]
) -> None:
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if len(lines) == at + 1:
            ctrl_c()

    urls = faulty.put("/a.safetensors", A) + "\n" + faulty.put("/b.safetensors", B)
    try:
        bake({"loras": urls}, out, settings, NO_TOKENS, PlainLines(report), options=HASTY)
    except KeyboardInterrupt:
        assert nothing_left(out) or (at > 4 and files_below(out.parent) == ["weights.tar"])
    else:
        assert at == 9
        assert files_below(out.parent) == ["weights.tar"]


def test_a_stop_leaves_nothing(faulty: FaultServer, settings: Settings, out: Path) -> None:
    faulty.rate = 1_000_000
    for length in (True, False):
        url = faulty.put("/b.safetensors", B, ranges=length, length=length)
        stop = threading.Event()
        threading.Timer(0.2, stop.set).start()
        with pytest.raises(StoppedError):
            run({"loras": url}, out, settings, stop=stop)
        assert nothing_left(out)


def test_a_long_bake_reports_on_its_way(
    server: FileServer, settings: Settings, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "LINE_EVERY_S", 0.0)
    report = run({"loras": server.put("/b.safetensors", B)}, out, settings)[1]
    assert any(re.fullmatch(r"baking: 2\.5 MB \(100 %\), [\d.]+ [kMG]?B/s", line) for line in report), report


def test_ranges_over_several_connections(faulty: FaultServer, settings: Settings, out: Path) -> None:
    faulty.rate = 10_000_000
    manifest, _ = run({"loras": faulty.put("/b.safetensors", B)}, out, settings, options=NEVER_TWICE)
    assert members(out) == {"loras/b.safetensors": B}
    asked = sorted(request.range or (0, 0) for request in faulty.data_requests("/b.safetensors"))
    assert asked[0][0] == 0
    assert asked[-1][1] == len(B) - 1
    assert all(end + 1 == start for (_, end), (start, _) in itertools.pairwise(asked))
    assert len(asked) > 8
    assert 1 < faulty.most_answering <= HASTY.connections
    assert manifest.weights[0].sha256 == sha256(B)


def test_a_file_that_is_replaced_by_a_longer_one(faulty: FaultServer, settings: Settings, out: Path) -> None:
    """The layout was made for another length: all is laid out anew, the other file included."""
    other = safetensors(5, 900_000)
    url = faulty.put("/b.safetensors", B, other, data_faults={3: Fault.CHANGE})
    run({"loras": f"{faulty.put('/a.safetensors', A)}\n{url}"}, out, settings)
    assert members(out) == {"loras/a.safetensors": A, "loras/b.safetensors": other}
    assert files_below(out.parent) == ["weights.tar"]


def test_a_file_that_is_never_the_same(faulty: FaultServer, settings: Settings, out: Path) -> None:
    versions = [safetensors(number, 900_000 + 2 * number) for number in range(30)]
    url = faulty.put("/b.safetensors", *versions, data_faults=dict.fromkeys(range(1, 99), Fault.CHANGE))
    with pytest.raises(DownloadError, match=f"loras/b.safetensors keeps changing at {url} while it is fetched"):
        run({"loras": url}, out, settings)
    assert nothing_left(out)


def test_damage_on_the_way_is_fetched_again_once(faulty: FaultServer, settings: Settings, out: Path) -> None:
    digests = "".join(
        f"{faulty.put(path, body, data_faults=faults)}#sha256={sha256(body)}\n"
        for path, body, faults in (
            ("/a.safetensors", A, {0: Fault.CUT, 1: Fault.WHOLE, 2: Fault.CUT, 3: Fault.FLIP}),
            ("/b.safetensors", B, {4: Fault.FLIP}),
        )
    )
    report = run({"loras": digests}, out, settings, options=NEVER_TWICE)[1]
    assert members(out) == {"loras/a.safetensors": A, "loras/b.safetensors": B}
    assert sum("begins again: loras/" in line and "is damaged" in line for line in report) == 2
    faulty.objects["/b.safetensors"].data_faults = dict.fromkeys(range(99), Fault.FLIP)
    out.unlink()
    faulty.seen.clear()
    with pytest.raises(WeightsError, match=r"loras/b\.safetensors is damaged: its SHA-256 is"):
        run({"loras": digests}, out, settings, options=NEVER_TWICE)
    # A file that is wrong twice is wrong for good.
    assert len(faulty.data_requests("/b.safetensors")) == 2 * -(-len(B) // HASTY.piece_bytes)
    assert nothing_left(out)


def test_a_refusal_half_way_is_final(faulty: FaultServer, settings: Settings, out: Path) -> None:
    """It is said at once, also when the refused file is the only one."""
    url = faulty.put("/b.safetensors", B, data_faults=dict.fromkeys(range(3, 99), Fault.NOT_FOUND))
    with pytest.raises(DownloadError, match=f"{url} was not given: the server answered 404"):
        run({"loras": url}, out, settings)
    assert not any("begins again" in line for line in Report())
    assert len(faulty.data_requests("/b.safetensors")) < 3 + 2 * HASTY.connections


def test_a_disk_that_is_full(
    faulty: FaultServer, settings: Settings, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known before the first byte where it can be, and named where it is not."""
    url = faulty.put("/b.safetensors", B)
    usage = shutil.disk_usage(out.parents[1])
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1_000_000))
    with pytest.raises(
        ComfyUIModelError, match=r"no room on the disk for weights\.tar: \d+ are needed|bytes are needed"
    ):
        run({"loras": url}, out, settings)
    assert faulty.data_requests("/b.safetensors") == []
    assert nothing_left(out)
    monkeypatch.undo()
    pwrite = os.pwrite

    def full(fd: int, data: memoryview, offset: int) -> int:
        if offset > 1_000_000:
            raise OSError(errno.ENOSPC, "no space left on device")
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ComfyUIModelError, match="no room on the disk"):
        run({"loras": url}, out, settings)
    monkeypatch.undo()
    assert nothing_left(out)


@pytest.mark.parametrize("at", ["say", "begin", "advance", "proven", "end"])
def test_a_listener_that_fails(faulty: FaultServer, settings: Settings, out: Path, at: str) -> None:
    told = PlainLines(Report())

    def fail(*_: object) -> None:
        raise BrokenPipeError("the terminal is gone")

    setattr(told, at, fail)
    with pytest.raises(BrokenPipeError, match="the terminal is gone"):
        bake({"loras": faulty.put("/b.safetensors", B)}, out, settings, NO_TOKENS, told, options=HASTY)
    assert nothing_left(out) or at == "end"


def test_progress_adds_up_to_the_files(faulty: FaultServer, settings: Settings, out: Path) -> None:
    class Counting(PlainLines):
        done: ClassVar[dict[str, int]] = {}

        def advance(self, path: str, count: int) -> None:
            with self._lock:
                self.done[path] = self.done.get(path, 0) + count

    links = [
        faulty.put("/a.safetensors", A, data_faults={0: Fault.CUT}),
        faulty.put(
            "/b.safetensors", B, data_faults={1: Fault.RESET, 4: Fault.OTHER_TOTAL, 6: Fault.STALL, 9: Fault.CUT}
        ),
        faulty.put("/c.safetensors", B, data_faults={3: Fault.WHOLE, 4: Fault.CUT}),
        faulty.put("/d.safetensors", B, ranges=False, length=False, data_faults={0: Fault.CUT}),
    ]
    counting = Counting(Report())
    bake({"loras": "\n".join(links)}, out, settings, NO_TOKENS, counting, options=HASTY)
    assert counting.done == {path: len(body) for path, body in members(out).items()}


@pytest.mark.parametrize("trouble", [None, Answer(403), Answer(500), Answer(404), "nobody there"])
def test_tokens_are_nowhere_but_at_home(
    make_settings: Callable[..., Settings], out: Path, trouble: Answer | str | None
) -> None:
    """In no line, error, traceback, manifest, tar or journal, and with no request to anybody else."""
    with (
        StorageStandin() as cdn,
        StorageStandin() as storage,
        HuggingFaceStandin(cdn) as hub,
        CivitaiStandin(storage) as site,
        FaultServer() as other,
    ):
        hub.repos["me/private"] = Repo({"a.safetensors": B}, private=True)
        site.versions = {30: Version(3, [File(11, "c.safetensors", B, primary=True)], login=True)}
        settings = make_settings(hf_endpoint=hub.url, civitai_endpoint=site.url)
        tokens = Tokens(huggingface=HUB_TOKEN, civitai=SITE_TOKEN)
        links = (
            "hf://me/private/a.safetensors",
            f"{site.url}/api/download/models/30?token={SITE_TOKEN}",
            other.put("/d.safetensors", A).replace("://", "://me:SECRET_password@") + "?key=SECRET_key",
        )
        asked: list[str] = []

        def mangle(answer: Answer) -> Answer:
            # Not the questions what a file is: something must be under way.
            asked.append("")
            return trouble if isinstance(trouble, Answer) and len(asked) > 4 else answer

        cdn.mangle = storage.mangle = mangle
        if isinstance(trouble, str):
            other.objects["/d.safetensors"].data_faults = dict.fromkeys(range(99), Fault.RESET)
        report, failure, text = Report(), None, ""
        try:
            manifest = bake(
                {"loras": "\n".join(links)}, out, settings, tokens, PlainLines(report), options=HASTY, resume=True
            )
        except ComfyUIModelError as error:
            failure = error
            text = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
        else:
            text = manifest.dump().decode()
            assert set(members(out).values()) == {A, B}
        assert (failure is None) == (trouble is None)
        left = b"".join((out.parent / name).read_bytes() for name in files_below(out.parent))
        assert len(left) > len(A)
        for said in (report.text, text, left.decode("latin-1")):
            assert "SECRET" not in said
        assert hub.tokens_seen == {f"Bearer {HUB_TOKEN}"}
        assert site.tokens_seen <= {f"Bearer {SITE_TOKEN}", None}
        assert cdn.tokens_seen | storage.tokens_seen == {None}
        assert {request.headers["authorization"][:6] for request in other.seen} == {"Basic "}
