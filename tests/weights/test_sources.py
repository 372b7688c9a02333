"""What a link means, and where a token may go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.errors import DownloadError, TrainingInputError
from comfyui.settings import Settings
from comfyui.weights.manifest import Manifest, Weight
from comfyui.weights.sources import NO_TOKENS, Kind, Tokens, plain, understand

TOKENS = Tokens(huggingface="hf_SECRET", civitai="cv_SECRET")


def test_tokens_hide_themselves() -> None:
    assert "SECRET" not in f"{TOKENS!r}{TOKENS}{[TOKENS]}"
    assert repr(NO_TOKENS) == "Tokens(given for: none)"


@pytest.mark.parametrize(
    ("link", "fetched", "noticed"),
    [
        ("https://huggingface.co/me/repo/resolve/main/loras/a.safetensors", None, False),
        (
            "https://huggingface.co/me/repo/resolve/main/a.safetensors?download=true",
            "https://huggingface.co/me/repo/resolve/main/a.safetensors",
            False,
        ),
        (
            "https://huggingface.co/me/repo/blob/refs/pr/3/a.safetensors",
            "https://huggingface.co/me/repo/resolve/refs%2Fpr%2F3/a.safetensors",
            True,
        ),
        ("hf://me/repo/a.safetensors", "https://huggingface.co/me/repo/resolve/main/a.safetensors", False),
        ("hf://me/repo@v1/x/a.safetensors", "https://huggingface.co/me/repo/resolve/v1/x/a.safetensors", False),
        (
            "hf://me/repo@refs/pr/3/a.safetensors",
            "https://huggingface.co/me/repo/resolve/refs%2Fpr%2F3/a.safetensors",
            False,
        ),
        ("hf://datasets/me/r/a.safetensors", "https://huggingface.co/datasets/me/r/resolve/main/a.safetensors", False),
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
            "https://huggingface.co/datasets/me/repo/blob/v%2F1/a.safetensors#top",
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
    # A mirror stands for the site itself.
    public = understand("https://huggingface.co/me/repo/resolve/main/a.safetensors", settings, TOKENS)
    assert (public.url, len(public.notices)) == ("http://127.0.0.1:9/hf/me/repo/resolve/main/a.safetensors", 1)
    public = understand("https://civitai.com/api/download/models/7", settings, TOKENS)
    assert (public.url, len(public.notices)) == ("http://127.0.0.1:10/api/download/models/7", 1)


@pytest.mark.parametrize(
    ("entry", "revision", "folder"),
    [
        ("me/repo", "main", ""),
        ("me/my.repo_1@v2", "v2", ""),
        ("hf://me/repo", "main", ""),
        ("https://huggingface.co/me/repo", "main", ""),
        ("https://huggingface.co/me/repo/", "main", ""),
        ("https://huggingface.co/me/repo/tree/main", "main", ""),
        ("https://huggingface.co/me/repo/tree/v%2F1/loras/x", "v/1", "loras/x"),
    ],
)
def test_whole_repos(settings: Settings, entry: str, revision: str, folder: str) -> None:
    source = understand(entry, settings, TOKENS)
    assert source.hub is not None
    assert (source.hub.revision, source.hub.path, source.hub.folder) == (revision, None, folder)
    assert source.secret_headers == {"Authorization": "Bearer hf_SECRET"}
    assert (source.name, source.kind) == (None, Kind.HUGGING_FACE)
    assert understand(entry + "#name=a.safetensors", settings, TOKENS).name == "a.safetensors"


@pytest.mark.parametrize(
    "link",
    [
        "https://huggingface.co",
        "https://huggingface.co/me",
        "https://huggingface.co/docs/hub",
        "https://huggingface.co/settings/tokens",
        "https://huggingface.co/me/repo/resolve/main/../../../x/y/resolve/main/a.safetensors",
        "https://huggingface.co/me/repo/resolve/main/%2e%2e/a.safetensors",
        "https://huggingface.co/me/repo/resolve/main//a.safetensors",
        "https://huggingface.co/me/re%20po/resolve/main/a.safetensors",
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
    assert (source.kind, source.name) == (Kind.CIVITAI, None)
    assert source.url == "https://civitai.com/api/download/models/12?type=Model"
    assert source.display_url == "https://civitai.com/api/download/models/12"
    assert source.secret_headers == {"Authorization": "Bearer cv_SECRET"}
    assert understand(link, settings, NO_TOKENS).secret_headers == {"Authorization": "Bearer QSECRET"}
    assert "SECRET" not in repr(source)
    assert understand("http://www.civitai.com/api/download/models/1", settings, NO_TOKENS).url.startswith("https://civ")


@pytest.mark.parametrize(
    ("link", "version", "model", "home"),
    [
        ("https://civitai.com/models/123", None, 123, "civitai.com"),
        ("https://civitai.com/models/123/some-name/", None, 123, "civitai.com"),
        ("https://civitai.com/models/123/some-name?modelVersionId=456", 456, 123, "civitai.com"),
        ("https://civitai.com/model-versions/456", 456, None, "civitai.com"),
        ("https://civitai.com/api/v1/model-versions/456", 456, None, "civitai.com"),
        ("https://civitai.com/api/v1/models/123", None, 123, "civitai.com"),
        ("https://civitai.red/models/123", None, 123, "civitai.red"),
        ("http://www.civitai.red/api/download/models/456", 456, None, "civitai.red"),
    ],
)
def test_pages_of_civitai(settings: Settings, link: str, version: int | None, model: int | None, home: str) -> None:
    source = understand(link, settings, TOKENS)
    assert source.civitai is not None
    assert (source.civitai.version_id, source.civitai.model_id) == (version, model)
    assert (source.home.scheme, source.home.host, source.home.port) == ("https", home, 443)
    assert source.secret_headers == {"Authorization": "Bearer cv_SECRET"}


@pytest.mark.parametrize("path", ["", "/", "/images/1", "/user/me", "/api/download/attachments/1", "/models/x"])
def test_pages_of_civitai_without_a_model(settings: Settings, path: str) -> None:
    with pytest.raises(TrainingInputError, match="is not the page of a model on Civitai"):
        understand("https://civitai.com" + path, settings, TOKENS)


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
        ("loras/my_lora.safetensors", "no scheme"),
        ("me/repo/my_lora.safetensors", "write hf://me/repo/my_lora.safetensors"),
        ("hf://me", "OWNER/REPO/FILE"),
        ("hf://me/repo/...", "is no file name"),
        ("hf://me/repo@", "OWNER/REPO/FILE"),
        ("hf://me/repo/../a.safetensors", "no file of a repo has"),
        ("https://example.com/a.pt#sha256=abc", "of 3 characters"),
        ("https://example.com/a.pt#sha265=" + "0" * 64, "'sha265' behind its #"),
        ("https://example.com/a.pt#name=a&name=b", "'name' behind its #"),
        ("https://example.com/a.pt#name=", "no file name"),
        ("https://example.com/a.pt#name=../a.pt", "no file name"),
        ("https://example.com/a.pt#name=a%2Fb.pt", "no file name"),
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


def test_what_is_given_behind_the_link(settings: Settings) -> None:
    source = understand("https://example.com/x?y=1#name=a%26b.pt&SHA256=" + "AB" * 32, settings, TOKENS)
    assert (source.url, source.name, source.sha256) == ("https://example.com/x?y=1", "a&b.pt", "ab" * 32)
    source = understand("https://huggingface.co/me/r/resolve/main/a.pt#name=b.pt", settings, TOKENS)
    assert (source.name, source.url) == ("b.pt", "https://huggingface.co/me/r/resolve/main/a.pt")


_STARTS = ["https://example.com/", "https://huggingface.co/a/b/resolve/m/", "http", "hf://a/b/", "a/"]
_STARTS += ["https://civitai.com/models/1", "https://replicate.delivery/x/", "https://example.com/a#name="]


@given(st.text(max_size=30), st.sampled_from(_STARTS))
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
