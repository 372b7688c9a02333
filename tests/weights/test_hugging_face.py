"""Files on Hugging Face, asked for by the real huggingface_hub."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, get_hf_file_metadata

from comfyui.errors import DownloadError, WeightsError
from comfyui.settings import Settings
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.manifest import Manifest, Weight
from comfyui.weights.sources import RemoteFile, Tokens, understand
from comfyui.weights.sources.resolve import resolve
from tests.weights.hugging_face_standin import COMMIT, GOOD, NO_ACCESS, HuggingFaceStandin, Repo
from tests.weights.samples import safetensors, sha256
from tests.weights.storage_standin import Answer, StorageStandin

A, B = safetensors(1, 4000), safetensors(2, 6000)


@pytest.fixture
def cdn() -> Iterator[StorageStandin]:
    with StorageStandin() as running:
        yield running


@pytest.fixture
def hub(cdn: StorageStandin) -> Iterator[HuggingFaceStandin]:
    with HuggingFaceStandin(cdn) as running:
        running.repos["me/models"] = Repo(
            {"README.md": b"hi", "loras/a.safetensors": A, "small.safetensors": B, "loras/b c.safetensors": B},
            small=frozenset({"README.md", "small.safetensors"}),
            revisions=("main", "refs/pr/1", COMMIT),
        )
        running.repos["me/one"] = Repo({"README.md": b"hi", "my lora.safetensors": A, "my lora.ckpt": b"x"})
        running.repos["me/none"] = Repo({"README.md": b"hi"})
        running.repos["me/private"] = Repo({"a.safetensors": A}, private=True)
        running.repos["me/gated"] = Repo({"a.safetensors": A}, gated=True)
        running.repos["datasets/me/data"] = Repo({"a.safetensors": A})
        yield running
    huggingface_hub.close_session()


@pytest.fixture
def settings(make_settings: Callable[..., Settings], hub: HuggingFaceStandin) -> Settings:
    return make_settings(hf_endpoint=hub.url)


def ask(entry: str, settings: Settings, token: str | None = None) -> RemoteFile:
    source = understand(entry, settings, Tokens(huggingface=token))
    return resolve(source, settings, sleep=lambda _: None)


@pytest.mark.parametrize(
    "entry",
    [
        "hf://me/models/loras/a.safetensors",
        "hf://me/models@main/loras/a.safetensors",
        "hf://me/models@refs/pr/1/loras/a.safetensors",
        "https://huggingface.co/me/models/resolve/main/loras/a.safetensors?download=true",
        "https://huggingface.co/me/models/blob/main/loras/a.safetensors",
        "https://huggingface.co/me/models/raw/main/loras/a.safetensors",
        "https://huggingface.co/me/models/resolve/refs%2Fpr%2F1/loras/a.safetensors",
        "https://huggingface.co/me/models/blob/refs/pr/1/loras/a.safetensors",
        "https://huggingface.co/me/models/tree/main/loras#name=a.safetensors",
    ],
)
def test_every_form_ends_at_the_commit(hub: HuggingFaceStandin, settings: Settings, entry: str) -> None:
    hub.repos["me/models"].files.pop("loras/b c.safetensors")
    remote = ask(entry, settings)
    assert remote.url == remote.manifest_url == f"{hub.url}/me/models/resolve/{COMMIT}/loras/a.safetensors"
    assert (remote.name, remote.size, remote.sha256) == ("a.safetensors", len(A), sha256(A))
    assert remote.ranges
    assert remote.validator
    Manifest((Weight("loras/a.safetensors", remote.manifest_url, len(A), sha256(A)),)).dump()
    again = ask(remote.manifest_url, settings)
    assert again.url == remote.url


def test_the_bytes_come_from_where_it_says(settings: Settings) -> None:
    remote = ask("hf://me/models/loras/b%20c.safetensors", settings)
    assert remote.name == "b c.safetensors"
    pinned = understand(remote.url, settings, Tokens())
    with HttpOpener(settings) as opener, opener.open(pinned, pinned.url) as opened:
        assert opened.response.content == B


def test_a_small_file_has_no_sha256(settings: Settings) -> None:
    remote = ask("hf://me/models/small.safetensors", settings)
    assert (remote.size, remote.sha256) == (len(B), None)


def test_datasets(hub: HuggingFaceStandin, settings: Settings) -> None:
    remote = ask("hf://datasets/me/data/a.safetensors", settings)
    assert remote.url == f"{hub.url}/datasets/me/data/resolve/{COMMIT}/a.safetensors"


def test_a_renamed_repo(hub: HuggingFaceStandin, settings: Settings) -> None:
    hub.renamed["me/old"] = "me/models"
    assert ask("hf://me/old/loras/a.safetensors", settings).sha256 == sha256(A)
    with pytest.raises(DownloadError, match="has 3 weight files"):
        ask("me/old", settings)


@pytest.mark.parametrize("entry", ["me/one", "hf://me/one", "https://huggingface.co/me/one", "me/one@main"])
def test_a_repo_with_one_weights_file(settings: Settings, entry: str) -> None:
    remote = ask(entry, settings)
    assert (remote.name, remote.sha256) == ("my lora.safetensors", sha256(A))
    assert remote.manifest_url.endswith(f"/me/one/resolve/{COMMIT}/my%20lora.safetensors")
    assert any("its one weights file is my lora.safetensors" in notice for notice in remote.notices)


def test_a_server_that_names_no_commit(hub: HuggingFaceStandin, settings: Settings) -> None:
    hub.says_commit = False
    remote = ask("hf://me/models/loras/a.safetensors", settings)
    assert remote.url.endswith("/me/models/resolve/main/loras/a.safetensors")
    assert "not pinned" in remote.notices[-1]


MESSAGES = [
    (
        "hf://me/models/lora/a.safetensor",
        None,
        404,
        "{link} was not given: there is no 'lora/a.safetensor' in {hub}/me/models at 'main'. Did you mean "
        "'loras/a.safetensors'?",
    ),
    (
        "hf://me/models/zzz.xyz",
        None,
        404,
        "{link} was not given: there is no 'zzz.xyz' in {hub}/me/models at 'main'. Its weight files are: "
        "loras/a.safetensors, small.safetensors, loras/b c.safetensors.",
    ),
    (
        "hf://me/none/a.safetensors",
        None,
        404,
        "{link} was not given: there is no 'a.safetensors' in {hub}/me/none at 'main'. It has no weight files.",
    ),
    (
        "hf://me/models@v2/loras/a.safetensors",
        None,
        404,
        "{link} was not given: {hub}/me/models has no branch, tag or commit 'v2'. Most repos have main.",
    ),
    (
        "hf://me/missing/a.safetensors",
        None,
        401,
        "{link} was not given: {hub}/me/missing does not exist, or is private and needs a token. Check the name; if it "
        "is private, give huggingface_read_token.",
    ),
    (
        "hf://me/private/a.safetensors",
        None,
        401,
        "{link} was not given: {hub}/me/private does not exist, or is private and needs a token. Check the name; if it "
        "is private, give huggingface_read_token.",
    ),
    (
        "hf://me/private/a.safetensors",
        NO_ACCESS,
        404,
        "{link} was not given: there is no {hub}/me/private that the token given can read. Check the name; if it is "
        "private, give a huggingface_read_token that may read it.",
    ),
    (
        "me/private",
        NO_ACCESS,
        404,
        "{link} was not given: there is no {hub}/me/private that the token given can read. Check the name; if it is "
        "private, give a huggingface_read_token that may read it.",
    ),
    (
        "hf://me/models/loras/a.safetensors",
        "hf_SECRET_wrong",
        401,
        "{link} was not given: the huggingface_read_token is not valid. It may have expired, been revoked or been "
        "copied in part; make a new one at https://huggingface.co/settings/tokens.",
    ),
    (
        "hf://me/gated/a.safetensors",
        None,
        401,
        "{link} was not given: it is gated. Accept the terms at {hub}/me/gated, then give that account's "
        "huggingface_read_token.",
    ),
    (
        "hf://me/gated/a.safetensors",
        NO_ACCESS,
        403,
        "{link} was not given: it is gated, and the token's account may not read it yet. Accept the terms at "
        "{hub}/me/gated with that account; a fine-grained token also needs the permission to read gated repos.",
    ),
    (
        "me/models",
        None,
        None,
        "{hub}/me/models has 3 weight files: loras/a.safetensors, small.safetensors, loras/b c.safetensors. Name one "
        "file, as in hf://me/models/loras/a.safetensors.",
    ),
    (
        "me/none",
        None,
        None,
        "{hub}/me/none has no weight file. Name one file, as in hf://me/none/FILE.safetensors.",
    ),
]


@pytest.mark.parametrize(("entry", "token", "status", "message"), MESSAGES)
def test_errors(
    hub: HuggingFaceStandin, settings: Settings, entry: str, token: str | None, status: int | None, message: str
) -> None:
    link = understand(entry, settings, Tokens()).display_url
    with pytest.raises(DownloadError) as caught:
        ask(entry, settings, token)
    assert str(caught.value) == message.format(hub=hub.url, link=link)
    assert (caught.value.status, caught.value.url) == (status, link)
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(403), "Its name|does not exist, or is private"),
        (Answer(503), "503 .the server's own failure"),
        (Answer(429, {"Retry-After": "7"}), "Wait and try again .the server says in 7 s"),
        (Answer(403, {"X-Error-Message": "Access to this resource is disabled."}), "has disabled"),
        (Answer(400), "400"),
    ],
)
def test_other_refusals(hub: HuggingFaceStandin, settings: Settings, answer: Answer, words: str) -> None:
    hub.broken = [answer] * 3
    with pytest.raises(DownloadError, match=words):
        ask("hf://me/models/loras/a.safetensors", settings)


def test_a_hub_that_does_not_list_its_files(hub: HuggingFaceStandin, settings: Settings) -> None:
    hub.broken = [Answer(404, {"X-Error-Code": "EntryNotFound"}), Answer(400)]
    with pytest.raises(DownloadError, match=r"there is no 'x\.pt' in .* at 'main'\. Check the link\."):
        ask("hf://me/models/x.pt", settings)


def test_a_name_that_no_repo_has(settings: Settings) -> None:
    with pytest.raises(DownloadError, match="'me/a--b' cannot be the name of a repo"):
        ask("me/a--b", settings)


def test_a_token_without_permission(hub: HuggingFaceStandin, settings: Settings) -> None:
    hub.broken = [Answer(403, {"X-Error-Message": "no"})]
    with pytest.raises(DownloadError, match=r"huggingface_read_token has no access to .*/me/models. A fine-grained"):
        ask("hf://me/models/loras/a.safetensors", settings, GOOD)


def test_a_hub_that_recovers(hub: HuggingFaceStandin, settings: Settings) -> None:
    hub.broken = [Answer(503), Answer(429)]
    assert ask("hf://me/models/loras/a.safetensors", settings).sha256 == sha256(A)


@pytest.mark.parametrize("body", [b"[1]", b"{}", b"<html>", b'{"id": "a", "siblings": [{}]}'])
def test_an_endpoint_that_is_no_hub(hub: HuggingFaceStandin, settings: Settings, body: bytes) -> None:
    hub.broken = [Answer(200, {"Content-Type": "application/json"}, body)]
    with pytest.raises(DownloadError, match=r"did not answer as Hugging Face does\. Check HF_ENDPOINT|no weight file"):
        ask("me/models", settings)


def test_an_endpoint_that_is_not_there(make_settings: Callable[..., Settings]) -> None:
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1:1 could not be reached \(ConnectError\)\. Try again"):
        ask("hf://me/models/a.safetensors", make_settings(hf_endpoint="http://127.0.0.1:1"))


def test_a_forgotten_offline_mode_changes_nothing(
    hub: HuggingFaceStandin, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Our client leaves the library's own hooks out, and what is asked for by name is asked for.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert ask("hf://me/models/loras/a.safetensors", settings).size == len(A)


def test_a_server_that_gives_another_size(cdn: StorageStandin, settings: Settings) -> None:
    cdn.mangle = lambda a: Answer(a.status, {**a.headers, "Content-Range": "bytes 0-0/77"}, a.body)
    with pytest.raises(DownloadError, match=rf"is {len(A)} bytes long by its repo, but its server gives 77"):
        ask("hf://me/models/loras/a.safetensors", settings)


def test_the_given_sha256_must_be_the_published_one(settings: Settings) -> None:
    ask(f"hf://me/models/loras/a.safetensors#sha256={sha256(A)}", settings)
    with pytest.raises(WeightsError, match=f"published with SHA-256 {sha256(A)}, and the one .* is {sha256(B)}"):
        ask(f"hf://me/models/loras/a.safetensors#sha256={sha256(B)}", settings)


def test_the_token_reaches_the_hub_alone(hub: HuggingFaceStandin, cdn: StorageStandin, settings: Settings) -> None:
    remote = ask("hf://me/gated/a.safetensors", settings, GOOD)
    ask("me/private", settings, GOOD)
    assert remote.sha256 == sha256(A)
    assert hub.tokens_seen == {f"Bearer {GOOD}"}
    assert cdn.tokens_seen == {None}
    assert "SECRET" not in f"{remote!r}{remote.manifest_url}{remote.notices}"


def test_a_redirect_to_another_origin_gets_no_token(
    hub: HuggingFaceStandin, cdn: StorageStandin, settings: Settings
) -> None:
    for entry in ("me/one", "hf://me/one/a.safetensors"):
        hub.broken = [Answer(307, {"Location": cdn.url + "/elsewhere"})]
        with pytest.raises(DownloadError):
            ask(entry, settings, GOOD)
    assert cdn.tokens_seen == {None}


def test_a_redirect_that_the_library_trusts_gets_no_token_either(
    hub: HuggingFaceStandin, cdn: StorageStandin, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The library sends a mirror's token on to huggingface.co; the storage plays it here.
    port = int(cdn.url.rpartition(":")[2])
    monkeypatch.setattr("huggingface_hub.utils._http._HUB_ORIGINS", frozenset({("http", "127.0.0.1", port)}))
    hub.broken = [Answer(307, {"Location": cdn.put("/elsewhere", A)})]
    with pytest.raises(DownloadError):
        ask("hf://me/one/b.safetensors", settings, GOOD)
    assert [seen.headers["method"] for seen in cdn.seen] == ["HEAD"]
    assert cdn.tokens_seen == {None}


def test_the_tokens_of_this_machine_are_not_used(
    hub: HuggingFaceStandin, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("hf_SECRET_machine")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", "hf_SECRET_environment")
    ask("hf://me/models/loras/a.safetensors", settings)
    ask("me/one", settings)
    assert hub.tokens_seen == {None}
    assert {seen.headers.get("user-agent") for seen in hub.seen if seen.headers["method"] == "HEAD"} == {"comfyui-cog"}
    assert not any("agent-harnesses" in seen.target for seen in hub.seen)


def test_other_users_of_the_library_are_left_alone(hub: HuggingFaceStandin, settings: Settings) -> None:
    ask("me/one", settings)
    found = get_hf_file_metadata(f"{hub.url}/me/models/resolve/main/loras/a.safetensors", token=GOOD)
    assert found.commit_hash == COMMIT
    assert f"Bearer {GOOD}" in hub.tokens_seen


def test_no_error_text_has_a_hole() -> None:
    assert not [message for *_, message in MESSAGES if re.search(r"None|\{\}|  ", message)]
