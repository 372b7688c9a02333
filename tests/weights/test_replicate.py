"""A LoRA out of a trainer's tar, and tars that must not be trusted."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.errors import DownloadError, WeightsError
from comfyui.settings import Settings
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.sources import NO_TOKENS, RemoteFile, TarMember, understand
from comfyui.weights.sources import replicate as replicate_module
from comfyui.weights.sources.replicate import choose_member, list_members, member_name
from comfyui.weights.sources.resolve import resolve
from comfyui.weights.transfer.faults import InterruptedPieceError
from comfyui.weights.transfer.readers import StreamReader
from tests.weights.file_server import FileServer
from tests.weights.samples import safetensors
from tests.weights.storage_standin import Answer, StorageStandin

LORA, OTHER = safetensors(5, 700_000), safetensors(6, 3000)
JOB = "output/flux_train_replicate"


def tar_of(files: dict[str, bytes], *, format_: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as tar:
        folder = tarfile.TarInfo(JOB)
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


# As replicate/flux-fine-tuner's train.py makes it.
TRAINED = tar_of({f"{JOB}/config.yaml": b"a: b\n", f"{JOB}/lora.safetensors": LORA, f"{JOB}/captions/1.txt": b"TOK"})


@pytest.fixture
def storage() -> Iterator[StorageStandin]:
    with StorageStandin() as running:
        yield running


def ask(url: str, settings: Settings, input_name: str = "loras") -> RemoteFile:
    return resolve(understand(url, settings, NO_TOKENS, input_name=input_name), settings, sleep=lambda _: None)


def read_at(data: bytes) -> Callable[[int, int], bytes]:
    return lambda start, length: data[start : start + length]


def test_a_trained_lora(storage: StorageStandin, settings: Settings) -> None:
    url = storage.put("/xezq/1XGMqkf1tnzUQSdLR54GvkBkTa/trained_model.tar", TRAINED)
    remote = ask(url, settings)
    assert (remote.name, remote.size, remote.ranges) == ("lora-1XGMqkf1tnzU.safetensors", len(LORA), True)
    assert remote.member is not None
    assert TRAINED[remote.member.offset :][: remote.member.size] == LORA
    assert remote.member.name == f"{JOB}/lora.safetensors"
    assert remote.notices == (
        f"{url}: taking '{JOB}/lora.safetensors' from the tar, as lora-1XGMqkf1tnzU.safetensors.",
    )
    assert remote.manifest_url == url
    # Headers alone were read, in a few ranges, not the LoRA.
    assert [seen.headers["Range"] for seen in storage.seen][:2] == ["bytes=0-0", "bytes=0-262143"]
    assert len(storage.seen) <= 4
    assert {seen.headers.get("If-Range") for seen in storage.seen[1:]} == {remote.validator}
    assert ask(url + "#name=me.safetensors", settings).name == "me.safetensors"


def test_a_server_without_ranges(server: FileServer, settings: Settings) -> None:
    remote = ask(server.put("/abc/trained_model.tar", TRAINED), settings)
    assert (remote.size, remote.ranges) == (len(LORA), False)
    assert remote.member is not None
    out = bytearray(len(LORA))
    with HttpOpener(settings) as opener:
        first = remote.member.offset
        with closing(StreamReader(opener, remote.source, remote.url, len(LORA), first=first)) as reader:
            assert list(reader.read(0, memoryview(out)))[-1] == len(LORA)
    assert out == LORA


def test_only_for_loras_and_replicate(settings: Settings) -> None:
    assert understand("https://example.com/a.tar", settings, NO_TOKENS, input_name="loras").tar
    assert understand("https://x.replicate.delivery/a.tar?b=1", settings, NO_TOKENS, input_name="checkpoints").tar
    assert not understand("https://example.com/a.tar", settings, NO_TOKENS, input_name="checkpoints").tar
    assert not understand("https://replicate.delivery/a.safetensors", settings, NO_TOKENS, input_name="loras").tar


@pytest.mark.parametrize("cut", [1, 512, 700_000])
def test_a_member_that_is_cut(server: FileServer, settings: Settings, cut: int) -> None:
    member = next(m for m in list_members(read_at(TRAINED), "x") if m.size == len(LORA))
    url = server.put("/abc/trained_model.tar", TRAINED[: member.offset + member.size - cut])
    source = understand(url, settings, NO_TOKENS, input_name="loras")
    with HttpOpener(settings) as opener:
        reader = StreamReader(opener, source, url, len(LORA), first=member.offset)
        with closing(reader), pytest.raises(InterruptedPieceError, match="ended early"):
            list(reader.read(0, memoryview(bytearray(len(LORA)))))


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_every_tar_format(format_: int) -> None:
    long = "d/" * 60 + "ü" * (0 if format_ == tarfile.USTAR_FORMAT else 80) + "x.safetensors"
    data = tar_of({"a.txt": b"1" * 513, long: OTHER, "e.txt": b""}, format_=format_)
    members = list_members(read_at(data), "x")
    assert [member.name for member in members] == ["a.txt", long, "e.txt"]
    assert data[members[1].offset :][: members[1].size] == OTHER


@given(
    st.dictionaries(
        st.text("abcü/.x", min_size=1, max_size=150).filter(lambda name: name.strip("/") == name and "//" not in name),
        st.binary(max_size=1500),
        max_size=5,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_the_list_is_tarfiles(files: dict[str, bytes], format_: int) -> None:
    data = tar_of(files, format_=format_)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        theirs = [(info.name, info.size, info.offset_data) for info in tar if info.isfile()]
    assert [(m.name, m.size, m.offset) for m in list_members(read_at(data), "x")] == theirs


@given(st.data())
def test_no_bytes_break_the_reader(data: st.DataObject) -> None:
    tar = bytearray(tar_of({"a/lora.safetensors": OTHER, "b" * 120: b"x"}, format_=tarfile.PAX_FORMAT))
    for _ in range(data.draw(st.integers(1, 5))):
        tar[data.draw(st.integers(0, 4000))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(tar)))
    try:
        members = list_members(read_at(bytes(tar[:cut])), "x")
    except WeightsError:
        return
    assert all(member.size >= 0 for member in members)


def special(kind: bytes, **fields: object) -> bytes:
    info = tarfile.TarInfo("lora.safetensors")
    info.type, info.linkname = kind, "/etc/passwd"
    for name, value in fields.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def pax(record: bytes) -> bytes:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    return info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + tar_of({"lora.safetensors": OTHER})


TAR = "No LoRA can be taken from x: {}. Give the link of a training's weights, or of a .safetensors file."


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "it is no tar"),
        (b"<html>" * 200, "it is no tar"),
        (TRAINED[:700], "it is cut or damaged at byte 512"),
        (TRAINED[:2048], f"it is cut or damaged at byte {2048 + (len(LORA) + 511) // 512 * 512}"),
        (special(tarfile.SYMTYPE), "it has no .safetensors file in it"),
        (special(tarfile.LNKTYPE), "it has no .safetensors file in it"),
        (special(tarfile.DIRTYPE), "it has no .safetensors file in it"),
        (special(tarfile.CHRTYPE), "it has no .safetensors file in it"),
        (special(tarfile.FIFOTYPE), "it has no .safetensors file in it"),
        (special(tarfile.GNUTYPE_SPARSE), "its member at byte 0 is sparse, or of no size"),
        (special(tarfile.REGTYPE, size=-5), "its member at byte 0 is sparse, or of no size"),
        (special(tarfile.REGTYPE, size=1 << 60), "it is longer than 68719476736 bytes"),
        (
            special(tarfile.GNUTYPE_LONGNAME, size=1 << 40),
            "it is cut, or has a name of 1099511627776 bytes, at byte 512",
        ),
        (special(tarfile.GNUTYPE_LONGNAME, size=5000), "it is cut, or has a name of 5000 bytes, at byte 512"),
        (pax(b"12 size=-15\n"), "it has a pax header that cannot be read, or a sparse file"),
        (pax(b"99 path=x\n"), "it has a pax header that cannot be read, or a sparse file"),
        (pax(b"0 path=x\n"), "it has a pax header that cannot be read, or a sparse file"),
        (pax(b"nonsense"), "it has a pax header that cannot be read, or a sparse file"),
        (pax(b"22 GNU.sparse.major=1\n"), "it has a pax header that cannot be read, or a sparse file"),
        (tar_of({"a.txt": b"x", "._lora.safetensors": b"y"}), "it has no .safetensors file in it"),
        (
            tar_of({"a.safetensors": OTHER, "b.safetensors": OTHER}),
            "it has 2 .safetensors files and none is lora.safetensors: a.safetensors, b.safetensors",
        ),
    ],
)
def test_hostile_and_broken_tars(data: bytes, fault: str) -> None:
    with pytest.raises(WeightsError) as caught:
        choose_member(list_members(read_at(data), "x"), "x")
    assert str(caught.value) == TAR.format(fault)
    assert (caught.value.path, caught.value.seen) == ("x", fault)


def test_members_of_a_kind_that_tarfile_does_not_know() -> None:
    # They have data, as POSIX asks of unknown types; contiguous files are plain ones.
    odd, contiguous = special(b"Z", size=700)[:512] + bytes(1024), special(tarfile.CONTTYPE, size=3)[:512]
    members = list_members(read_at(odd + contiguous + b"abc".ljust(512, b"\0") + bytes(1024)), "x")
    assert [(member.size, member.offset) for member in members] == [(3, 2048)]


def test_too_many_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicate_module, "_MAX_MEMBERS", 3)
    with pytest.raises(WeightsError, match="more than 3 members"):
        list_members(read_at(tar_of({str(i): b"" for i in range(5)})), "x")


@pytest.mark.parametrize("name", ["lora.safetensors", "flux-lora.safetensors", "pytorch_lora_weights.safetensors"])
def test_several_files_one_of_them_named_as_a_lora(name: str) -> None:
    members = [TarMember("x/unet.safetensors", 1, 0), TarMember(f"x/{name}", 2, 0)]
    assert choose_member(members, "x").size == 2


@pytest.mark.parametrize(
    ("inside", "url", "name"),
    [
        ("x/my_style.safetensors", "https://replicate.delivery/a/trained_model.tar", "my_style.safetensors"),
        ("x/lora.safetensors", "https://example.com/me/Style%20One.tar?x=1", "Style One.safetensors"),
        (
            "x/lora.safetensors",
            "https://replicate.delivery/x/0123456789abcdef/trained_model.tar",
            "lora-0123456789ab.safetensors",
        ),
        ("x/lora.safetensors", "https://replicate.delivery/trained_model.tar", "lora.safetensors"),
    ],
)
def test_names(inside: str, url: str, name: str) -> None:
    assert member_name(TarMember(inside, 1, 0), url) == name


def test_a_server_without_ranges_that_breaks_off(server: FileServer, settings: Settings) -> None:
    with pytest.raises(WeightsError, match="it is cut or damaged at byte 70"):
        ask(server.put("/x.tar", TRAINED[:100_000]), settings)
    with pytest.raises(DownloadError, match="broke the connection off"):
        ask(server.put("/y.tar", TRAINED, cut_after=100_000), settings)


def test_a_tar_that_changes_or_lies(storage: StorageStandin, settings: Settings) -> None:
    url = storage.put("/trained_model.tar", TRAINED)

    def lie(answer: Answer) -> Answer:
        if len(answer.body) == 1:
            return answer
        return replace(answer, headers={**answer.headers, "Content-Range": f"bytes 0-262143/{len(TRAINED) + 1}"})

    storage.mangle = lie
    with pytest.raises(DownloadError, match="other bytes than it was asked for"):
        ask(url, settings)
    storage.mangle = lambda answer: answer if len(answer.body) == 1 else Answer(200, {}, TRAINED)
    with pytest.raises(DownloadError, match="other bytes than it was asked for"):
        ask(url, settings)
    storage.mangle = lambda answer: answer if len(answer.body) == 1 else Answer(404)
    with pytest.raises(DownloadError, match="not found"):
        ask(url, settings)
