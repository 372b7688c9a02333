"""From a good tar into a models folder, and from one that comes badly."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from comfyui.errors import DownloadError, RequestError, StoppedError, StorageError, WeightsError
from comfyui.settings import Settings
from comfyui.weights.bake.bake import bake
from comfyui.weights.bring import folder_lock
from comfyui.weights.restore.restore import read_manifest, restore
from comfyui.weights.sources import NO_TOKENS
from comfyui.weights.tar.layout import member_header
from tests.parts import largest_file
from tests.weights.samples import safetensors
from tests.weights.tars import IMPATIENT, Asked, Lines, RangeServer, baked, flipped, on_disk

BIG = "checkpoints/m.safetensors"
LONG = "loras/" + "long " * 40 + "a.safetensors"
SMALL = "loras/sub/b.safetensors"
FILES = {BIG: safetensors(1, 2_500_000), LONG: safetensors(2, 102400), SMALL: safetensors(3, 512)}
TAR, MANIFEST = baked(FILES)
OFFSETS = {weight.path: weight.offset or 0 for weight in MANIFEST.weights}

Restore = Callable[..., Lines]


@pytest.fixture
def storage() -> Iterator[RangeServer]:
    with RangeServer() as running:
        yield running


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    (tmp_path / "weights.tar").write_bytes(TAR)
    return tmp_path / "weights.tar"


@pytest.fixture
def run(settings: Settings) -> Restore:
    """Restore a location into the settings' models folder and give what was said."""

    def run(location: str | Path, **more: object) -> Lines:
        lines = Lines()
        restore(str(location), settings.models_dir, settings, lines, options=IMPATIENT, **more)  # type: ignore[arg-type]
        return lines

    return run


def test_every_way_to_a_tar(storage: RangeServer, settings: Settings, tar: Path, tmp_path: Path, run: Restore) -> None:
    locations = {
        "path": str(tar),
        "file": tar.as_uri(),
        "ranges": storage.put("/ranges.tar", TAR) + "?sig=SECRET",
        "no validator": storage.put("/no-etag.tar", TAR, etag=None),
        "whole": storage.put("/whole.tar", TAR, ranges=False),
    }
    for kind, location in locations.items():
        models = tmp_path / kind
        lines = Lines()
        assert restore(location, models, settings, lines, options=IMPATIENT) == MANIFEST
        assert on_disk(models) == FILES
        assert lines.lines[0].startswith("restoring weights from ")
        assert f"  {SMALL}: 685 bytes, sha256 " in lines.text
        assert lines.lines[-1].startswith("3 weight files in place, 2.6 MB in ")
        assert "SECRET" not in lines.text
        assert "damaged" not in lines.text
    assert len(storage.bytes_asked("/ranges.tar")) > len(TAR) // IMPATIENT.piece_bytes
    assert not storage.bytes_asked("/whole.tar")


def test_the_defaults_do_it_too(storage: RangeServer, settings: Settings) -> None:
    assert restore(storage.put("/w.tar", TAR), settings.models_dir, settings, Lines()) == MANIFEST
    assert on_disk(settings.models_dir) == FILES


def test_bake_then_restore(storage: RangeServer, settings: Settings, tmp_path: Path) -> None:
    pickle = b"PK\x03\x04" + bytes(500)
    request: dict[str, str | None] = {
        "loras": storage.put("/b.safetensors", FILES[SMALL]),
        "vaes": storage.put("/v.pt", pickle),
    }
    made = bake(request, tmp_path / "w.tar", settings, NO_TOKENS, Lines(), allow_pickle=True)
    assert read_manifest(str(tmp_path / "w.tar"), settings) == made
    lines = Lines()
    assert restore(str(tmp_path / "w.tar"), settings.models_dir, settings, lines) == made
    assert "damaged" not in lines.text
    assert on_disk(settings.models_dir) == {"loras/b.safetensors": FILES[SMALL], "vae/v.pt": pickle}
    with pytest.raises(WeightsError, match="can run any code"):
        restore(str(tmp_path / "w.tar"), tmp_path / "other", settings, Lines(), allow_pickle=False)
    assert not (tmp_path / "other").exists()


