"""What a person types after scripts/generate, and what their generate.toml says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from comfyui.local.generate.arguments import LOCAL_URL, Options, parse_arguments
from comfyui.local.generate.config import MAX_SEED, LoraChoice, is_link, lora_choice
from comfyui.settings import PROJECT_ROOT


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(
        'checkpoint = "shiitakeMix_v10"\nsteps = 20\ncfg = 6.5\nsize = "832x1216"\n'
        '[loras]\nmimi = "mimi_v3.safetensors:0.7"\nink = "hf://me/models/loras/ink.safetensors"\n',
        "utf-8",
    )
    return path


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A file that says nothing, so that no generate.toml of this machine has a say."""
    path = tmp_path / "empty.toml"
    path.touch()
    return path


def parse(config: Path, *arguments: str, **environ: str) -> Options:
    return parse_arguments(["--prompt", "a fox", "--config", str(config), *arguments], environ)


def refusal(capsys: pytest.CaptureFixture[str], config: Path, *arguments: str) -> str:
    """What argparse says of a command line that it must refuse."""
    with pytest.raises(SystemExit) as caught:
        parse(config, *arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_what_nobody_says_is_what_people_wrap_it_with(empty: Path) -> None:
    options = parse(empty)
    assert (options.steps, options.cfg, options.size, options.strength) == (28, 7.0, (1024, 1024), 0.8)
    assert (options.sampler, options.scheduler) == ("euler_ancestral", "normal")
    assert (options.checkpoint, options.seed, options.loras, options.image) == (None, None, (), None)
    assert (options.format, options.out, options.url) == ("png", PROJECT_ROOT / "outputs", LOCAL_URL)


def test_the_file_counts_before_what_is_built_in_and_a_flag_before_the_file(config: Path) -> None:
    options = parse(config, "--steps", "8")
    assert (options.steps, options.cfg, options.size) == (8, 6.5, (832, 1216))
    assert options.checkpoint == "shiitakeMix_v10"
    assert not options.size_given
    assert parse(config, "--size", "512").size == (512, 512)
    assert parse(config, "--size", "512").size_given


def test_a_short_name_stands_for_its_line_and_a_typed_strength_counts_first(config: Path) -> None:
    loras = parse(config, "--lora", "mimi", "--lora", "ink:0.4", "--lora", "mimi:1", "--lora", "other").loras
    assert loras == (
        LoraChoice("mimi_v3.safetensors", 0.7),
        LoraChoice("hf://me/models/loras/ink.safetensors", 0.4),
        LoraChoice("mimi_v3.safetensors", 1.0),
        LoraChoice("other", None),
    )


@pytest.mark.parametrize(
    ("text", "name", "strength"),
    [
        ("mimi", "mimi", None),
        ("mimi:0.8", "mimi", 0.8),
        ("mimi:-1", "mimi", -1.0),
        ("mimi:+.5", "mimi", 0.5),
        ("mimi:2.", "mimi", 2.0),
        ("sdxl/mimi v2.safetensors:0", "sdxl/mimi v2.safetensors", 0.0),
        ("hf://me/models/a.safetensors", "hf://me/models/a.safetensors", None),
        (
            "https://a.b:8443/x.safetensors#name=y.safetensors:1.5",
            "https://a.b:8443/x.safetensors#name=y.safetensors",
            1.5,
        ),
        ("https://a.b/x?at=12:30:0.8", "https://a.b/x?at=12:30", 0.8),
    ],
)
def test_a_lora_is_a_name_or_a_link_with_or_without_a_strength(text: str, name: str, strength: float | None) -> None:
    assert lora_choice(text) == LoraChoice(name, strength)


def test_what_is_a_link() -> None:
    assert [name for name in ("https://a/b", "hf://a/b", "civitai:1", "mimi", "a/b.pt") if is_link(name)] == [
        "https://a/b",
        "hf://a/b",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--lora", "mimi:strong"), "argument --lora: 'mimi:strong' names no LoRA; write NAME or NAME:STRENGTH"),
        (("--lora", ""), "'' names no LoRA"),
        (("--lora", "mimi:101"), "101 is no strength: they go from -100 to 100"),
        (("--strength", "-100.5"), "argument --strength: -100.5 is no strength"),
        (("--strength", "nan"), "argument --strength: 'nan' is not a number."),
        (("--cfg", "inf"), "argument --cfg: 'inf' is not a number."),
        (
            ("--size", "1000x1001"),
            "argument --size: 1000x1001 is no size: both sides are multiples of 8, from 16; as in 1000x1000.",
        ),
        (("--size", "8"), "as in 16x16"),
        (("--size", "big"), "'big' is no size; write WIDTHxHEIGHT in pixels"),
        (("--seed", "-1"), f"-1 is no seed: they go from 0 to {MAX_SEED}."),
        (("--seed", str(MAX_SEED + 1)), "is no seed"),
        (("--seed", "1.5"), "'1.5' is not a whole number."),
        (("--steps", "0"), "0 is less than 1."),
        (("--batch", "0"), "0 is less than 1."),
        (("--quality", "101"), "101 is not between 0 and 100."),
        (("--denoise", "1.1"), "1.1 is not between 0 and 1."),
        (("--format", "gif"), "'gif' is no format; there are webp, jpg, png."),
        (("--wait", "-1"), "-1 is less than no time."),
    ],
)
def test_a_wrong_value_is_refused_by_name(
    empty: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert said in refusal(capsys, empty, *arguments)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stesp = 3\n", "mine.toml has 'stesp', which is no setting; did you mean 'steps'?"),
        ("zzz = 3\n", "it may have checkpoint, negative"),
        ('size = "100"\n', "mine.toml, size: 100 is no size"),
        ("steps = true\n", "mine.toml, steps: True is neither a text nor a number."),
        ('negative = ["a"]\n', "mine.toml, negative: ['a'] is neither a text nor a number."),
        ("loras = 3\n", "[loras] holds lines such as mimi ="),
        ("[loras]\nmimi = 0.5\n", "[loras] holds lines such as mimi ="),
        ('[loras]\nmimi = "a:200"\n', "mine.toml, loras.mimi: 200 is no strength"),
        ("steps = \n", "mine.toml cannot be read: Invalid value"),
    ],
)
def test_a_mistake_in_the_file_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, "utf-8")
    assert said in refusal(capsys, path, "--lora", "mimi")


def test_a_file_that_was_named_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.toml cannot be read" in refusal(capsys, tmp_path / "nowhere.toml")


def test_paths_are_relative_to_where_they_were_typed(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLER_DIR", str(tmp_path))
    options = parse(empty, "--out", "pics", "--image", "a.png", "--token-file", "t")
    assert (options.out, options.image, options.token_file) == (tmp_path / "pics", tmp_path / "a.png", tmp_path / "t")


def test_the_server_of_the_environment_and_of_the_command_line(empty: Path) -> None:
    assert parse(empty, COG_SERVER_URL="https://gpu.example").url == "https://gpu.example"
    assert parse(empty, "--url", "http://127.0.0.1:1", COG_SERVER_URL="https://gpu.example").url == "http://127.0.0.1:1"


def test_numbers_are_finite_where_they_go_into_json(empty: Path) -> None:
    options = parse(empty, "--cfg", "7.5", "--strength", "-1")
    assert math.isfinite(options.cfg)
    assert options.strength == -1.0
