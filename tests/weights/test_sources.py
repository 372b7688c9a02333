"""What a link means, and where a token may go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.errors import DownloadError, TrainingInputError
from comfyui.settings import Settings
from comfyui.weights.manifest import Manifest, Weight
from comfyui.weights.sources import NO_TOKENS, Kind, Tokens, parse_list, plain, understand

TOKENS = Tokens(huggingface="hf_SECRET", civitai="cv_SECRET")


@pytest.mark.parametrize(
    ("text", "entries"),
    [(None, []), ("", []), (" \n\t\n", []), ("a", ["a"]), (" a \r\n\n b\n", ["a", "b"])],
)
def test_lists(text: str | None, entries: list[str]) -> None:
    assert parse_list(text) == entries


def test_tokens_hide_themselves() -> None:
    assert "SECRET" not in f"{TOKENS!r}{TOKENS}{[TOKENS]}"
    assert repr(NO_TOKENS) == "Tokens(given for: none)"


@pytest.mark.parametrize(
    ("link", "fetched", "noticed"),
    [
        ("https://huggingface.co/me/repo/resolve/main/loras/a.safetensors", None, False),
        ("https://huggingface.co/me/repo/resolve/main/a.safetensors?download=true", None, False),
        (
            "https://huggingface.co/me/repo/blob/main/loras/a.safetensors",
            "https://huggingface.co/me/repo/resolve/main/loras/a.safetensors",
            True,
        ),
        (
            "https://huggingface.co/me/repo/raw/main/a.safetensors",
            "https://huggingface.co/me/repo/resolve/main/a.safetensors",
            True,
        ),
        (
            "https://huggingface.co/datasets/me/repo/blob/v%2F1/a.safetensors#frag",
            "https://huggingface.co/datasets/me/repo/resolve/v%2F1/a.safetensors",
            True,
        ),
        (
            "https://huggingface.co/gpt2/blob/main/a.safetensors",
            "https://huggingface.co/gpt2/resolve/main/a.safetensors",
            True,
        ),
        (
            "http://hf.co/me/repo/blob/main/a.safetensors",
            "https://huggingface.co/me/repo/resolve/main/a.safetensors",
            True,
        ),
    ],
)
def test_hugging_face_links(settings: Settings, link: str, fetched: str | None, noticed: bool) -> None:
    source = understand(link, settings, TOKENS)
    assert source.url == (fetched or link)
    assert source.display_url == source.url.partition("?")[0]
    assert source.kind is Kind.HUGGING_FACE
    assert source.name == "a.safetensors"
    assert source.secret_headers == {"Authorization": "Bearer hf_SECRET"}
    assert bool(source.notices) is noticed
    assert not noticed or source.display_url in source.notices[-1]
    assert "SECRET" not in repr(source)


def test_a_mirror_gets_the_token_too(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(hf_endpoint="http://127.0.0.1:9/hf", civitai_endpoint="http://127.0.0.1:10")
    source = understand("http://127.0.0.1:9/hf/me/repo/blob/main/a.safetensors", settings, TOKENS)
    assert source.url == "http://127.0.0.1:9/hf/me/repo/resolve/main/a.safetensors"
    assert source.secret_headers
    assert understand("http://127.0.0.1:10/api/download/models/1", settings, TOKENS).kind is Kind.CIVITAI


@pytest.mark.parametrize(
    "link",
    [
        "https://huggingface.co",
        "https://huggingface.co/me/repo",
        "https://huggingface.co/me/repo/tree/main",
        "https://huggingface.co/me/repo/tree/main/loras",
        "https://huggingface.co/me/repo/resolve/main",
        "https://huggingface.co/me/repo/resolve/main/",
        "https://huggingface.co/me/repo/commit/main/a.safetensors",
    ],
)
def test_hugging_face_links_without_a_file(settings: Settings, link: str) -> None:
    with pytest.raises(TrainingInputError, match="OWNER/REPO/resolve/main/FILE") as caught:
        understand(link, settings, TOKENS, input_name="loras")
    assert caught.value.input_name == "loras"


def test_civitai_links(settings: Settings) -> None:
    link = "https://civitai.com/api/download/models/12?type=Model&token=QSECRET"
    source = understand(link, settings, TOKENS)
    assert (source.kind, source.url, source.name) == (Kind.CIVITAI, link, None)
    assert source.display_url == "https://civitai.com/api/download/models/12"
    assert source.secret_headers == {"Authorization": "Bearer cv_SECRET"}
    assert "SECRET" not in repr(source)
    assert understand("http://www.civitai.com/api/download/models/1", settings, NO_TOKENS).url.startswith("https://civ")


def test_a_civitai_page_is_answered_with_the_right_link(settings: Settings) -> None:
    with pytest.raises(TrainingInputError, match=r"https://civitai\.com/api/download/models/456$"):
        understand("https://civitai.com/models/123/some-name?modelVersionId=456", settings, TOKENS)


@pytest.mark.parametrize(
    "link",
    [
        "https://example.com/a.safetensors",
        "https://huggingface.co.example.com/me/repo/resolve/main/a.safetensors",
        "https://huggingface.co:444/me/repo/resolve/main/a.safetensors",
        "https://huggingface.co@example.com/a.safetensors",
        "https://notcivitai.com/api/download/models/1",
    ],
)
def test_no_other_host_gets_a_token(settings: Settings, link: str) -> None:
    source = understand(link, settings, TOKENS)
    if source.kind is Kind.OTHER:
        assert "SECRET" not in str(source.secret_headers)
    else:
        assert source.home.host == "huggingface.co"  # the same host on another port is spelled back to its own


def test_a_password_in_a_link_goes_into_a_header() -> None:
    source = plain("https://me:p%40ss@example.com/a.safetensors?x=1#y")
    assert source.url == "https://example.com/a.safetensors?x=1"
    assert source.display_url == "https://example.com/a.safetensors"
    assert source.secret_headers == {"Authorization": "Basic bWU6cEBzcw=="}


@pytest.mark.parametrize(
    ("link", "word"),
    [
        ("ftp://example.com/a", "ftp:"),
        ("file:///etc/passwd", "file:"),
        ("example.com/a", "no scheme"),
        ("my_lora", "no scheme"),
        ("https://", "no host"),
        ("https://[::1/a", "can be read"),
        ("https://example.com:port/a", "can be read"),
        ("https://example.com\\@evil/a", "backslash"),
        ("https://example.com/a\x00b", "control character"),
        ("https://example.com/a.pt https://example.com/b.pt", "one URL per line"),
        ("https://example.com/a.pt,https://example.com/b.pt", "one URL per line"),
        ("https://example.com/a b.pt", "%20"),
    ],
)
def test_what_is_no_link(settings: Settings, link: str, word: str) -> None:
    with pytest.raises(TrainingInputError, match=word) as caught:
        understand(link, settings, TOKENS, input_name="vaes")
    assert caught.value.input_name == "vaes"


def test_plain_refuses_other_schemes() -> None:
    with pytest.raises(DownloadError, match="only http and https"):
        plain("file:///etc/passwd")


@given(st.text(max_size=30), st.sampled_from(["https://example.com/", "https://huggingface.co/a/b/resolve/m/", "http"]))
def test_what_is_understood_can_be_written_into_a_manifest(text: str, start: str) -> None:
    # Otherwise a bake of hours would fail at its very end.
    try:
        source = understand(start + text, Settings.from_environ({}), TOKENS)
    except TrainingInputError:
        return
    Manifest((Weight("loras/a.safetensors", source.display_url, 1, "0" * 64),)).dump()


def test_a_copied_token_is_cleaned_and_a_broken_one_refused() -> None:
    assert Tokens(huggingface=" hf_x\n", civitai=" ") == Tokens(huggingface="hf_x")
    for bad in ("hf_SEC\nRET", "hf_SECRETあ", "SECRET SECRET"):
        with pytest.raises(TrainingInputError, match="civitai_api_token") as caught:
            Tokens(civitai=bad)
        assert "SEC" not in str(caught.value)
