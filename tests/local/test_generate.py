"""scripts/generate up to the request: names, pictures to begin from, whose token it is. The rest is in tests/e2e."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from comfyui.errors import RequestError
from comfyui.local.generate.arguments import Options, parse_arguments
from comfyui.local.generate.generate import describe, find_endpoint, link_tokens, main, read_image, summary
from comfyui.local.generate.workflow import Beginning, Lora
from comfyui.local.predictions_http import Endpoint
from comfyui.settings import Settings
from comfyui.workflow.parse import workflow_of

Parse = Callable[..., Options]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A file that says nothing, so that no generate.toml of this machine has a say."""
    path = tmp_path / "empty.toml"
    path.touch()
    return path


@pytest.fixture
def parse(config: Path) -> Parse:
    def parsed(*arguments: str, **environ: str) -> Options:
        return parse_arguments(["--prompt", "a fox", "--config", str(config), *arguments], environ)

    return parsed


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def save_picture(path: Path, size: tuple[int, int], orientation: int | None = None) -> Path:
    exif = Image.Exif()
    if orientation is not None:
        exif[274] = orientation
    Image.new("RGB", size, "orange").save(path, exif=exif)
    return path


def test_the_only_checkpoint_of_this_machine_needs_no_name(parse: Parse, settings: Settings) -> None:
    put(
        settings.models_dir,
        "checkpoints/sdxl/my.safetensors",
        "checkpoints/put_checkpoints_here",
        "loras/x.safetensors",
    )
    assert describe(parse(), settings, None, local=True).checkpoint == "sdxl/my.safetensors"
    put(settings.data_dir, "models/checkpoints/sdxl/my.safetensors", "models/checkpoints/by-link/x/y.safetensors")
    assert describe(parse(), settings, None, local=True).checkpoint == "sdxl/my.safetensors"
    with pytest.raises(
        RequestError, match=r"Which checkpoint\? Name it with --checkpoint, or in the file generate.toml.$"
    ):
        describe(parse(), settings, None, local=False)


def test_of_several_checkpoints_none_is_guessed(parse: Parse, settings: Settings) -> None:
    put(settings.models_dir, "checkpoints/b.ckpt", "checkpoints/A.safetensors")
    put(settings.data_dir, "models/checkpoints/c.safetensors")
    with pytest.raises(RequestError, match=r"There are: A.safetensors, b.ckpt, c.safetensors.$"):
        describe(parse(), settings, None, local=True)
    assert describe(parse("--checkpoint", "b"), settings, None, local=True).checkpoint == "b.ckpt"
    assert describe(parse("--checkpoint", "b"), settings, None, local=False).checkpoint == "b.safetensors"


def test_names_get_their_ending_and_loras_their_strength(parse: Parse, settings: Settings) -> None:
    put(settings.models_dir, "loras/mimi.pt", "loras/both.pt", "loras/both.safetensors", "loras/v1.5.safetensors")
    names = ("mimi:1.2", "both", "v1.5", "unknown.sft", "other:0", "https://a.b/c.safetensors:-1")
    typed = [word for name in names for word in ("--lora", name)]
    picture = describe(parse("--checkpoint", "x", "--strength", "0.5", *typed), settings, None, local=True)
    assert picture.loras == (
        Lora("mimi.pt", 1.2),
        Lora("both.safetensors", 0.5),
        Lora("v1.5.safetensors", 0.5),
        Lora("unknown.sft", 0.5),
        Lora("other.safetensors", 0.0),
        Lora("https://a.b/c.safetensors", -1.0),
    )


def test_a_seed_is_chosen_where_none_is_given_and_the_summary_makes_the_picture_again(
    parse: Parse, settings: Settings
) -> None:
    options = parse("--checkpoint", "x", "--lora", "https://a.b/c.safetensors?key=secret:0.4")
    seeds = {describe(options, settings, None, local=False).seed for _ in range(3)}
    assert len(seeds) == 3
    picture = describe(replace(options, seed=0), settings, None, local=False)
    assert picture.seed == 0
    assert summary(picture) == (
        "Seed 0 (--seed 0 makes it again), 1024x1024, 28 steps, x.safetensors, LoRA https://a.b/c.safetensors:0.4"
    )


@pytest.mark.parametrize(
    ("name", "orientation", "in_workflow", "size"),
    [
        ("a.png", None, "input.png", (400, 300)),
        ("a.jpeg", None, "input.jpg", (400, 300)),
        ("a.jpg", 3, "input.jpg", (400, 300)),
        ("a.jpg", 6, "input.jpg", (300, 400)),
        ("a.webp", None, "input.webp", (400, 300)),
    ],
)
def test_a_picture_to_begin_from_is_sent_as_it_is(
    tmp_path: Path, name: str, orientation: int | None, in_workflow: str, size: tuple[int, int]
) -> None:
    path = save_picture(tmp_path / name, (400, 300), orientation)
    image = read_image(path)
    assert (image.name, image.size) == (in_workflow, size)
    kind, _, body = image.uri.partition(";base64,")
    assert kind == f"data:image/{'jpeg' if 'jp' in name else path.suffix[1:]}"
    assert base64.b64decode(body) == path.read_bytes()


