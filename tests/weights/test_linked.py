"""Weights by link: asked for each time, fetched once, kept within a budget, given to nobody who may not have them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from comfyui.errors import ComfyUIModelError, DownloadError, RequestError, StoppedError, StorageError, WeightsError
from comfyui.settings import Settings
from comfyui.weights.linked import linked
from comfyui.weights.linked.linked import Asked, Brought, Link, LinkedWeights
from comfyui.weights.linked.shelf import Lease, Spot
from comfyui.weights.sources import NO_TOKENS, Tokens
from tests.weights import tars
from tests.weights.civitai_standin import CivitaiStandin, File, Version
from tests.weights.file_server import FileServer
from tests.weights.hugging_face_standin import GOOD, NO_ACCESS, HuggingFaceStandin, Repo
from tests.weights.samples import files_below, safetensors, sha256
from tests.weights.storage_standin import Answer, StorageStandin
from tests.weights.tars import IMPATIENT, Lines, RangeServer, ended, flipped, member

FILE = safetensors(1, 60_000)
OTHER = safetensors(2, 60_000)
EXTENSIONS = frozenset({".safetensors", ".ckpt", ".pt", ".bin"})


@pytest.fixture
def storage() -> Iterator[RangeServer]:
    with RangeServer() as running:
        yield running


@dataclass
class Predictions:
    """Predictions of one process, each with a lease of its own."""

    settings: Settings
    weights: LinkedWeights = field(init=False)
    lines: Lines = field(default_factory=Lines)
    leases: list[Lease] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.weights = LinkedWeights(self.settings, options=IMPATIENT)

    def ask(self, url: str, tokens: Tokens = NO_TOKENS, folder: str = "loras") -> Asked:
        return self.weights.ask(Link(url, folder, EXTENSIONS), tokens, threading.Event())

    def bring(self, url: str, tokens: Tokens = NO_TOKENS, folder: str = "loras") -> Brought:
        """What a prediction gets; it goes on until `end`."""
        self.leases.append(self.weights.lease())
        return self.weights.bring(self.ask(url, tokens, folder), self.leases[-1], self.lines, threading.Event())

    def use(self, url: str, tokens: Tokens = NO_TOKENS, folder: str = "loras") -> bytes:
        """What a whole prediction reads."""
        brought = self.bring(url, tokens, folder)
        content = self.read(brought, folder)
        self.leases.pop().close()
        return content

    def read(self, brought: Brought, folder: str = "loras") -> bytes:
        return (self.settings.models_dir / folder / brought.name).read_bytes()

    def end(self) -> None:
        for lease in self.leases:
            lease.close()
        self.leases.clear()

    @property
    def kept(self) -> list[str]:
        """The files that are kept."""
        return [name for name in files_below(self.settings.data_dir / "linked-weights") if name != "index.json"]


@pytest.fixture
def predictions(settings: Settings) -> Iterator[Predictions]:
    running = Predictions(settings)
    yield running
    running.end()


def fetched(storage: RangeServer, path: str = "/a.safetensors") -> int:
    """How many bytes of a file were asked for, without the question for its first one."""
    return sum(last - first + 1 for first, last in storage.bytes_asked(path) if (first, last) != (0, 0))


def test_a_link_is_fetched_once_and_asked_about_every_time(predictions: Predictions, storage: RangeServer) -> None:
    url = storage.put("/a.safetensors", FILE)
    first = predictions.bring(url)
    assert first.fetched
    assert first.size == len(FILE)
    assert first.name.startswith("by-link/")
    assert first.name.endswith(f"/a-{sha256(FILE)[:12]}.safetensors")
    assert predictions.read(first) == FILE
    asked = len(storage.asked)
    second = predictions.bring(url)
    assert (second.name, second.fetched) == (first.name, False)
    assert len(storage.asked) == asked + 1
    assert fetched(storage) == len(FILE)


def test_a_file_is_in_its_model_folder_only_while_a_prediction_uses_it(
    predictions: Predictions, storage: RangeServer
) -> None:
    url = storage.put("/a.safetensors", FILE)
    predictions.bring(url)
    predictions.bring(url)
    assert len(files_below(predictions.settings.models_dir)) == 1
    predictions.leases.pop().close()
    assert len(files_below(predictions.settings.models_dir)) == 1
    predictions.end()
    assert files_below(predictions.settings.models_dir) == []
    assert predictions.kept == [sha256(FILE)]
    assert not predictions.bring(url).fetched


def test_one_content_behind_two_links_and_for_two_folders_is_kept_once(
    predictions: Predictions, storage: RangeServer
) -> None:
    for path, folder in (("/a.safetensors", "loras"), ("/b.safetensors", "loras"), ("/a.safetensors", "vae")):
        assert predictions.read(predictions.bring(storage.put(path, FILE), folder=folder), folder) == FILE
    assert predictions.kept == [sha256(FILE)]
    assert len(files_below(predictions.settings.models_dir)) == 3


def test_a_restarted_process_knows_what_is_there(predictions: Predictions, storage: RangeServer) -> None:
    url = storage.put("/a.safetensors", FILE)
    predictions.use(url)
    again = Predictions(predictions.settings)
    assert not again.bring(url).fetched
    again.end()


@pytest.mark.parametrize("etag", ['"two"', None])
def test_a_changed_file_is_noticed(predictions: Predictions, storage: RangeServer, etag: str | None) -> None:
    url = storage.put("/a.safetensors", FILE)
    assert predictions.use(url) == FILE
    storage.put("/a.safetensors", OTHER, etag=etag)
    assert predictions.use(url) == OTHER
    storage.put("/a.safetensors", OTHER[:-2] + b"xy", etag=etag)
    assert predictions.use(url) == (OTHER if etag else OTHER[:-2] + b"xy")


def test_a_date_is_believed_once_it_is_old_enough(predictions: Predictions, storage: RangeServer) -> None:
    def changed_at(age_s: float) -> str:
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() - age_s))
        return storage.put("/a.safetensors", FILE, etag=None, headers={"Last-Modified": date})

    url = changed_at(20)
    assert [predictions.bring(url).fetched for _ in range(2)] == [True, True]
    for age_s in (7200, 3600):
        url = changed_at(age_s)
        assert [predictions.bring(url).fetched for _ in range(2)] == [True, False]


def test_a_closed_link_gives_nothing_though_the_file_is_there(predictions: Predictions, storage: RangeServer) -> None:
    url = storage.put("/a.safetensors", FILE)
    predictions.use(url)
    for status in (401, 404):
        storage.put("/a.safetensors", FILE, status=status)
        with pytest.raises(DownloadError) as caught:
            predictions.bring(url)
        assert caught.value.status == status


def test_a_claimed_sha256_does_not_give_what_another_link_brought(
    predictions: Predictions, storage: RangeServer
) -> None:
    predictions.use(storage.put("/private.safetensors", FILE))
    claim = storage.put("/claim.safetensors", OTHER) + f"#sha256={sha256(FILE)}"
    with pytest.raises(WeightsError, match="is not the file that was promised") as caught:
        predictions.bring(claim)
    assert (caught.value.expected, caught.value.seen) == (sha256(FILE), sha256(OTHER))
    assert files_below(predictions.settings.models_dir) == []


def test_a_given_sha256_and_name(predictions: Predictions, storage: RangeServer) -> None:
    url = storage.put("/download", FILE, etag=None)
    named = f"{url}#name=mine.safetensors&sha256={sha256(FILE)}"
    assert "/mine-" in predictions.bring(named).name
    assert not predictions.bring(named).fetched
    assert predictions.bring(f"{url}#name=mine.safetensors").fetched
    with pytest.raises(WeightsError, match=r"is not the file that was promised|is not the file you mean"):
        predictions.bring(f"{url}#name=mine.safetensors&sha256={'0' * 64}")
    storage.put("/download", FILE)
    predictions.bring(f"{url}#name=mine.safetensors")
    with pytest.raises(WeightsError, match="is not the file you mean") as caught:
        predictions.bring(f"{url}#name=mine.safetensors&sha256={'0' * 64}")
    assert (caught.value.expected, caught.value.seen) == ("0" * 64, sha256(FILE))


@pytest.fixture
def hub(make_settings: Callable[..., Settings]) -> Iterator[tuple[HuggingFaceStandin, Predictions]]:
    with StorageStandin() as cdn, HuggingFaceStandin(cdn) as hub:
        hub.repos["me/private"] = Repo({"loras/mine.safetensors": FILE}, private=True)
        predictions = Predictions(make_settings(hf_endpoint=hub.url))
        yield hub, predictions
        predictions.end()


def test_a_private_file_is_only_for_who_may_have_it(hub: tuple[HuggingFaceStandin, Predictions]) -> None:
    site, predictions = hub
    link = "hf://me/private/loras/mine.safetensors"
    assert predictions.use(link, Tokens(huggingface=GOOD)) == FILE
    for tokens in (NO_TOKENS, Tokens(huggingface=NO_ACCESS), Tokens(huggingface="hf_wrong")):
        with pytest.raises(DownloadError):
            predictions.bring(link, tokens)
    assert not predictions.bring(link, Tokens(huggingface=GOOD)).fetched
    assert site.tokens_seen >= {f"Bearer {GOOD}"}
    index = (predictions.settings.data_dir / "linked-weights" / "index.json").read_text()
    assert "SECRET" not in index + predictions.lines.text


def test_a_repo_and_a_page_with_one_file(hub: tuple[HuggingFaceStandin, Predictions]) -> None:
    site, predictions = hub
    site.repos["me/one"] = Repo({"mine.safetensors": FILE, "README.md": b"#"})
    for link in ("me/one", "hf://me/one", f"{site.url}/me/one/blob/main/mine.safetensors"):
        assert predictions.use(link) == FILE
    assert predictions.kept == [sha256(FILE)]


def test_the_same_file_on_two_sites_is_fetched_once(make_settings: Callable[..., Settings]) -> None:
    with StorageStandin() as store, HuggingFaceStandin(store) as hub, CivitaiStandin(store) as civitai:
        hub.repos["me/one"] = Repo({"mine.safetensors": FILE})
        civitai.versions[7] = Version(3, [File(1, "theirs.safetensors", FILE, primary=True)])
        predictions = Predictions(make_settings(hf_endpoint=hub.url, civitai_endpoint=civitai.url))
        assert predictions.bring("https://civitai.com/models/3").fetched
        brought = predictions.bring("hf://me/one/mine.safetensors")
        assert not brought.fetched
        assert predictions.read(brought) == FILE
        predictions.end()


def test_a_secret_in_a_link_is_in_no_line_and_no_file(predictions: Predictions, storage: RangeServer) -> None:
    url = storage.put("/a.safetensors", FILE).replace("http://", "http://me:SECRET1@") + "?token=SECRET2"
    asked = predictions.ask(url)
    predictions.bring(url)
    told = predictions.lines.text + repr(asked) + repr(asked.link)
    for path in predictions.settings.data_dir.rglob("*"):
        if path.is_file():
            told += path.read_bytes().decode("latin-1")
    assert "SECRET" not in told
    with pytest.raises(ComfyUIModelError) as caught:
        predictions.bring(url.replace("/a.", "/none."))
    assert "SECRET" not in str(caught.value)


def test_the_lora_in_a_trainings_tar(predictions: Predictions, storage: RangeServer) -> None:
    tar = ended(member("output/readme.txt", b"x"), member("output/lora.safetensors", FILE))
    url = storage.put("/abc/trained_model.tar", tar)
    assert predictions.use(url) == FILE
    assert not predictions.bring(url).fetched
    with pytest.raises(WeightsError, match="does not have the name of a weight file"):
        predictions.bring(url, folder="vae")


@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.bin", "A.PTH"])
def test_pickles_are_refused_with_the_way_out(predictions: Predictions, storage: RangeServer, name: str) -> None:
    with pytest.raises(WeightsError, match=r"can run any code .* bake it in a training with allow_pickle\."):
        predictions.bring(storage.put(f"/{name}", b"\x80\x02" + bytes(500)))
    assert len(storage.asked) == 1


@pytest.mark.parametrize(
    ("path", "folder", "words"),
    [
        ("/a.zip", "loras", "does not have the name of a weight file"),
        ("/a.tar", "checkpoints", "does not have the name of a weight file"),
        ("/a", "loras", "does not have the name of a weight file"),
        ("/a.gguf", "loras", r"ComfyUI looks for \.safetensors in loras"),
    ],
)
def test_kinds_of_files_that_cannot_be_used(
    predictions: Predictions, storage: RangeServer, path: str, folder: str, words: str
) -> None:
    with pytest.raises(WeightsError, match=words):
        predictions.bring(storage.put(path, b"GGUF" + bytes(500)), folder=folder)
    assert fetched(storage, path) == 0


def test_what_is_no_weights_file_is_never_there(predictions: Predictions, storage: RangeServer) -> None:
    with pytest.raises(WeightsError, match=r"a\.safetensors"):
        predictions.bring(storage.put("/a.safetensors", FILE[:-1]))
    assert predictions.kept == []
    assert files_below(predictions.settings.models_dir) == []


def test_links_that_mean_nothing(predictions: Predictions) -> None:
    for link in ("https://huggingface.co/docs", "https://civitai.com/user/x", "http://", "hf://one"):
        with pytest.raises(RequestError):
            predictions.bring(link)


def test_a_private_address_is_refused(make_settings: Callable[..., Settings], storage: RangeServer) -> None:
    predictions = Predictions(make_settings(allow_private_urls=False))
    with pytest.raises(DownloadError, match="not a public internet address"):
        predictions.bring(storage.put("/a.safetensors", FILE))
    assert storage.asked == []


@pytest.mark.parametrize("damage", ["short", "head", "gone", "index"])
def test_a_damaged_copy_is_fetched_again(predictions: Predictions, storage: RangeServer, damage: str) -> None:
    url = storage.put("/a.safetensors", FILE)
    predictions.use(url)
    copy = predictions.settings.data_dir / "linked-weights" / sha256(FILE)
    match damage:
        case "short":
            copy.write_bytes(FILE[:-1])
        case "head":
            copy.write_bytes(flipped(FILE, 9))
        case "gone":
            copy.unlink()
        case "index":
            copy.with_name("index.json").write_text('{"version": 1, "files": [{"sha256": "../x"}], "links": []}')
    again = Predictions(predictions.settings)
    brought = again.bring(url)
    assert brought.fetched
    assert again.read(brought) == FILE
    assert ("is damaged" in again.lines.text) == (damage in ("short", "head"))
    again.end()


def test_a_file_damaged_on_the_way_is_fetched_again(hub: tuple[HuggingFaceStandin, Predictions]) -> None:
    site, predictions = hub
    site.repos["me/one"] = Repo({"mine.safetensors": FILE})
    spoiled: list[Answer] = []

    def spoil_once(answer: Answer) -> Answer:
        if len(answer.body) < 1000 or spoiled:
            return answer
        spoiled.append(answer)
        return replace(answer, body=flipped(answer.body, 300))

    site._cdn.mangle = spoil_once
    assert predictions.use("hf://me/one/mine.safetensors") == FILE
    assert "begins again" in predictions.lines.text


@pytest.mark.parametrize("more", [{"ranges": False}, {"etag": None, "ranges": False}])
def test_a_server_without_ranges(predictions: Predictions, storage: RangeServer, more: dict[str, object]) -> None:
    assert predictions.use(storage.put("/a.safetensors", FILE, **more)) == FILE


def test_a_server_that_gives_no_length(
    predictions: Predictions, server: FileServer, make_settings: Callable[..., Settings]
) -> None:
    url = server.put("/a.safetensors", FILE, chunked=True)
    assert predictions.use(url) == FILE
    server.put("/a.safetensors", FILE, chunked=True, cut_after=30_000)
    with pytest.raises(DownloadError, match="could not be fetched"):
        predictions.bring(url)
    server.put("/a.safetensors", FILE, chunked=True)
    with pytest.raises(WeightsError, match="is not the file that was promised"):
        predictions.bring(f"{url}#sha256={'0' * 64}")
    data_dir = predictions.settings.data_dir / "small"
    small = Predictions(make_settings(linked_weights_bytes=len(FILE) - 1, data_dir=data_dir))
    with pytest.raises(StorageError, match=r"There is no room for a\.safetensors"):
        small.bring(url)
    assert small.kept == []


def test_a_file_that_changes_while_it_is_fetched(predictions: Predictions, storage: RangeServer) -> None:
    other = safetensors(5, 50_000)

    def change(_asked: object, body: bytes) -> bytes:
        if len(body) > 1:
            storage.put("/a.safetensors", other, etag='"two"')
        return body

    url = storage.put("/a.safetensors", FILE, spoil=change)
    assert predictions.use(url) == other
    assert "begins again" in predictions.lines.text
    assert predictions.kept == [sha256(other)]


def test_a_file_that_changes_all_the_time(predictions: Predictions, storage: RangeServer) -> None:
    versions = iter(range(1000))

    def change(_asked: object, body: bytes) -> bytes:
        if len(body) > 1:
            put()
        return body

    def put() -> str:
        return storage.put("/a.safetensors", FILE, etag=f'"{next(versions)}"', spoil=change)

    with pytest.raises(DownloadError, match=r"a\.safetensors keeps changing at http.*/a\.safetensors while"):
        predictions.bring(put())
    assert predictions.kept == []


def test_a_stream_without_a_length_is_stopped(predictions: Predictions, server: FileServer) -> None:
    asked = predictions.ask(server.put("/a.safetensors", safetensors(1, 1_000_000), chunked=True))
    stop = threading.Event()

    class Stopping(Lines):
        def advance(self, path: str, count: int) -> None:
            stop.set()

    with pytest.raises(StoppedError):
        predictions.weights.bring(asked, predictions.weights.lease(), Stopping(), stop)
    assert predictions.kept == []


def test_the_least_recently_used_goes_first_and_what_is_used_never(
    make_settings: Callable[..., Settings], storage: RangeServer
) -> None:
    predictions = Predictions(make_settings(linked_weights_bytes=2 * len(FILE) + 100))
    bodies = {name: safetensors(number, 60_000) for number, name in enumerate("abcd")}
    urls = {name: storage.put(f"/{name}.safetensors", body) for name, body in bodies.items()}

    def kept() -> str:
        return "".join(sorted(name for name, body in bodies.items() if sha256(body) in predictions.kept))

    for name in "ab":
        predictions.use(urls[name])
    assert not predictions.bring(urls["a"]).fetched
    predictions.end()
    predictions.use(urls["c"])
    assert kept() == "ac"
    predictions.bring(urls["a"])
    predictions.use(urls["b"])
    assert kept() == "ab"
    predictions.bring(urls["b"])
    with pytest.raises(StorageError, match=r"no room for d\.safetensors .*in use now.*LINKED_WEIGHTS_GB") as caught:
        predictions.bring(urls["d"])
    assert caught.value.path == "d.safetensors"
    assert kept() == "ab"
    predictions.end()
    predictions.use(urls["d"])
    assert len(kept()) == 2
    assert "d" in kept()


def test_a_file_on_its_way_has_its_room_already(make_settings: Callable[..., Settings], storage: RangeServer) -> None:
    predictions = Predictions(make_settings(linked_weights_bytes=100_000))
    url = storage.put("/a.safetensors", FILE)
    with predictions.weights._shelf.new_part(Spot("loras", "b.safetensors")) as part:
        part.reserve(60_000, print)
        with pytest.raises(StorageError, match=r"60\.0 kB of 100\.0 kB are in use now"):
            predictions.bring(url)
    assert predictions.use(url) == FILE


def test_another_process_does_not_remove_what_is_used_here(
    make_settings: Callable[..., Settings], storage: RangeServer
) -> None:
    settings = make_settings(linked_weights_bytes=len(FILE) + 100)
    here, there = Predictions(settings), Predictions(settings)
    url, other_url = storage.put("/a.safetensors", FILE), storage.put("/b.safetensors", OTHER)
    brought = here.bring(url)
    with pytest.raises(StorageError):
        there.bring(other_url)
    assert here.read(brought) == FILE
    here.end()
    assert there.use(other_url) == OTHER
    assert there.kept == [sha256(OTHER)]
    assert here.use(url) == FILE


def test_a_file_larger_than_the_budget_is_an_error_that_names_both(
    make_settings: Callable[..., Settings], storage: RangeServer
) -> None:
    predictions = Predictions(make_settings(linked_weights_bytes=50_000))
    with pytest.raises(StorageError, match=r"a\.safetensors is 60\.2 kB, more than the 50\.0 kB") as caught:
        predictions.bring(storage.put("/a.safetensors", FILE))
    assert (caught.value.expected, caught.value.seen) == ("50000 bytes at most", f"{len(FILE)} bytes")
    assert fetched(storage) == 0


def test_no_budget_is_no_links(make_settings: Callable[..., Settings], storage: RangeServer) -> None:
    predictions = Predictions(make_settings(linked_weights_bytes=0))
    with pytest.raises(RequestError, match="takes no weights by link"):
        predictions.bring(storage.put("/a.safetensors", FILE))
    assert storage.asked == []


def test_a_full_disk(predictions: Predictions, storage: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfyui.weights.disk.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(StorageError, match="There is no room on the disk"):
        predictions.bring(storage.put("/a.safetensors", FILE))
    assert predictions.kept == []


def test_many_at_once_fetch_a_link_once(predictions: Predictions, storage: RangeServer) -> None:
    url = storage.put("/a.safetensors", FILE, chunk_delay_s=0.01)
    with ThreadPoolExecutor(8) as pool:
        brought = list(pool.map(predictions.bring, [url] * 8))
    assert {one.name for one in brought} == {brought[0].name}
    assert sum(one.fetched for one in brought) == 1
    assert fetched(storage) == len(FILE)


def test_many_links_at_once(predictions: Predictions, storage: RangeServer) -> None:
    urls = [storage.put(f"/{number}.safetensors", safetensors(number, 30_000)) for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        brought = list(pool.map(predictions.bring, urls))
    assert [predictions.read(one) for one in brought] == [safetensors(number, 30_000) for number in range(12)]


def test_a_stopped_fetch_leaves_nothing_and_the_next_one_takes_over(
    predictions: Predictions, storage: RangeServer
) -> None:
    url = storage.put("/a.safetensors", FILE)
    asked = predictions.ask(url)
    stop, begun, let_go = threading.Event(), threading.Event(), threading.Event()

    def hold(asked: tars.Asked, body: bytes) -> bytes:
        if asked.span is not None and asked.span[0] > 0:
            let_go.wait(20)
        return body

    storage.files["/a.safetensors"].spoil = hold

    class Telling(Lines):
        def advance(self, path: str, count: int) -> None:
            begun.set()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(predictions.weights.bring, asked, predictions.weights.lease(), Telling(), stop)
        try:
            assert begun.wait(20)
            second = pool.submit(predictions.bring, url)
            stop.set()
            with pytest.raises(StoppedError):
                first.result(10)
        finally:
            let_go.set()
        assert predictions.read(second.result(20)) == FILE
    assert predictions.kept == [sha256(FILE)]


def test_a_lease_that_ended_takes_nothing_more(predictions: Predictions, storage: RangeServer) -> None:
    asked = predictions.ask(storage.put("/a.safetensors", FILE))
    lease = predictions.weights.lease()
    lease.close()
    for _ in range(2):
        with pytest.raises(StoppedError):
            predictions.weights.bring(asked, lease, predictions.lines, threading.Event())
    assert files_below(predictions.settings.models_dir) == []
    assert not predictions.bring(storage.url + "/a.safetensors").fetched


def test_two_contents_whose_digests_begin_alike_have_two_names(
    predictions: Predictions, storage: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfyui.weights.linked.names._DIGEST_SHOWN", 0)
    first = predictions.bring(storage.put("/x/a.safetensors", FILE))
    second = predictions.bring(storage.put("/y/a.safetensors", OTHER))
    assert (predictions.read(first), predictions.read(second)) == (FILE, OTHER)
    assert first.name != second.name


def test_a_model_folder_on_another_disk(
    predictions: Predictions, storage: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path, _target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert predictions.use(storage.put("/a.safetensors", FILE)) == FILE
    assert files_below(predictions.settings.models_dir) == []


def test_unknown_files_are_swept_and_other_peoples_are_not(settings: Settings) -> None:
    kept = settings.data_dir / "linked-weights"
    ours = settings.models_dir / "loras" / "by-link" / ("0" * 16)
    deep = settings.models_dir / "ultralytics" / "bbox" / "by-link" / ("1" * 16)
    for folder in (kept, ours, deep):
        folder.mkdir(parents=True)
    (kept / sha256(FILE)).write_bytes(FILE)
    (kept / ".fetched.0123456789ab.part").write_bytes(FILE[:100])
    (ours / "a.safetensors").write_bytes(FILE)
    (deep / "b.safetensors").symlink_to(settings.data_dir / "gone")
    mine = settings.models_dir / "loras" / "by-link" / "mine.safetensors"
    mine.write_bytes(FILE)
    LinkedWeights(settings).sweep()
    assert files_below(settings.models_dir) == ["loras/by-link/mine.safetensors"]
    assert files_below(kept) == ["index.json"]
    assert json.loads((kept / "index.json").read_text()) == {"version": 1, "files": [], "links": []}


def test_the_slots_wait_for_each_other(
    predictions: Predictions, storage: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    for _ in range(linked.FETCHES_AT_ONCE):
        predictions.weights._slots.acquire()
    asked = predictions.ask(storage.put("/a.safetensors", FILE))
    stop.set()
    with pytest.raises(StoppedError):
        predictions.weights.bring(asked, predictions.weights.lease(), predictions.lines, stop)