def test_an_empty_tar_of_weights(settings: Settings, tar: Path, run: Restore) -> None:
    tar.write_bytes(baked({})[0])
    run(tar)
    assert on_disk(settings.models_dir) == {}


def test_more_files_than_may_be_open_at_once(
    storage: RangeServer, settings: Settings, run: Restore, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"loras/{number}.safetensors": safetensors(number, 100) for number in range(7)}
    monkeypatch.setattr("comfyui.weights.bring.fetch.FILES_AT_ONCE", 3)
    for ranges in (True, False):
        run(storage.put("/w.tar", baked(files)[0], ranges=ranges))
        assert on_disk(settings.models_dir) == files
        shutil.rmtree(settings.models_dir)


# What is there already


@pytest.mark.parametrize("ranges", [True, False])
def test_what_is_there_and_right_is_not_fetched_again(
    storage: RangeServer, settings: Settings, run: Restore, ranges: bool
) -> None:
    url = storage.put("/w.tar", TAR, ranges=ranges)
    run(url)
    before = (settings.models_dir / BIG).stat()
    (settings.models_dir / SMALL).write_bytes(flipped(FILES[SMALL], 400))
    (settings.models_dir / LONG).write_bytes(b"old")
    (settings.models_dir / "loras" / "mine.safetensors").write_bytes(b"mine")
    storage.asked.clear()
    lines = run(url)
    assert on_disk(settings.models_dir) == {**FILES, "loras/mine.safetensors": b"mine"}
    after = (settings.models_dir / BIG).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert f"{BIG} is there already and right" in lines.lines
    assert f"{SMALL} is there already and wrong (expected " in lines.text
    assert f"replacing {LONG}: 3 bytes before, {len(FILES[LONG])} now" in lines.lines
    fetched = [span for span in storage.bytes_asked("/w.tar") if span[0] >= 2**20]
    assert all(first >= OFFSETS[LONG] - 1536 for first, _ in fetched)


def test_a_second_restore_fetches_only_the_head(storage: RangeServer, settings: Settings, run: Restore) -> None:
    url = storage.put("/w.tar", TAR)
    run(url)
    storage.asked.clear()
    assert run(url).lines[-1].startswith("3 weight files in place")
    assert storage.bytes_asked("/w.tar") == [(0, 0), (0, 2**20 - 1)]


def test_a_file_that_cannot_be_read_is_fetched_again(
    settings: Settings, tar: Path, run: Restore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tar)
    opened = os.open

    def fails(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if Path(path) == settings.models_dir / SMALL:
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, mode)

    monkeypatch.setattr(os, "open", fails)
    assert f"{SMALL} is there already and wrong ({SMALL} cannot be read: Permission denied)" in run(tar).text
    monkeypatch.undo()
    assert on_disk(settings.models_dir) == FILES


# Connections and servers that fail


@pytest.mark.parametrize("ranges", [True, False])
def test_connections_that_break(storage: RangeServer, settings: Settings, run: Restore, ranges: bool) -> None:
    broken = iter(range(2 if not ranges else 40))

    def cut(asked: Asked) -> int | None:
        big = asked.span is None or asked.span[1] - asked.span[0] > 1000
        return 9000 if big and next(broken, None) is not None else None

    lines = run(storage.put("/w.tar", TAR, ranges=ranges, cut=cut))
    assert on_disk(settings.models_dir) == FILES
    assert "connection" in lines.text
    assert ("reading the tar anew" in lines.text) is not ranges


def test_a_stream_that_breaks_in_the_middle_goes_on_with_what_is_missing(
    storage: RangeServer, settings: Settings, run: Restore
) -> None:
    answers = iter([None, OFFSETS[LONG] + 5000])
    lines = run(storage.put("/w.tar", TAR, ranges=False, cut=lambda _asked: next(answers, None)))
    assert on_disk(settings.models_dir) == FILES
    assert f"{LONG}: the connection" in lines.text
    assert "came wrong" not in lines.text
    assert lines.text.count(f"  {BIG}: 2.5 MB, sha256") == 1


def test_a_stream_that_always_breaks(storage: RangeServer, settings: Settings, run: Restore) -> None:
    with pytest.raises(WeightsError, match=r"loras/long.*cannot be had right. Tried: the tar .*its link") as caught:
        run(storage.put("/w.tar", TAR, ranges=False, cut=lambda _asked: OFFSETS[LONG] + 5000))
    assert caught.value.path == LONG
    assert on_disk(settings.models_dir) == {}


