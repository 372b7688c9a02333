"""Bakes from a server that misbehaves at random: each ends in the exact bytes, or in an error that names the file.

What can be proven. A file of a known SHA-256 is exactly that file, whatever the server does. Without one, a plain
server's word is all there is, so such a file is exactly what the server holds as one version of it: lies about ranges
and lengths, cuts, other bodies and a replacement half-way are all seen. Bytes flipped on the way, or taken from
elsewhere in the file under the right headers, are not seen in any way of ours, nor is a replacement by bytes of the
same length on a server that gives neither ETag nor Last-Modified; these faults are dealt out only where a SHA-256 is
given.
"""

from __future__ import annotations

import random
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from comfyui.errors import ComfyUIModelError
from comfyui.settings import Settings
from comfyui.weights.bake.bake import bake
from comfyui.weights.listener import PlainLines
from comfyui.weights.manifest import Manifest
from comfyui.weights.sources import NO_TOKENS
from comfyui.weights.transfer import pump
from comfyui.weights.transfer.pump import TransferOptions
from comfyui.weights.transfer.retry import RetryPolicy
from tests.weights.fault_server import Fault, FaultServer, Served
from tests.weights.samples import Report, files_below, safetensors, sha256

SEEDS, CASES = 40, 51
# Faults that any file must outlive, a few of them; streams of unknown length, which begin anew each time, less.
PASSING = (
    Fault.CUT,
    Fault.RESET,
    Fault.STALL,
    Fault.DRIP,
    Fault.FEWER,
    Fault.MORE,
    Fault.OTHER_START,
    Fault.OTHER_TOTAL,
    Fault.NO_CONTENT_RANGE,
    Fault.WHOLE,
    Fault.CHUNKED,
    Fault.GZIP,
    Fault.BUSY,
    Fault.BUSY_429,
    Fault.BUSY_DATE,
    Fault.BROKEN,
    Fault.REDIRECT,
    Fault.NONSENSE,
)
LYING = (Fault.FLIP, Fault.WRONG_BYTES)
POLICY = RetryPolicy(
    first_wait_s=0.001, longest_wait_s=0.005, longest_wish_s=0.005, slow_piece_s=0.06, question_waits_s=(0.0, 0.0)
)
SECRET = "tops3cret"


@dataclass(frozen=True)
class Planned:
    """One file of a case: what is served, whether its SHA-256 is given, and whether it must arrive."""

    path: str
    served: Served
    known: bool
    must_arrive: bool

    def is_right(self, data: bytes) -> bool:
        wanted = self.served.versions[:1] if self.known else self.served.versions
        return data in wanted


def plan(choose: random.Random, name: str) -> Planned:
    """A file and its troubles, drawn at random."""
    size = choose.choice((4, 300, 4_000, 20_000, 70_000, 120_000, 250_000))
    # The same structure with other bytes, or another length.
    other = size if choose.random() < 0.5 else size + choose.choice((-2, 2, 512, 9000))
    known = choose.random() < 0.5
    served = Served(
        [safetensors(choose.randrange(10**6), size), safetensors(choose.randrange(10**6), max(4, other))],
        tag=choose.choice(("strong", "strong", "strong", "date", "weak", "none")),
        ranges=choose.random() < 0.85,
        if_range=choose.random() < 0.8,
        length=choose.random() < 0.93,
        away=choose.random() < 0.15,
    )
    faults = [choose.choice(PASSING) for _ in range(choose.choice((0, 1, 1, 2, 2, 3)))]
    must_arrive = served.length
    if choose.random() < 0.3:
        pool = [fault for fault in Fault if fault not in PASSING]
        if not known:
            pool = [fault for fault in pool if fault not in LYING]
            if served.tag == "none" and other == size:
                pool.remove(Fault.CHANGE)
        faults += [choose.choice(pool) for _ in range(choose.choice((1, 1, 2, 9)))]
        must_arrive = False
    data_faults = dict(zip(choose.sample(range(max(7, len(faults))), len(faults)), faults, strict=True))
    question_faults: dict[int, Fault] = {}
    if choose.random() < 0.08:
        question_faults[choose.randrange(2)] = choose.choice([fault for fault in Fault if fault not in LYING])
        must_arrive = False
    served.data_faults, served.question_faults = data_faults, question_faults
    if served.versions[0] == served.versions[1]:
        must_arrive = False
    return Planned(f"/{name}", served, known, must_arrive)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[FaultServer, FaultServer]]:
    with FaultServer() as home, FaultServer() as away:
        home.other = away
        away.objects = home.objects
        yield home, away


