"""Files on Civitai, asked for by its API and its download links."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.errors import DownloadError, WeightsError
from comfyui.settings import Settings
from comfyui.weights.manifest import Manifest, Weight
from comfyui.weights.sources import RemoteFile, Tokens, understand
from comfyui.weights.sources.civitai import parse_version
from comfyui.weights.sources.civitai_links import download_url, manifest_url
from comfyui.weights.sources.resolve import resolve
from tests.weights.civitai_standin import GOOD, CivitaiStandin, File, Version
from tests.weights.samples import safetensors, sha256
from tests.weights.storage_standin import Answer, StorageStandin

A, B, C = safetensors(1, 4096), safetensors(2, 5001), safetensors(3, 6000)


@pytest.fixture
def storage() -> Iterator[StorageStandin]:
    with StorageStandin() as running:
        yield running


@pytest.fixture
def site(storage: StorageStandin) -> Iterator[CivitaiStandin]:
    with CivitaiStandin(storage) as running:
        one = File(11, "old.safetensors", A, primary=True)
        pickled = File(21, "lora.pt", b"PK\x03\x04", format="PickleTensor", primary=True)
        several = [pickled, File(22, "lora.safetensors", B), File(23, "vae.safetensors", C, type="VAE")]
        running.versions = {10: Version(1, [one]), 20: Version(1, several), 30: Version(3, [one], login=True)}
        yield running


@pytest.fixture
def settings(make_settings: Callable[..., Settings], site: CivitaiStandin) -> Settings:
    return make_settings(civitai_endpoint=site.url)


def ask(entry: str, settings: Settings, token: str | None = None) -> RemoteFile:
    return resolve(understand(entry, settings, Tokens(civitai=token)), settings, sleep=lambda _: None)


@pytest.mark.parametrize(
    ("entry", "name", "body", "file_id"),
    [
        ("https://civitai.com/api/download/models/10", "old.safetensors", A, 11),
        ("https://civitai.com/api/download/models/10?type=Model&format=SafeTensor&token=x", "old.safetensors", A, 11),
        ("https://civitai.com/models/1?modelVersionId=10", "old.safetensors", A, 11),
        ("https://civitai.com/models/1/a-name?modelVersionId=10#heading", "old.safetensors", A, 11),
        ("https://civitai.com/model-versions/10", "old.safetensors", A, 11),
        ("https://civitai.com/models/1/a-name", "lora.safetensors", B, 22),
        ("https://civitai.com/api/download/models/20", "lora.safetensors", B, 22),
        ("https://civitai.com/api/download/models/20?format=safetensor", "lora.safetensors", B, 22),
        ("https://civitai.com/api/download/models/20?type=VAE", "vae.safetensors", C, 23),
        ("https://civitai.com/api/download/models/20?fileId=23", "vae.safetensors", C, 23),
        ("https://civitai.com/api/download/models/20?format=PickleTensor", "lora.pt", b"PK\x03\x04", 21),
        ("https://civitai.com/api/download/models/10#name=new.safetensors", "new.safetensors", A, 11),
    ],
)
def test_every_form(site: CivitaiStandin, settings: Settings, entry: str, name: str, body: bytes, file_id: int) -> None:
    remote = ask(entry.replace("&token=x", f"&token={GOOD}"), settings)
    assert (remote.name, remote.size, remote.sha256) == (name, len(body), sha256(body))
    version = 10 if file_id == 11 else 20
    assert remote.manifest_url == f"{site.url}/api/download/models/{version}?fileId={file_id}"
    assert remote.ranges
    Manifest((Weight(f"loras/{name}", remote.manifest_url, len(body), sha256(body)),)).dump()
    assert ask(remote.manifest_url, settings).url == remote.url


def test_what_was_chosen_is_said(site: CivitaiStandin, settings: Settings) -> None:
    remote = ask("https://civitai.com/models/1", settings)
    assert remote.notices == (
        f"{site.url}/models/1: taking its newest version, 'v20' ({site.url}/model-versions/20).",
        f"{site.url}/models/1: taking 'lora.safetensors' and not the pickle 'lora.pt'.",
    )


def test_the_token_goes_to_the_site_alone(site: CivitaiStandin, storage: StorageStandin, settings: Settings) -> None:
    remote = ask("https://civitai.com/models/3", settings, GOOD)
    assert remote.sha256 == sha256(A)
    assert site.tokens_seen == {f"Bearer {GOOD}"}
    assert storage.tokens_seen == {None}
    assert "SECRET" not in f"{remote!r}{remote.manifest_url}{remote.notices}{[seen.target for seen in site.seen]}"


def test_a_token_in_the_link_becomes_a_header(site: CivitaiStandin, settings: Settings) -> None:
    remote = ask(f"{site.url}/api/download/models/30?token={GOOD}", settings)
    assert remote.sha256 == sha256(A)
    assert "sent as a header instead" in remote.source.notices[0]
    assert not [seen for seen in site.seen if "SECRET" in seen.target]


def test_a_version_that_the_api_hides(site: CivitaiStandin, settings: Settings) -> None:
    site.versions[10].listed = False
    remote = ask("https://civitai.com/api/download/models/10", settings)
    assert (remote.name, remote.size, remote.sha256) == ("old.safetensors", len(A), None)
    assert "does not list it" in remote.notices[0]
    assert remote.manifest_url == f"{site.url}/api/download/models/10"


def test_a_file_without_a_hash(site: CivitaiStandin, settings: Settings) -> None:
    site.versions[10].files = [replace(site.versions[10].files[0], hashed=False)]
    assert ask("https://civitai.com/models/1?modelVersionId=10", settings).sha256 is None


def test_a_pickle_where_nothing_else_is(site: CivitaiStandin, settings: Settings) -> None:
    del site.versions[20].files[1]
    assert ask("https://civitai.com/models/1", settings).name == "lora.pt"


def test_the_published_sha256_and_the_given_one(settings: Settings) -> None:
    ask(f"https://civitai.com/models/1?modelVersionId=10#sha256={sha256(A)}", settings)
    with pytest.raises(WeightsError, match=sha256(B)):
        ask(f"https://civitai.com/models/1?modelVersionId=10#sha256={sha256(B)}", settings)


EARLY = {"availability": "EarlyAccess", "earlyAccessEndsAt": "2027-01-02T03:04:05.000Z"}
D = "{site}/api/download/models/"
MESSAGES: list[tuple[str, str | None, dict[str, Any], int | None, str]] = [
    (
        "/30",
        None,
        {"login": True},
        401,
        D + "30 was not given: its creator requires a log-in. Give civitai_api_token (made in your account settings on "
        "civitai.com).",
    ),
    (
        "/30",
        "cv_SECRET_bad",
        {"login": True},
        401,
        D
        + "30 was not given: the civitai_api_token is not valid, or its account may not have the file. Make a new one "
        "in your account settings on civitai.com.",
    ),
    (
        "/10",
        GOOD,
        {"refuses": 403, "more": EARLY},
        403,
        D
        + "10 was not given: it is in early access until 2027-01-02: buy access on its page with the token's account, "
        "or wait.",
    ),
    (
        "/10",
        None,
        {"refuses": 401, "more": EARLY},
        401,
        D + "10 was not given: its creator requires a log-in. Give civitai_api_token (made in your account settings on "
        "civitai.com).",
    ),
    (
        "/10",
        None,
        {"refuses": 401, "more": {"usageControl": "Generation"}},
        401,
        D + "10 was not given: its creator allows its use on the site only, not its download. Use another model.",
    ),
    (
        "/10",
        None,
        {"refuses": 410},
        410,
        D + "10 was not given: the model was archived or taken down. Use another source.",
    ),
    ("/10", None, {"mode": "Archived"}, None, D + "10 was archived or taken down. Use another source."),
    ("/10", None, {"files": []}, None, D + "10 has no public file. Use another source."),
    (
        "/10",
        None,
        {"refuses": 404},
        404,
        D + "10 was not given: the file was deleted, or is not public. Look at the model's page for another version.",
    ),
    (
        "/99",
        None,
        {},
        404,
        D + "99 was not found: it was deleted, is not public, or is shown only on Civitai's other site (civitai.com, "
        "civitai.red). Open its page in a browser.",
    ),
    (
        "/20?format=GGUF&type=Model",
        None,
        {},
        None,
        D + "20 has no file with format=GGUF, type=Model. It has: lora.pt (PickleTensor, Model); lora.safetensors "
        "(SafeTensor, Model); vae.safetensors (SafeTensor, VAE). Copy the link of one file's Download button.",
    ),
]


@pytest.mark.parametrize(("path", "token", "changes", "status", "message"), MESSAGES)
def test_errors(
    site: CivitaiStandin,
    settings: Settings,
    path: str,
    token: str | None,
    changes: dict[str, Any],
    status: int | None,
    message: str,
) -> None:
    number = int(path[1:3])
    if changes:
        site.versions[number] = replace(site.versions[number], **changes)
    with pytest.raises(DownloadError) as caught:
        ask(f"{site.url}/api/download/models{path}", settings, token)
    assert str(caught.value) == message.format(site=site.url)
    assert caught.value.status == status
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


def test_a_page_of_no_model(site: CivitaiStandin, settings: Settings) -> None:
    with pytest.raises(DownloadError, match="/models/9 was not found"):
        ask("https://civitai.com/models/9", settings)
    site.broken = [Answer(200, body=b'{"modelVersions": [{"name": "x"}, 3]}')]
    with pytest.raises(DownloadError, match="/models/1 has no published version"):
        ask("https://civitai.com/models/1", settings)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"[" * 100_000])
def test_an_api_that_gives_no_json(site: CivitaiStandin, settings: Settings, body: bytes) -> None:
    site.broken = [Answer(200, body=body)]
    with pytest.raises(DownloadError, match="not its JSON"):
        ask("https://civitai.com/models/1", settings)


def test_an_api_that_refuses_or_breaks_off(site: CivitaiStandin, settings: Settings) -> None:
    site.broken = [Answer(401)]
    with pytest.raises(DownloadError, match="civitai_api_token is not valid"):
        ask("https://civitai.com/models/1", settings, "cv_SECRET_bad")
    site.broken = [Answer(200, {"Content-Length": "100", "Connection": "close"}, b"{")] * 3
    with pytest.raises(DownloadError, match=r"/models/1.* broke the connection off after 1 bytes"):
        ask("https://civitai.com/models/1", settings)


def test_a_log_in_page(site: CivitaiStandin, settings: Settings) -> None:
    page = Answer(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>log in</html>")
    site.broken = [Answer(404), page]
    with pytest.raises(DownloadError, match="requires a log-in"):
        ask("https://civitai.com/api/download/models/10", settings)


def test_a_busy_site_is_asked_again(site: CivitaiStandin, settings: Settings) -> None:
    site.broken = [Answer(503), Answer(429)]
    assert ask("https://civitai.com/models/1", settings).size == len(B)


_KEYS = ["files", "model", "mode", "name", "type", "metadata", "format", "hashes", "SHA256", "sizeKB", "id", "primary"]
_KEYS += ["downloadUrl", "availability", "earlyAccessEndsAt", "usageControl"]
_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(_KEYS),
            inner,
            max_size=6,
        )
    ),
    max_leaves=25,
)


@given(st.dictionaries(st.sampled_from(["files", "model", "availability", "usageControl"]), _JSON))
def test_no_json_breaks_the_parser(answer: dict[str, Any]) -> None:
    for file in parse_version(answer).files:
        assert file.size is None or file.size >= 0
        Manifest((Weight("loras/a", download_url("https://civitai.com", 1, file.parameters), 1, "0" * 64),)).dump()


@given(st.lists(st.tuples(st.sampled_from(["fileId", "type", "format", "token", "x"]), st.text(max_size=30))))
def test_a_download_link_can_always_be_written_down(parameters: list[tuple[str, str]]) -> None:
    url = download_url("https://user:SECRET@civitai.com", 1, [*parameters, ("token", "SECRET")])
    Manifest((Weight("loras/a", manifest_url(url), 1, "0" * 64),)).dump()
    assert "SECRET" not in manifest_url(url)