@pytest.mark.parametrize("after", [1, 2, 3, 20])
def test_a_server_that_stops_giving_ranges(storage: RangeServer, settings: Settings, run: Restore, after: int) -> None:
    url = storage.put("/w.tar", TAR)

    def spoil(asked: Asked, body: bytes) -> bytes:
        storage.files["/w.tar"].ranges = len(storage.asked) < after
        return body

    storage.files["/w.tar"].spoil = spoil
    text = run(url).text
    assert on_disk(settings.models_dir) == FILES
    assert "gives no ranges any more" in text


@pytest.mark.parametrize("after", [0, 1, 2, 20])
def test_a_tar_that_is_replaced_by_the_same(storage: RangeServer, settings: Settings, run: Restore, after: int) -> None:
    url = storage.put("/w.tar", TAR)
    count = iter(range(1000))

    def spoil(asked: Asked, body: bytes) -> bytes:
        if next(count) == after:
            storage.files["/w.tar"].etag = '"two"'
        return body

    storage.files["/w.tar"].spoil = spoil
    assert "it was replaced at its source" in run(url).text
    assert on_disk(settings.models_dir) == FILES


def test_a_tar_that_is_replaced_by_another(storage: RangeServer, settings: Settings, run: Restore) -> None:
    url = storage.put("/w.tar", TAR)
    count = iter(range(1000))

    def spoil(asked: Asked, body: bytes) -> bytes:
        if next(count) == 20:
            storage.put("/w.tar", baked({**FILES, SMALL: safetensors(9, 512)})[0], etag='"two"')
        return body

    storage.files["/w.tar"].spoil = spoil
    with pytest.raises(WeightsError, match=r"the tar again .expected the same manifest, seen another one"):
        run(url)
    assert on_disk(settings.models_dir) == {}


@pytest.mark.parametrize("status", [404, 403, 503])
def test_a_link_that_fails(storage: RangeServer, settings: Settings, run: Restore, status: int) -> None:
    with pytest.raises(DownloadError, match=str(status)):
        run(storage.put("/w.tar", TAR, status=status))
    assert not settings.models_dir.exists()


def test_a_server_that_is_busy_for_a_while(storage: RangeServer, settings: Settings, run: Restore) -> None:
    times: Counter[tuple[int, int] | None] = Counter()
    lock = threading.Lock()

    def status(asked: Asked) -> int | None:
        """Every third thing that is asked for is refused twice."""
        with lock:
            times[asked.span] += 1
            return 503 if list(times).index(asked.span) % 3 == 0 and times[asked.span] <= 2 else None

    url = storage.put("/w.tar", TAR, status=status)
    assert "503" in run(url).text
    assert on_disk(settings.models_dir) == FILES


# Healing


def once(storage: RangeServer, path: str) -> Callable[[Asked, bytes], bytes]:
    """Turn a bit of a file over, the first time its bytes are asked for as a file's."""
    at = OFFSETS[path] + len(FILES[path]) // 2

    def is_piece(asked: Asked) -> bool:
        first, last = asked.span or (0, 0)
        return first <= at <= last and last - first <= IMPATIENT.piece_bytes

    def spoil(asked: Asked, body: bytes) -> bytes:
        pieces = [other for other in storage.asked if is_piece(other)]
        # A stream is asked for twice: to see what it is, and for its bytes.
        wholes = [other for other in storage.asked if other.span is None]
        if (pieces and asked is pieces[0]) or (len(wholes) > 1 and asked is wholes[1]):
            return flipped(body, at - (asked.span or (0, 0))[0])
        return body

    return spoil


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("path", [BIG, LONG])
def test_damage_on_the_way_is_healed_from_the_tar(
    storage: RangeServer, settings: Settings, run: Restore, path: str, ranges: bool
) -> None:
    url = storage.put("/w.tar", TAR, ranges=ranges, spoil=once(storage, path))
    lines = run(url)
    assert on_disk(settings.models_dir) == FILES
    assert f"{path} came wrong from the tar: expected " in lines.text
    assert f"{path} is healed: fetched from the tar again" in lines.lines
    if ranges and path == LONG:
        # The others are not fetched again.
        assert sum(last - first + 1 for first, last in storage.bytes_asked("/w.tar")) < len(TAR) + 3 * 2**20