@pytest.fixture(scope="module")
def outcomes() -> Counter[str]:
    return Counter()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_exact_bytes_or_a_named_error(
    servers: tuple[FaultServer, FaultServer],
    outcomes: Counter[str],
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    monkeypatch.setattr(pump, "LEAVE_WORKERS_S", 0.05)
    monkeypatch.setattr(pump, "WATCH_S", 0.02)
    for number in range(CASES):
        case = f"{seed}-{number}"
        # A busy machine may be silent for a while: what must arrive gets a second, patient chance.
        if not run_case(servers, outcomes, settings, tmp_path, case, 0.3):
            assert run_case(servers, outcomes, settings, tmp_path, case, 10.0), f"{case}: what must arrive did not"
    end = time.monotonic() + 10
    while any(thread.name.startswith("transfer-") for thread in threading.enumerate()):
        assert time.monotonic() < end, "a worker never came home"
        time.sleep(0.01)


def test_every_fault_was_dealt(servers: tuple[FaultServer, FaultServer], outcomes: Counter[str]) -> None:
    dealt = servers[0].dealt + servers[1].dealt
    print(f"fault matrix: {dict(outcomes)}; dealt { ({fault.name: count for fault, count in dealt.items()}) }")
    if outcomes.total() < SEEDS * CASES:
        pytest.skip("not all of the matrix was run")
    assert SEEDS * CASES >= 2000
    assert set(dealt) == set(Fault)
    assert outcomes["right"] > outcomes.total() / 2


def run_case(
    servers: tuple[FaultServer, FaultServer],
    outcomes: Counter[str],
    settings: Settings,
    folder: Path,
    case: str,
    read_timeout_s: float,
) -> bool:
    """False if it failed and must not have."""
    home, away = servers
    choose = random.Random(case)
    files = [plan(choose, f"f{index}-{case}.safetensors") for index in range(choose.choice((1, 1, 2, 3)))]
    home.objects.clear()
    home.seen.clear()
    away.seen.clear()
    links = []
    for file in files:
        home.objects[file.path] = file.served
        digest = f"#sha256={sha256(file.served.versions[0])}" if file.known else ""
        links.append(f"http://user:{SECRET}@127.0.0.1:{home.port}{file.path}{digest}")
    piece_bytes = choose.choice((16, 32, 64)) * 1024
    options = TransferOptions(3, piece_bytes, POLICY, read_timeout_s=read_timeout_s)
    lines, error, manifest = Report(), None, None
    out = folder / "weights.tar"
    try:
        manifest = bake({"loras": "\n".join(links)}, out, settings, NO_TOKENS, PlainLines(lines), options=options)
    except ComfyUIModelError as failure:
        error = failure
    told = f"{case}: {[(file.path, file.served, file.known) for file in files]!r:.3000}\n{lines.text}\n{error!r}"
    assert SECRET not in told
    assert "SECRET" not in told
    assert all("authorization" not in request.headers for request in away.seen), told
    assert all("authorization" in request.headers for request in home.seen), told
    outcomes["right" if error is None else type(error).__name__] += 1
    if error is None:
        assert manifest is not None
        check_tar(out, files, manifest, told)
        assert files_below(folder) == [out.name], told
        out.unlink()
        return True
    assert any(file.path.strip("/") in str(error) for file in files), told
    assert files_below(folder) == [], told
    if all(file.must_arrive for file in files):
        print(told)
        outcomes["again"] += 1
        return False
    return True


def check_tar(out: Path, files: list[Planned], manifest: Manifest, told: str) -> None:
    with tarfile.open(out) as tar:
        assert tar.getnames()[1:] == [weight.path for weight in manifest.weights], told
        bodies = {}
        for weight in manifest.weights:
            member = tar.extractfile(weight.path)
            assert member is not None
            bodies[weight.path] = member.read()
            assert (len(bodies[weight.path]), sha256(bodies[weight.path])) == (weight.size, weight.sha256), told
    assert SECRET.encode() not in out.read_bytes()
    for file in files:
        assert file.is_right(bodies["loras" + file.path]), told