def test_a_picture_keeps_its_shape_unless_a_size_was_typed(parse: Parse, settings: Settings, tmp_path: Path) -> None:
    image = read_image(save_picture(tmp_path / "a.png", (400, 300)))
    kept = describe(parse("--checkpoint", "x"), settings, image, local=False)
    assert (kept.width, kept.height, kept.beginning) == (1184, 888, Beginning("input.png", 0.6))
    typed = describe(parse("--checkpoint", "x", "--size", "64", "--denoise", "1"), settings, image, local=False)
    assert (typed.width, typed.height, typed.beginning) == (64, 64, Beginning("input.png", 1.0))


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    for name in ("a.png", "nowhere.png"):
        with pytest.raises(RequestError, match=f"{name} cannot be read as a picture"):
            read_image(tmp_path / name)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.bmp")
    with pytest.raises(RequestError, match="in the format BMP; save it as png, jpg or webp"):
        read_image(tmp_path / "a.bmp")


def test_the_environments_token_is_for_the_environments_server_alone(
    parse: Parse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COG_SERVER_TOKEN", "of-the-environment")
    home = {"COG_SERVER_URL": "https://gpu.example/cog"}
    assert find_endpoint(parse(**home), home).token == "of-the-environment"
    assert find_endpoint(parse("--url", "https://gpu.example:443/other", **home), home).token == "of-the-environment"
    for other in ("https://other.example", "https://gpu.example:8443", "http://127.0.0.1:5000"):
        assert find_endpoint(parse("--url", other, **home), home).token is None
    assert find_endpoint(parse(), {}).token is None
    (tmp_path / "token").write_text("of-the-file\n", "utf-8")
    named = parse("--url", "https://other.example", "--token-file", str(tmp_path / "token"), **home)
    assert find_endpoint(named, home).token == "of-the-file"


def test_tokens_for_links_go_to_the_server_only_when_given_and_only_where_nobody_listens(
    parse: Parse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "of-the-environment")
    (tmp_path / "hf").write_text("hf_secret\n", "utf-8")
    (tmp_path / "civitai").write_text("c1v1tai", "utf-8")
    home, remote = Endpoint("http://127.0.0.1:5000"), Endpoint("http://gpu.example")
    assert link_tokens(parse(), remote) == {}
    both = parse("--hf-token-file", str(tmp_path / "hf"), "--civitai-token-file", str(tmp_path / "civitai"))
    expected = {"huggingface_token": "hf_secret", "civitai_token": "c1v1tai"}
    assert link_tokens(both, home) == expected
    assert link_tokens(both, Endpoint("https://gpu.example")) == expected
    with pytest.raises(RequestError, match="huggingface_token was not sent: over http://") as caught:
        link_tokens(both, remote)
    assert "hf_secret" not in str(caught.value)
    with pytest.raises(RequestError, match="nowhere cannot be read"):
        link_tokens(parse("--hf-token-file", str(tmp_path / "nowhere")), home)


def test_the_workflow_is_printed_without_a_server(
    config: Path, capsys: pytest.CaptureFixture[str], nobody: str
) -> None:
    arguments = ["--prompt", "a fox", "--config", str(config), "--url", nobody, "--checkpoint", "x", "--print-workflow"]
    assert main(arguments) == 0
    workflow = workflow_of(json.loads(capsys.readouterr().out))
    assert [node.class_type for node in workflow.nodes.values()].count("KSampler") == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_a_failure_is_one_message(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], nobody: str, as_json: bool
) -> None:
    arguments = ["--prompt", "a", "--config", str(config), "--url", nobody, "--checkpoint", "x", "--out", str(tmp_path)]
    assert main([*arguments, *(["--json"] if as_json else [])]) == 1
    printed = capsys.readouterr()
    if as_json:
        answer = json.loads(printed.out)
        assert answer["error"] == "EngineError"
        assert answer["message"].startswith(f"There is no server at {nobody}.")
    else:
        assert printed.out == ""
        assert printed.err.splitlines()[-1].startswith(
            f"There is no server at {nobody}. Start one with ./scripts/serve"
        )


def test_an_output_folder_that_is_a_file_is_known_before_the_picture_is_made(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], nobody: str
) -> None:
    (tmp_path / "out").touch()
    arguments = ["--prompt", "a", "--config", str(config), "--url", nobody, "--checkpoint", "x", "--out"]
    assert main([*arguments, str(tmp_path / "out")]) == 1
    assert "File exists" in capsys.readouterr().err