@pytest.mark.parametrize("ranges", [True, False])
def test_what_came_in_vain_is_not_counted(storage: RangeServer, settings: Settings, run: Restore, ranges: bool) -> None:
    counts = dict.fromkeys(FILES, 0)

    class Counting(Lines):
        def advance(self, path: str, count: int) -> None:
            counts[path] += count

    url = storage.put("/w.tar", TAR, ranges=ranges, spoil=once(storage, BIG))
    lines = Counting()
    restore(url, settings.models_dir, settings, lines, options=replace(IMPATIENT, connections=1))
    assert f"{BIG} is healed" in lines.text
    assert counts == {path: len(body) for path, body in FILES.items()}


def test_an_error_of_this_machine_that_is_no_file_s_is_raised(
    storage: RangeServer, settings: Settings, run: Restore
) -> None:
    """Such as of a terminal that is gone when it is told that bytes came in vain."""

    class Gone(Lines):
        def advance(self, path: str, count: int) -> None:
            if count < 0:
                raise BrokenPipeError("the terminal is gone")

    url = storage.put("/w.tar", TAR, spoil=once(storage, BIG))
    with pytest.raises(BrokenPipeError, match="the terminal is gone"):
        restore(url, settings.models_dir, settings, Gone(), options=replace(IMPATIENT, connections=1))
    assert on_disk(settings.models_dir) == {}


def test_a_bad_sector_in_the_tar_is_healed_from_the_link(
    storage: RangeServer, settings: Settings, tmp_path: Path, run: Restore, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = {path: storage.put(f"/{number}", body) for number, (path, body) in enumerate(FILES.items())}
    data, manifest = baked(FILES, urls)
    (tmp_path / "w.tar").write_bytes(data)
    bad = (manifest.weights[0].offset or 0) + 2_000_000
    read, tar = os.preadv, (tmp_path / "w.tar").stat()

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if os.path.samestat(os.fstat(fd), tar) and offset <= bad < offset + sum(map(len, buffers)):
            raise OSError(errno.EIO, "Input/output error")
        return read(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    lines = run(tmp_path / "w.tar")
    assert on_disk(settings.models_dir) == FILES
    assert f"{BIG} is healed: fetched from its link {urls[BIG]}" in lines.lines


@pytest.mark.parametrize("where", ["ranges", "whole", "path"])
@pytest.mark.parametrize("source_ranges", [True, False])
def test_damage_in_the_tar_is_healed_from_the_link(
    storage: RangeServer, settings: Settings, tmp_path: Path, run: Restore, where: str, source_ranges: bool
) -> None:
    urls = {
        path: storage.put(f"/{number}", body, ranges=source_ranges) for number, (path, body) in enumerate(FILES.items())
    }
    data, manifest = baked(FILES, urls)
    at = (manifest.weights[0].offset or 0) + 2_000_000
    data = flipped(data, at)
    (tmp_path / "w.tar").write_bytes(data)
    location = str(tmp_path / "w.tar") if where == "path" else storage.put("/w.tar", data, ranges=where == "ranges")
    lines = run(location)
    assert on_disk(settings.models_dir) == FILES
    assert f"{BIG} is healed: fetched from its link {urls[BIG]}" in lines.lines
    assert not [asked for asked in storage.asked if asked.path in ("/1", "/2")]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_healed_file_is_not_the_one_behind_a_foreign_header(
    storage: RangeServer, settings: Settings, run: Restore, ranges: bool
) -> None:
    urls = {SMALL: storage.put("/b.safetensors", FILES[SMALL])}
    data, manifest = baked(FILES, urls)
    at = manifest.weights[2].offset or 0
    other = member_header("loras/sub/c.safetensors", len(FILES[SMALL]))
    data = data[: at - 512] + other + flipped(data[at:], 300)
    lines = run(storage.put("/w.tar", data, ranges=ranges))
    assert on_disk(settings.models_dir) == FILES
    assert "damaged outside of its files: it has the header of 'loras/sub/c.safetensors'" in lines.text


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"status": 404}, "the server answered 404"),
        ({"status": 401}, "the server answered 401"),
        ({"body": FILES[SMALL] + b"x"}, "expected 685 bytes, seen 686 bytes"),
        ({"body": flipped(FILES[SMALL], 500)}, "expected .{64}, seen .{64}"),
        ({"cut": lambda _asked: 0}, "the connection ended early"),
    ],
)
def test_what_cannot_be_healed_is_an_error_that_names_every_place(
    storage: RangeServer, settings: Settings, run: Restore, source: dict[str, object], words: str
) -> None:
    url = storage.put("/b.safetensors", **{"body": FILES[SMALL], **source})  # type: ignore[arg-type]
    data, manifest = baked(FILES, {SMALL: url})
    at = (manifest.weights[2].offset or 0) + 400
    storage.put("/w.tar", flipped(data, at))
    with pytest.raises(WeightsError, match=rf"the tar \(.*the tar again \(.*its link {url} \(.*{words}") as caught:
        run(storage.url + "/w.tar")
    assert caught.value.path == SMALL
    assert caught.value.expected == manifest.weights[2].sha256
    assert caught.value.seen not in (None, caught.value.expected)
    assert on_disk(settings.models_dir) == {}


