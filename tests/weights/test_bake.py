"""From links to a tar, with a real server."""

from __future__ import annotations

import tarfile
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from comfyui.errors import ComfyUIModelError, DownloadError, TrainingInputError, WeightsError
from comfyui.settings import Settings
from comfyui.weights import progress
from comfyui.weights.bake import bake
from comfyui.weights.folders import TRAINING_INPUTS
from comfyui.weights.manifest import Manifest
from comfyui.weights.sources import NO_TOKENS, Tokens
from tests.weights.file_server import FileServer
from tests.weights.samples import Report, files_below, safetensors, sha256

A, B = safetensors(1, 50_000), safetensors(2, 2_500_000)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "weights.tar"


def run(request: dict[str, str | None], out: Path, settings: Settings, **more: bool) -> tuple[Manifest, Report]:
    report = Report()
    return bake(request, out, settings, NO_TOKENS, report, **more), report


def nothing_left(out: Path) -> bool:
    return not out.parent.exists() or files_below(out.parent) == []


def test_links_become_a_tar(server: FileServer, settings: Settings, out: Path) -> None:
    a = server.put("/a.safetensors", A)
    b = server.put("/get", B, headers={"Content-Disposition": "attachment; filename=b.safetensors"}, chunked=True)
    manifest, report = run({"checkpoints": None, "vaes": b + "?q=1#f", "loras": f"\n {a} \n"}, out, settings)
    assert [(weight.path, weight.url, weight.size, weight.sha256) for weight in manifest.weights] == [
        ("loras/a.safetensors", a, len(A), sha256(A)),
        ("vae/b.safetensors", b, len(B), sha256(B)),
    ]
    with tarfile.open(out) as tar:
        assert tar.getnames()[1:] == ["loras/a.safetensors", "vae/b.safetensors"]
    assert files_below(out.parent) == ["weights.tar"]
    assert f"loras: {a} (another server)" in report
    assert any(line.startswith("[1/2] fetching") for line in report)
    assert any("baked loras/a.safetensors: 50" in line and sha256(A)[:12] in line for line in report)
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


def test_what_is_certain_is_refused_before_anything_is_fetched(
    server: FileServer, make_settings: Callable[..., Settings], out: Path
) -> None:
    settings = make_settings(hf_endpoint=server.url)
    first, second = (f"{server.url}/me/{repo}/resolve/main/a.safetensors" for repo in ("r1", "r2"))
    with pytest.raises(TrainingInputError, match="both become"):
        run({"loras": f"{first}\n{second}"}, out, settings)
    with pytest.raises(TrainingInputError, match="given twice in loras"):
        run({"loras": f"{first}\n{first}"}, out, settings)
    with pytest.raises(WeightsError, match="can run any code"):
        run({"loras": f"{server.url}/me/r1/resolve/main/a.ckpt"}, out, settings)
    with pytest.raises(TrainingInputError, match="only http"):
        run({"loras": f"{first}\nftp://x/y"}, out, settings)
    assert server.seen == []


@pytest.mark.parametrize(
    ("reply", "error", "word"),
    [
        ({"status": 404}, DownloadError, "404"),
        ({"body": b"<html><body>sorry</body></html>"}, WeightsError, "a web page"),
        ({"body": b'{"error": "no"}'}, WeightsError, "a JSON text"),
        ({"body": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"}, WeightsError, "LFS pointer"),
        ({"body": b""}, WeightsError, "an empty file"),
        ({"body": A, "cut_after": 40_000}, WeightsError, "seen 40000"),
        ({"body": A[:-1]}, WeightsError, "is cut"),
        ({"body": A + b"x"}, WeightsError, "after its last tensor"),
        ({"body": A + b"x" * 50, "declared": len(A) - 1}, WeightsError, "is cut"),
        ({"body": A, "chunked": True, "cut_after": 40_000}, DownloadError, "broke the connection off"),
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
    with pytest.raises(WeightsError, match="has no file name"):
        run({"loras": server.put("/", A)}, out, settings)


@pytest.mark.parametrize("at", range(9))
def test_ctrl_c_leaves_nothing(server: FileServer, settings: Settings, out: Path, at: int) -> None:
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if len(lines) == at + 1 and out.name not in files_below(out.parent):
            raise KeyboardInterrupt

    urls = server.put("/a.safetensors", A) + "\n" + server.put("/b.safetensors", B)
    try:
        bake({"loras": urls}, out, settings, NO_TOKENS, report)
    except KeyboardInterrupt:
        assert nothing_left(out)
    else:
        assert at == 8
        assert files_below(out.parent) == ["weights.tar"]


def test_a_long_download_reports_on_its_way(
    server: FileServer, settings: Settings, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    report = run({"loras": server.put("/b.safetensors", B)}, out, settings)[1]
    assert any(line.startswith("  … 1.0 MB of 2.5 MB, ") for line in report)


def test_tokens_are_nowhere_but_at_home(
    server: FileServer, other_server: FileServer, make_settings: Callable[..., Settings], out: Path
) -> None:
    settings = make_settings(hf_endpoint=server.url, civitai_endpoint=server.url.replace("127.0.0.1", "localhost"))
    tokens = Tokens(huggingface="hf_SECRET", civitai="cv_SECRET")
    other_server.put("/cdn", A)
    signed = other_server.url + "/cdn?sig=SECRET"
    link = server.put("/me/repo/blob/main/a.safetensors")
    server.put("/me/repo/resolve/main/a.safetensors", status=302, headers={"Location": signed})
    server.put("/api/download/models/7", B, headers={"Content-Disposition": "attachment; filename=c.safetensors"})
    civitai = settings.civitai_endpoint + "/api/download/models/7?token=SECRET"
    other = other_server.put("/d.safetensors", A) + "?key=SECRET"
    report = Report()
    manifest = bake({"loras": f"{link}\n{civitai}\n{other}"}, out, settings, tokens, report)
    assert [seen.headers.get("Authorization") for seen in server.seen] == ["Bearer hf_SECRET", "Bearer cv_SECRET"]
    assert all("Authorization" not in seen.headers for seen in other_server.seen)
    assert "SECRET" not in report.text
    assert b"SECRET" not in manifest.dump()
    assert b"SECRET" not in out.read_bytes()
    assert any("is a web page about the file; fetching" in line for line in report)
    other_server.put("/cdn", status=403)
    with pytest.raises(ComfyUIModelError) as caught:
        bake({"loras": link}, out, settings, tokens, report)
    assert "SECRET" not in "".join(traceback.format_exception(caught.value)) + repr(caught.value) + report.text