def test_several_that_cannot_be_healed_are_all_named(settings: Settings, tar: Path, run: Restore) -> None:
    tar.write_bytes(TAR[: OFFSETS[LONG]])
    with pytest.raises(WeightsError, match=rf"^{LONG}.*So it is with 1 more: {SMALL}\."):
        run(tar)
    assert on_disk(settings.models_dir) == {}


# The machine


def test_a_folder_in_the_way(settings: Settings, tar: Path, run: Restore) -> None:
    (settings.models_dir / SMALL).mkdir(parents=True)
    with pytest.raises(StorageError, match="a folder has its name"):
        run(tar)
    assert on_disk(settings.models_dir) == {}


def test_a_file_where_a_folder_must_be(settings: Settings, tar: Path, run: Restore) -> None:
    (settings.models_dir / "loras").mkdir(parents=True)
    (settings.models_dir / "loras" / "sub").write_bytes(b"mine")
    with pytest.raises(StorageError, match="a file has the name of its folder"):
        run(tar)
    assert on_disk(settings.models_dir) == {"loras/sub": b"mine"}


def test_a_disk_that_takes_no_large_file(settings: Settings, tar: Path, run: Restore) -> None:
    with largest_file(2_000_000), pytest.raises(StorageError, match=r"checkpoints/m\.safetensors cannot be written"):
        run(tar)
    assert on_disk(settings.models_dir) == {}


@pytest.mark.parametrize("ranges", [True, False])
def test_a_disk_that_fills_up_on_the_way(
    storage: RangeServer, settings: Settings, run: Restore, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    monkeypatch.setattr("comfyui.weights.transfer.target.Target.allocate", lambda target, size: None)
    with largest_file(2_000_000), pytest.raises(StorageError, match=r"checkpoints/m\.safetensors cannot be written"):
        run(storage.put("/w.tar", TAR, ranges=ranges))
    assert on_disk(settings.models_dir) == {}


def test_a_disk_that_is_too_small(settings: Settings, tar: Path, run: Restore, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tar.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=200_000))
    with pytest.raises(StorageError, match="no room on the disk for the weights") as caught:
        run(tar)
    assert caught.value.seen == "200000 bytes free"
    assert on_disk(settings.models_dir) == {}
    # What is there already needs no room.
    (settings.models_dir / BIG).parent.mkdir(parents=True)
    (settings.models_dir / BIG).write_bytes(FILES[BIG])
    run(tar)
    assert on_disk(settings.models_dir) == FILES


@pytest.mark.parametrize(
    ("location", "word"),
    [
        ("/no/such/weights.tar", "no weights tar at"),
        ("", "no weights tar"),
        ("ftp://example.com/w.tar", "http, https or file"),
        ("file://elsewhere/w.tar", "http, https or file"),
        ("file:///no/such/weights.tar", "no weights tar at"),
    ],
)
def test_locations_that_are_no_tar(settings: Settings, run: Restore, location: str, word: str) -> None:
    with pytest.raises(RequestError, match=word):
        run(location)
    assert not settings.models_dir.exists()


# Stop, Ctrl-C, others


@pytest.mark.parametrize("where", ["path", "ranges", "whole"])
def test_stop(storage: RangeServer, settings: Settings, tar: Path, where: str) -> None:
    stop = threading.Event()
    url = storage.put("/w.tar", TAR, ranges=where == "ranges", chunk_delay_s=0.003)
    threading.Timer(0.2 if where != "path" else 0.0, stop.set).start()
    if where == "path":
        stop.set()
    start = time.monotonic()
    with pytest.raises(StoppedError):
        restore(str(tar) if where == "path" else url, settings.models_dir, settings, Lines(), stop, options=IMPATIENT)
    assert time.monotonic() - start < 4
    assert on_disk(settings.models_dir) == {}


def test_stop_while_a_server_is_away(settings: Settings) -> None:
    stop = threading.Event()
    patient = replace(IMPATIENT, policy=replace(IMPATIENT.policy, first_wait_s=60.0, longest_wait_s=60.0))
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(StoppedError):
        restore("http://127.0.0.1:9/w.tar", settings.models_dir, settings, Lines(), stop, options=patient)


@pytest.mark.parametrize("at", range(8))
def test_ctrl_c_leaves_nothing(settings: Settings, tar: Path, at: int) -> None:
    class Interrupting(Lines):
        def say(self, line: str) -> None:
            super().say(line)
            self.count()

        def begin(self, doing: str, files: object) -> None:
            self.count()

        def end(self) -> None:
            self.count()

        def count(self) -> None:
            self.lines.append("")
            if self.lines.count("") == at + 1:
                raise KeyboardInterrupt

    (settings.models_dir / "loras").mkdir(parents=True)
    (settings.models_dir / LONG).write_bytes(b"old")
    with contextlib.suppress(KeyboardInterrupt):
        restore(str(tar), settings.models_dir, settings, Interrupting(), options=IMPATIENT)
    assert on_disk(settings.models_dir) in (FILES, {LONG: b"old"})
    # say restoring, begin, end, say replacing, then the renames, say in place
    assert (on_disk(settings.models_dir) == FILES) is (at > 3)


def test_what_a_killed_restore_left_is_swept(settings: Settings, tar: Path, run: Restore) -> None:
    left = settings.models_dir / "loras" / "sub" / ".b.safetensors.0123456789ab.part"
    others = [left.with_name(".b.safetensors.part"), left.with_name("b.0123456789ab.part")]
    left.parent.mkdir(parents=True)
    for path in (left, *others):
        path.write_bytes(b"x")
    run(tar)
    assert sorted(on_disk(settings.models_dir)) == sorted(
        [*FILES, *(path.relative_to(settings.models_dir).as_posix() for path in others)]
    )


def test_two_restores_at_once(storage: RangeServer, settings: Settings) -> None:
    url = storage.put("/w.tar", TAR, chunk_delay_s=0.001)
    both = [Lines(), Lines()]
    threads = [
        threading.Thread(
            target=restore, args=(url, settings.models_dir, settings, lines), kwargs={"options": IMPATIENT}
        )
        for lines in both
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert on_disk(settings.models_dir) == FILES
    texts = [lines.text for lines in both]
    assert sum("another process is writing weights" in text for text in texts) == 1
    assert sum(f"{BIG} is there already and right" in text for text in texts) == 1


def test_a_lock_that_is_held(settings: Settings, tar: Path, run: Restore, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.models_dir.mkdir()
    handle = os.open(settings.models_dir, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        stop = threading.Event()
        threading.Timer(0.2, stop.set).start()
        with pytest.raises(StoppedError, match="waited for another one"):
            run(tar, stop=stop)
        take = folder_lock._take
        monkeypatch.setattr(
            folder_lock, "_take", lambda handle, folder, listener, stop, _: take(handle, folder, listener, stop, 0.3)
        )
        with pytest.raises(StorageError, match="Another process has been writing"):
            run(tar)
    finally:
        os.close(handle)
    run(tar)
    assert on_disk(settings.models_dir) == FILES


def test_a_disk_without_locks(settings: Settings, tar: Path, run: Restore, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert "cannot be locked (No locks available)" in run(tar).text
    assert on_disk(settings.models_dir) == FILES
