"""scripts/weights as people and programs call it: the real script, real servers on loopback, a real terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comfyui.local.weights.arguments import flag_of, parse_arguments
from comfyui.settings import PROJECT_ROOT
from comfyui.weights.folders import TRAINING_INPUTS
from comfyui.weights.http.opener import READ_TIMEOUT_S
from comfyui.weights.listener import size_text
from comfyui.weights.manifest import MANIFEST_NAME, Manifest, Weight
from comfyui.weights.tar.journal import SYNC_EVERY_S
from tests.weights.file_server import FileServer
from tests.weights.hugging_face_standin import GOOD, HuggingFaceStandin, Repo
from tests.weights.samples import files_below, safetensors, sha256, write_tar
from tests.weights.storage_standin import Answer, StorageStandin

SCRIPT = str(PROJECT_ROOT / "scripts" / "weights")
LIMIT_S = 60
A, B = safetensors(1), safetensors(2, size=5000)
BOTH = size_text(len(A) + len(B))


@pytest.fixture
def storage() -> Iterator[StorageStandin]:
    with StorageStandin() as running:
        yield running


@pytest.fixture
def server() -> Iterator[FileServer]:
    """One that knows no ranges."""
    with FileServer() as running:
        yield running


@pytest.fixture
def hub(storage: StorageStandin) -> Iterator[HuggingFaceStandin]:
    with HuggingFaceStandin(storage) as running:
        running.repos["me/models"] = Repo({"loras/a.safetensors": A})
        running.repos["me/secret"] = Repo({"b.safetensors": B}, private=True)
        yield running


@pytest.fixture
def environ(tmp_path: Path, hub: HuggingFaceStandin) -> dict[str, str]:
    gone = {"HF_TOKEN", "CIVITAI_TOKEN", "COLUMNS"}
    return {
        **{name: value for name, value in os.environ.items() if name not in gone},
        "PYTHON": sys.executable,
        "ALLOW_PRIVATE_URLS": "1",
        "MODELS_DIR": str(tmp_path / "models"),
        "DATA_DIR": str(tmp_path / "data"),
        "HF_ENDPOINT": hub.url,
    }


Done = subprocess.CompletedProcess[str]
Weights = Callable[..., Done]


@pytest.fixture
def weights(tmp_path: Path, environ: dict[str, str]) -> Weights:
    """Run the script from the test's folder; checks what holds for every run."""

    def run(*arguments: str, **more: str) -> Done:
        done = subprocess.run(
            [SCRIPT, *arguments],
            cwd=tmp_path,
            env={**environ, **more},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert "Traceback" not in done.stderr
        assert GOOD not in done.stdout + done.stderr
        assert "\x1b" not in done.stdout + done.stderr
        assert "\r" not in done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A project's manifest, empty."""
    path = tmp_path / "project" / MANIFEST_NAME
    path.parent.mkdir()
    Manifest(()).save(path)
    return path


@pytest.fixture
def with_a(manifest: Path, hub: HuggingFaceStandin) -> tuple[str, str]:
    """That manifest with one file of the hub in it, as arguments."""
    url = f"{hub.url}/me/models/resolve/main/loras/a.safetensors"
    Manifest((Weight("loras/a.safetensors", url, len(A), sha256(A)),)).save(manifest)
    return "--manifest", str(manifest)


@pytest.fixture
def file_a(tmp_path: Path) -> Path:
    """Its file in the models folder."""
    file = tmp_path / "models" / "loras" / "a.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(A)
    return file


def events(done: Done) -> list[dict[str, Any]]:
    """Every line of stdout, all of which must be JSON objects; nothing may be on stderr."""
    assert done.stderr == ""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(isinstance(event["event"], str) for event in found)
    return found


def result(done: Done) -> dict[str, Any]:
    last = events(done)[-1]
    assert last["event"] == "result"
    return last


# bake


def test_bake_makes_a_tar_of_what_the_flags_name(weights: Weights, storage: StorageStandin, tmp_path: Path) -> None:
    one, two = storage.put("/one.safetensors", A), storage.put("/two.safetensors", B)
    (tmp_path / "vaes.txt").write_text(f"# mine\n{storage.put('/v.safetensors', A)}\n")
    arguments = ("--checkpoint", one, "--lora", one, "--lora", two, "--vae", "@vaes.txt", "--embedding", one)
    done = weights("bake", *arguments, "--out", "my.tar")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'my.tar'}\n"
    made = [weight.path for weight in Manifest.parse(_tar_manifest(tmp_path / "my.tar")).weights]
    assert made == [
        "checkpoints/one.safetensors",
        "loras/one.safetensors",
        "loras/two.safetensors",
        "embeddings/one.safetensors",
        "vae/v.safetensors",
    ]
    assert "baking 5 files" in done.stderr
    assert 'loras/two.safetensors: LoraLoader.lora_name = "two.safetensors"' in done.stderr
    assert weights("verify", "my.tar").returncode == 0


def _tar_manifest(tar: Path) -> bytes:
    done = subprocess.run(["tar", "-xOf", tar, MANIFEST_NAME], check=True, capture_output=True)
    return done.stdout


def test_every_model_folder_has_a_flag_and_the_trainings_own_name(weights: Weights) -> None:
    text = weights("bake", "--help").stdout
    flags = {flag_of(name) for name in TRAINING_INPUTS}
    assert len(flags) == len(TRAINING_INPUTS)
    assert {"--checkpoint", "--lora", "--vae", "--upscale-model", "--embedding", "--controlnet"} <= flags
    assert {"--text-encoder", "--clip-vision", "--model-patch", "--gligen"} <= flags
    assert all(f"{flag} LINK" in text for flag in flags)
    # Refused by the link, not by the flag.
    done = weights("bake", "--controlnets", "not-a-link", "--embedding-models", "not-a-link")
    assert done.returncode == 1
    assert "not-a-link" in done.stderr


def test_bake_as_json_is_one_object_a_line(weights: Weights, storage: StorageStandin, tmp_path: Path) -> None:
    done = weights("bake", "--lora", storage.put("/a.safetensors", A), "--json")
    assert done.returncode == 0
    last = result(done)
    assert last["tar"] == str(tmp_path / "weights.tar")
    (made,) = last["weights"]
    assert (made["path"], made["size"], made["sha256"]) == ("loras/a.safetensors", len(A), sha256(A))
    assert made["use"] == 'LoraLoader.lora_name = "a.safetensors"'
    kinds = [event["event"] for event in events(done)]
    assert {"note", "begin", "proven", "end", "result"} <= set(kinds)
    assert kinds.index("begin") < kinds.index("proven") < kinds.index("end")


def test_a_bake_that_fails_says_why_and_leaves_no_tar(
    weights: Weights, storage: StorageStandin, tmp_path: Path
) -> None:
    link = storage.put("/a.safetensors", A[:-1])
    done = weights("bake", "--lora", link)
    assert done.returncode == 1
    assert "loras/a.safetensors" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "weights.tar").exists()
    (error,) = [event for event in events(weights("bake", "--lora", link, "--json")) if event["event"] == "error"]
    assert error["error"] == "WeightsError"
    assert error["path"] == "loras/a.safetensors"
    assert error["message"] in done.stderr


def test_a_pickle_is_refused_with_the_flag_that_takes_it(weights: Weights, storage: StorageStandin) -> None:
    link = storage.put("/a.ckpt", b"PK\x03\x04" + bytes(600))
    done = weights("bake", "--checkpoint", link)
    assert done.returncode == 1
    assert "allow_pickle is --allow-pickle" in done.stderr
    assert weights("bake", "--checkpoint", link, "--allow-pickle").returncode == 0


@pytest.mark.parametrize("how", ["environment", "file"])
def test_a_token_reaches_the_site_and_nobody_else(
    weights: Weights, hub: HuggingFaceStandin, storage: StorageStandin, tmp_path: Path, how: str
) -> None:
    (tmp_path / "token").write_text(f"{GOOD}\n")
    more = {"HF_TOKEN": GOOD} if how == "environment" else {}
    arguments = ("--hf-token-file", "token") if how == "file" else ()
    done = weights("bake", "--lora", "hf://me/secret/b.safetensors", *arguments, "--json", **more)
    assert done.returncode == 0, done.stdout
    assert hub.tokens_seen == {f"Bearer {GOOD}"}
    assert storage.tokens_seen == {None}
    assert GOOD.encode() not in (tmp_path / "weights.tar").read_bytes()


def test_a_missing_token_is_asked_for_by_its_name_here(weights: Weights) -> None:
    done = weights("bake", "--lora", "hf://me/secret/b.safetensors")
    assert done.returncode == 1
    assert "huggingface_read_token is HF_TOKEN or --hf-token-file" in done.stderr


def test_a_token_that_cannot_be_one_is_refused_unseen(weights: Weights, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xff" + GOOD.encode())
    done = weights("bake", "--lora", "me/secret", "--hf-token-file", "token")
    assert done.returncode == 1
    assert f"token file {tmp_path / 'token'}" in done.stderr
    done = weights("bake", "--lora", "me/secret", HF_TOKEN=f"{GOOD} {GOOD}")
    assert done.returncode == 1
    assert "HF_TOKEN" in done.stderr


def test_a_file_of_this_machine_is_refused_with_what_to_do(weights: Weights, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(A)
    done = weights("bake", "--lora", "a.safetensors")
    assert done.returncode == 1
    assert "hf upload" in done.stderr
    assert "scripts/quickstart" in done.stderr


def test_a_tar_cannot_be_a_folder_or_lie_in_a_file(weights: Weights, storage: StorageStandin, tmp_path: Path) -> None:
    link = storage.put("/a.safetensors", A)
    done = weights("bake", "--lora", link, "--out", ".")
    assert done.returncode == 1
    assert "is a folder" in done.stderr
    (tmp_path / "file").write_text("")
    done = weights("bake", "--lora", link, "--out", "file/weights.tar")
    assert done.returncode == 1
    assert "file" in done.stderr


# usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "COMMAND"),
        (("bake",), "name at least one link"),
        (("bake", "--loraa", "x"), "--loraa"),
        (("bakery",), "bakery"),
        (("add", "https://example.com/a.safetensors"), "--to"),
        (("add", "https://example.com/a.safetensors", "--to", "lora"), "did you mean loras?"),
        (("restore", "weights.tar"), "MODELS_FOLDER"),
        (("verify",), "TAR_OR_FOLDER"),
    ],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_wrong_usage_is_the_scripts_2_too(weights: Weights) -> None:
    done = weights("bake")
    assert done.returncode == 2
    assert "name at least one link" in done.stderr


@pytest.mark.parametrize("command", ["", "bake", "verify", "restore", "add", "remove", "pull", "list"])
def test_help_teaches_with_an_example_and_the_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments([*filter(None, [command]), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "130  stopped by Ctrl-C" in text
    assert "scripts/weights" in text
    if command:
        assert re.search(r"^examples?:\n  scripts/weights ", text, re.MULTILINE)
    if command in ("", "bake", "add", "pull"):
        assert "HF_TOKEN" in text


def test_a_setting_that_cannot_be_used_is_named(weights: Weights) -> None:
    done = weights("list", ALLOW_PRIVATE_URLS="yes")
    assert done.returncode == 1
    assert "ALLOW_PRIVATE_URLS" in done.stderr


# verify and restore


def test_verify_proves_a_tar_and_restore_brings_it(weights: Weights, tmp_path: Path) -> None:
    write_tar(tmp_path / "weights.tar", {"loras/a.safetensors": A, "vae/b.safetensors": B})
    done = weights("verify", "weights.tar")
    assert (done.returncode, done.stdout) == (0, f"2 files proven, {BOTH}; nothing wrong\n")
    assert files_below(tmp_path) == ["weights.tar"]
    done = weights("restore", "weights.tar", "models")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"2 files, {BOTH}, all proven, in {tmp_path / 'models'}\n"
    assert (tmp_path / "models" / "loras" / "a.safetensors").read_bytes() == A
    assert weights("verify", "models", "--manifest", "weights.tar").returncode == 0


@pytest.mark.parametrize("where", ["data", "header", "end", "cut"])
def test_verify_names_what_is_wrong_with_a_tar(weights: Weights, tmp_path: Path, where: str) -> None:
    tar = tmp_path / "weights.tar"
    made = write_tar(tar, {"loras/a.safetensors": A, "vae/b.safetensors": B})
    data = bytearray(tar.read_bytes())
    offset = made.weights[1].offset or 0
    at = {"data": offset + len(B) - 1, "header": offset - 512, "end": len(data) - 10240 + 10000, "cut": 0}[where]
    data[at] ^= 0 if where == "cut" else 1
    tar.write_bytes(data[: offset + 1000] if where == "cut" else data)
    done = weights("verify", "weights.tar", "--json")
    assert done.returncode == 1
    last = result(done)
    assert not last["ok"]
    assert "loras/a.safetensors" in last["proven"]
    problems = [event for event in events(done) if event["event"] == "problem"]
    assert {problem["kind"] for problem in problems} == {
        "data": {"damaged"},
        "header": {"tar"},
        "end": {"tar"},
        "cut": {"damaged", "tar"},
    }[where]
    plain = weights("verify", "weights.tar")
    assert plain.returncode == 1
    for problem in problems:
        assert f"WRONG  {problem['text']}\n" in plain.stdout
    if where == "data":
        (problem,) = problems
        assert (problem["path"], problem["expected"]) == ("vae/b.safetensors", sha256(B))
        assert problem["expected"] in plain.stdout
        assert problem["seen"] in plain.stdout


def test_verify_takes_no_other_file_for_a_tar(weights: Weights, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(A)
    assert "is not a tar" in weights("verify", "a.tar").stderr
    assert "no weights tar at" in weights("verify", "nowhere.tar").stderr
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "a.safetensors").write_bytes(A)
    subprocess.run(["tar", "-cf", "foreign.tar", "loras/a.safetensors"], cwd=tmp_path, check=True)
    done = weights("verify", "foreign.tar")
    assert done.returncode == 1
    assert f"no {MANIFEST_NAME}" in done.stderr
    done = weights("restore", "foreign.tar", "models")
    assert done.returncode == 1
    assert "--unproven-ok" in done.stderr
    assert not (tmp_path / "models").exists()
    done = weights("restore", "foreign.tar", "models", "--unproven-ok")
    assert done.returncode == 0
    assert (tmp_path / "models" / "loras" / "a.safetensors").read_bytes() == A


def test_a_tar_is_verified_and_restored_from_a_link_too(
    weights: Weights, storage: StorageStandin, tmp_path: Path
) -> None:
    write_tar(tmp_path / "weights.tar", {"loras/a.safetensors": A})
    link = storage.put("/weights.tar", (tmp_path / "weights.tar").read_bytes())
    assert weights("verify", link).returncode == 0
    assert weights("restore", link, "models").returncode == 0
    assert files_below(tmp_path / "models") == ["loras/a.safetensors"]


def test_verify_compares_a_folder_with_its_manifest(weights: Weights, tmp_path: Path) -> None:
    paths = ["loras/right", "loras/flipped", "loras/short", "loras/gone"]
    write_tar(tmp_path / "weights.tar", {f"{path}.safetensors": A for path in paths})
    loras = tmp_path / "models" / "loras"
    loras.mkdir(parents=True)
    (loras / "right.safetensors").write_bytes(A)
    (loras / "flipped.safetensors").write_bytes(A[:-1] + bytes([A[-1] ^ 1]))
    (loras / "short.safetensors").write_bytes(A[:-1])
    (loras / "extra.safetensors").write_bytes(B)
    (loras / "extra_cut.safetensors").write_bytes(B[:-1])
    (loras / "put_loras_here").write_text("")
    (loras / ".hidden.safetensors").write_text("")
    done = weights("verify", "models", "--manifest", "weights.tar", "--json")
    assert done.returncode == 1
    last = result(done)
    assert last["proven"] == ["loras/right.safetensors"]
    assert last["unknown"] == ["loras/extra.safetensors"]
    assert {(problem["path"], problem["kind"]) for problem in last["problems"]} == {
        ("loras/flipped.safetensors", "damaged"),
        ("loras/short.safetensors", "damaged"),
        ("loras/gone.safetensors", "missing"),
        ("loras/extra.safetensors", "unknown"),
        ("loras/extra_cut.safetensors", "damaged"),
    }
    assert all(problem["expected"] and problem["seen"] for problem in last["problems"])


def test_what_is_not_in_the_manifest_is_a_fault_unless_asked_for(
    weights: Weights, with_a: tuple[str, str], file_a: Path, tmp_path: Path
) -> None:
    # A folder on another disk.
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "b.safetensors").write_bytes(B)
    (tmp_path / "models" / "vae").symlink_to(tmp_path / "disk")
    done = weights("verify", "models", *with_a)
    assert done.returncode == 1
    assert "vae/b.safetensors is not in the manifest" in done.stdout
    done = weights("verify", "models", *with_a, "--extra-ok")
    assert done.returncode == 0
    assert done.stdout == f"1 file proven, {size_text(len(A))}; 1 not in the manifest; nothing wrong\n"


def test_a_link_to_a_file_that_is_gone_is_a_fault(
    weights: Weights, with_a: tuple[str, str], file_a: Path, tmp_path: Path
) -> None:
    (tmp_path / "models" / "loras" / "gone.safetensors").symlink_to(tmp_path / "gone.safetensors")
    done = weights("verify", "models", *with_a)
    assert done.returncode == 1
    assert "WRONG  loras/gone.safetensors cannot be read: No such file or directory.\n" in done.stdout
    assert "1 file proven" in done.stdout


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (200, {}, "its server gives no ranges any more"),
        (206, {"ETag": '"another"'}, "it was replaced at its source"),
    ],
)
def test_a_tar_that_changes_while_it_is_verified_is_an_error(
    weights: Weights, storage: StorageStandin, tmp_path: Path, status: int, headers: dict[str, str], said: str
) -> None:
    write_tar(tmp_path / "weights.tar", {"loras/a.safetensors": safetensors(3, size=3_000_000)})
    link = storage.put("/weights.tar", (tmp_path / "weights.tar").read_bytes())
    storage.mangle = lambda answer: (
        replace(answer, status=status, headers={**answer.headers, **headers}) if _is_behind_the_head(answer) else answer
    )
    done = weights("verify", link)
    assert done.returncode == 1
    assert f"{link} could not be read to its end: {said}. Verify it again.\n" in done.stderr


def test_a_tar_in_one_piece_that_breaks_off_is_an_error(weights: Weights, server: FileServer, tmp_path: Path) -> None:
    write_tar(tmp_path / "weights.tar", {"loras/a.safetensors": A})
    link = server.put("/weights.tar", (tmp_path / "weights.tar").read_bytes(), cut_after=100)
    done = weights("verify", link)
    assert done.returncode == 1
    assert f"{link} could not be read to its end: " in done.stderr


def _is_behind_the_head(answer: Answer) -> bool:
    """Whether these are bytes of a tar that are fetched to be proven, and not to find out what it is."""
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return found is not None and int(found[1]) > 0


# the image's own weights


def test_add_takes_a_published_digest_without_a_download(
    weights: Weights, manifest: Path, storage: StorageStandin, tmp_path: Path
) -> None:
    link = "hf://me/models/loras/a.safetensors"
    done = weights("add", link, "--to", "loras", "--manifest", str(manifest))
    assert done.returncode == 0, done.stderr
    assert sha256(A) in done.stdout
    assert "scripts/weights pull" in done.stdout
    (weight,) = Manifest.load(manifest).weights
    assert (weight.path, weight.size, weight.sha256) == ("loras/a.safetensors", len(A), sha256(A))
    assert weight.url is not None
    assert not (tmp_path / "models").exists()
    # Nothing but the first byte, which shows the size.
    assert {seen.headers.get("Range") for seen in storage.seen} == {"bytes=0-0"}
    done = weights("add", link, "--to", "loras", "--manifest", str(manifest))
    assert done.returncode == 1
    assert "in the manifest already" in done.stderr
    assert len(Manifest.load(manifest).weights) == 1


@pytest.mark.parametrize("how", ["ranges", "whole", "length unknown"])
def test_add_fetches_a_file_whose_digest_nobody_publishes(
    weights: Weights, manifest: Path, storage: StorageStandin, server: FileServer, tmp_path: Path, how: str
) -> None:
    if how == "ranges":
        link = storage.put("/a.safetensors", A) + "?signature=SECRET"
    else:
        link = server.put("/a.safetensors", A, no_length=how == "length unknown")
    done = weights("add", link, "--to", "loras", "--manifest", str(manifest))
    assert done.returncode == 0, done.stderr
    (weight,) = Manifest.load(manifest).weights
    assert (weight.path, weight.size, weight.sha256) == ("loras/a.safetensors", len(A), sha256(A))
    assert "SECRET" not in manifest.read_text() + done.stdout + done.stderr
    assert all(seen.target.endswith("?signature=SECRET") for seen in storage.seen)
    assert (tmp_path / "models" / "loras" / "a.safetensors").read_bytes() == A
    assert files_below(tmp_path / "models") == ["loras/a.safetensors"]
    assert weights("verify", "models", "--manifest", str(manifest)).returncode == 0


@pytest.mark.parametrize("no_length", [False, True])
def test_a_file_that_is_not_whole_is_not_added(
    weights: Weights, manifest: Path, server: FileServer, tmp_path: Path, no_length: bool
) -> None:
    done = weights(
        "add",
        server.put("/a.safetensors", A[:-1], no_length=no_length),
        "--to",
        "loras",
        "--manifest",
        str(manifest),
    )
    assert done.returncode == 1
    assert "loras/a.safetensors" in done.stderr
    assert Manifest.load(manifest).weights == ()
    assert files_below(tmp_path / "models") == []


def test_add_overwrites_no_file_that_it_cannot_compare(
    weights: Weights, manifest: Path, storage: StorageStandin, tmp_path: Path
) -> None:
    mine = tmp_path / "models" / "loras" / "a.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(B)
    link = storage.put("/a.safetensors", A)
    done = weights("add", link, "--to", "loras", "--manifest", str(manifest))
    assert done.returncode == 1
    assert str(mine) in done.stderr
    assert mine.read_bytes() == B
    done = weights("add", f"{link}#name=b.safetensors", "--to", "loras", "--manifest", str(manifest))
    assert done.returncode == 0, done.stderr
    assert files_below(tmp_path / "models") == ["loras/a.safetensors", "loras/b.safetensors"]


def test_pull_brings_and_mends_what_the_manifest_names(
    weights: Weights, with_a: tuple[str, str], tmp_path: Path
) -> None:
    at = with_a
    done = weights("pull", *at)
    assert done.returncode == 0, done.stderr
    file = tmp_path / "models" / "loras" / "a.safetensors"
    assert file.read_bytes() == A
    flipped = A[:-1] + bytes([A[-1] ^ 1])
    file.write_bytes(flipped)
    done = weights("pull", "--quick", *at)
    assert done.returncode == 0
    assert "all proven" not in done.stdout
    assert file.read_bytes() == flipped
    done = weights("pull", *at)
    assert done.returncode == 0
    assert "all proven" in done.stdout
    assert file.read_bytes() == A


def test_pull_fails_by_name_when_a_link_gives_another_file(
    weights: Weights, with_a: tuple[str, str], hub: HuggingFaceStandin, tmp_path: Path
) -> None:
    hub.repos["me/models"].files["loras/a.safetensors"] = safetensors(99)
    done = weights("pull", "--json", *with_a)
    assert done.returncode == 1
    last = events(done)[-1]
    assert (last["event"], last["error"], last["path"]) == ("error", "WeightsError", "loras/a.safetensors")
    assert last["expected"] == sha256(A)
    assert files_below(tmp_path / "models") == []


def test_an_empty_manifest_says_how_to_fill_it(weights: Weights, manifest: Path) -> None:
    done = weights("list", "--manifest", str(manifest))
    assert done.returncode == 0
    assert "has no weights. Add some with scripts/weights add" in done.stdout


def test_list_shows_what_is_there_and_what_is_not(
    weights: Weights, with_a: tuple[str, str], file_a: Path, tmp_path: Path
) -> None:
    at = with_a
    vae = tmp_path / "models" / "vae" / "b.safetensors"
    vae.parent.mkdir()
    vae.write_bytes(B)
    done = weights("list", *at)
    assert done.returncode == 0
    assert re.search(r"loras/a.safetensors +1\.\d kB +there", done.stdout)
    assert "not in the manifest:\n  vae/b.safetensors\n" in done.stdout
    file_a.write_bytes(b"short")
    last = result(weights("list", "--json", *at))
    assert last["extras"] == ["vae/b.safetensors"]
    assert [(entry["state"], entry["seen"]) for entry in last["weights"]] == [("other size", 5)]
    file_a.unlink()
    assert re.search(r"loras/a.safetensors +1\.\d kB +missing", weights("list", *at).stdout)


@pytest.mark.parametrize(("arguments", "stays"), [((), True), (("--delete",), False)])
def test_remove_takes_an_entry_out_and_the_file_only_when_asked(
    weights: Weights, with_a: tuple[str, str], manifest: Path, file_a: Path, arguments: tuple[str, ...], stays: bool
) -> None:
    done = weights("remove", "loras/a.safetensors", *arguments, *with_a)
    assert done.returncode == 0, done.stderr
    assert Manifest.load(manifest).weights == ()
    assert file_a.exists() is stays
    assert str(file_a) in done.stdout


def test_a_mistyped_path_gets_the_nearest_one(weights: Weights, with_a: tuple[str, str], manifest: Path) -> None:
    done = weights("remove", "lora/a.safetensor", *with_a)
    assert done.returncode == 1
    assert "did you mean loras/a.safetensors?" in done.stderr
    assert len(Manifest.load(manifest).weights) == 1


def test_two_adds_at_once_lose_no_entry(
    environ: dict[str, str], with_a: tuple[str, str], manifest: Path, hub: HuggingFaceStandin, tmp_path: Path
) -> None:
    first = Manifest.load(manifest)
    Manifest(()).save(manifest)
    asked_before = len(hub.seen)
    folder = os.open(manifest.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    command = [SCRIPT, "add", "hf://me/models/loras/a.safetensors#name=b.safetensors", "--to", "loras", *with_a]
    with subprocess.Popen(command, env=environ, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        _wait_for(lambda: len(hub.seen) > asked_before)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        # What another add writes while this one waits for its turn.
        first.save(manifest)
        os.close(folder)
        process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
    assert [weight.path for weight in Manifest.load(manifest).weights] == ["loras/a.safetensors", "loras/b.safetensors"]


def test_a_manifest_that_is_not_there_or_not_one_is_an_error(weights: Weights, tmp_path: Path) -> None:
    done = weights("list", "--manifest", "nowhere.json")
    assert done.returncode == 1
    assert str(tmp_path / "nowhere.json") in done.stderr
    (tmp_path / "odd.json").write_text('{"version": 1, "weights": [], "more": 1}')
    (tmp_path / "models").mkdir()
    for command in (("pull",), ("verify", "models")):
        done = weights(*command, "--manifest", "odd.json")
        assert done.returncode == 1
        assert "'more'" in done.stderr


# Ctrl-C, terminals, pipes


def hear_ctrl_c() -> None:
    """In a child, before its program: a test run in the background hands on that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Held:
    """Holds answers back from the eighth megabyte of a file on, until it is let go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, answer: Answer) -> Answer:
        found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        if found and int(found[1]) > 8_000_000:
            self.reached.set()
            self.let_go.wait(LIMIT_S)
        elif found and int(found[1]) > 1_000_000:
            # The second part comes when it is time to make the first ones last.
            self.let_go.wait(SYNC_EVERY_S + 0.2)
        return answer


@pytest.fixture
def held(storage: StorageStandin) -> Iterator[Held]:
    storage.mangle = Held()
    yield storage.mangle
    storage.mangle.let_go.set()


def test_ctrl_c_in_a_bake_says_what_stays_and_the_next_one_goes_on_from_there(
    weights: Weights, environ: dict[str, str], storage: StorageStandin, held: Held, tmp_path: Path
) -> None:
    link = storage.put("/a.safetensors", safetensors(3, size=20_000_000))
    arguments = ("bake", "--lora", link)
    with subprocess.Popen(
        [SCRIPT, *arguments], cwd=tmp_path, env=environ, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c
    ) as process:
        assert held.reached.wait(LIMIT_S)
        _wait_for(lambda: len((tmp_path / ".weights.tar.journal").read_bytes().splitlines()) > 1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert str(tmp_path / ".weights.tar.part") in said
    assert "the same command goes on" in said
    assert not (tmp_path / "weights.tar").exists()
    plan, *batches = [json.loads(line) for line in (tmp_path / ".weights.tar.journal").read_bytes().splitlines()]
    size, first = plan["piece_bytes"], plan["files"][0]["offset"]
    # Pieces end where the tar is aligned, not where the file is.
    kept = [(piece * size - first, (piece + 1) * size - first) for batch in batches for _, piece in batch]
    assert kept
    held.let_go.set()
    storage.seen.clear()
    done = weights(*arguments)
    assert done.returncode == 0, done.stderr
    assert "Going on where an earlier bake stopped" in done.stderr
    ranges = [seen.headers.get("Range", "") for seen in storage.seen]
    # The first byte is asked for to know what the server says of the file.
    asked = [re.fullmatch(r"bytes=(\d+)-(\d+)", text) for text in ranges if text not in ("", "bytes=0-0")]
    assert asked
    for found in asked:
        assert found is not None
        assert not any(int(found[1]) < end and int(found[2]) >= start for start, end in kept)
    assert files_below(tmp_path) == ["weights.tar"]
    assert weights("verify", "weights.tar").returncode == 0


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_in_a_restore_leaves_nothing(
    environ: dict[str, str], storage: StorageStandin, held: Held, tmp_path: Path, as_json: bool
) -> None:
    write_tar(tmp_path / "weights.tar", {"loras/a.safetensors": safetensors(3, size=20_000_000)})
    link = storage.put("/weights.tar", (tmp_path / "weights.tar").read_bytes())
    command = [SCRIPT, "restore", link, "models", *(["--json"] if as_json else [])]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    ) as process:
        assert held.reached.wait(LIMIT_S)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert files_below(tmp_path / "models") == []
    if as_json:
        assert json.loads(out.splitlines()[-1])["error"] == "Interrupted"


@pytest.mark.parametrize("command", ["bake", "pull", "restore"])
def test_ctrl_c_does_not_wait_for_a_server_that_says_nothing(
    environ: dict[str, str], storage: StorageStandin, manifest: Path, tmp_path: Path, command: str
) -> None:
    answer_now = threading.Event()

    def silent(answer: Answer) -> Answer:
        answer_now.wait(LIMIT_S)
        return answer

    storage.mangle = silent
    link = storage.put("/a.safetensors", A)
    Manifest((Weight("loras/a.safetensors", link, len(A), sha256(A)),)).save(manifest)
    rest = {"bake": ["--lora", link], "pull": ["--manifest", str(manifest)], "restore": [link, "models"]}[command]
    with subprocess.Popen(
        [SCRIPT, command, *rest], cwd=tmp_path, env=environ, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c
    ) as process:
        try:
            _wait_for(lambda: bool(storage.seen))
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=LIMIT_S / 2)
        finally:
            answer_now.set()
    assert process.returncode == 130
    assert "Stopped." in said
    assert "Traceback" not in said


def test_ctrl_c_does_not_wait_for_a_server_that_falls_silent_while_its_tar_is_verified(
    environ: dict[str, str], storage: StorageStandin, tmp_path: Path
) -> None:
    write_tar(tmp_path / "weights.tar", {"loras/a.safetensors": safetensors(3, size=9_000_000)})
    link = storage.put("/weights.tar", (tmp_path / "weights.tar").read_bytes())
    fell_silent, answer_now = threading.Event(), threading.Event()

    def silent(answer: Answer) -> Answer:
        if _is_behind_the_head(answer) and len(answer.body) > 1_000_000:
            fell_silent.set()
            answer_now.wait(2 * LIMIT_S)
        return answer

    storage.mangle = silent
    with subprocess.Popen(
        [SCRIPT, "verify", link], cwd=tmp_path, env=environ, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c
    ) as process:
        try:
            assert fell_silent.wait(LIMIT_S)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=READ_TIMEOUT_S / 2)
        finally:
            answer_now.set()
    assert process.returncode == 130
    assert "Traceback" not in said


HANGS_ON_ITS_WAY_OUT = f"""
import time
from comfyui.local.weights.cli import hear_ctrl_c
try:
    with hear_ctrl_c():
        print("begun", flush=True)
        time.sleep({LIMIT_S})
except KeyboardInterrupt:
    print("hangs", flush=True)
    time.sleep({LIMIT_S})
"""


def test_a_second_ctrl_c_ends_at_once_what_hangs_on_its_way_out() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HANGS_ON_ITS_WAY_OUT],
        cwd=PROJECT_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for expected in ("begun", "hangs"):
            assert process.stdout.readline().strip() == expected
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=LIMIT_S / 2) == 130
        assert "Traceback" not in process.stderr.read()


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def on_terminal(
    arguments: tuple[str, ...], environ: dict[str, str], cwd: Path, columns: int = 120
) -> tuple[int, str, str]:
    """Run the script with a terminal as its stderr: exit code, stdout, and what the terminal got."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen([SCRIPT, *arguments], cwd=cwd, env=environ, stdout=subprocess.PIPE, stderr=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    assert process.stdout is not None
    with process:
        out = process.stdout.read().decode()
    return process.returncode, out, shown.decode()


@pytest.fixture
def slow(storage: StorageStandin) -> str:
    """The link of a file that takes its time."""

    one_at_a_time = threading.Lock()

    def wait(answer: Answer) -> Answer:
        with one_at_a_time:
            time.sleep(0.15)
        return answer

    storage.mangle = wait
    return storage.put("/slow.safetensors", safetensors(4, size=20_000_000))


def test_a_terminal_gets_a_bar_with_rate_and_time_left(environ: dict[str, str], slow: str, tmp_path: Path) -> None:
    environ = {**environ, "TERM": "xterm-256color"}
    code, out, shown = on_terminal(("bake", "--lora", slow), environ, tmp_path)
    assert code == 0, shown
    assert out == f"{tmp_path / 'weights.tar'}\n"
    assert re.search(r"\r *\d+ % \|.{16}\| [\d.]+MB of 20\.0MB, [\d.]+MB/s, \d\d:\d\d left: loras/slow", shown)
    # Nothing of the bar stays behind, and nothing is coloured.
    assert re.search(r"\r *\rbaking took ", shown)
    assert "\x1b" not in shown
    assert all(len(line) <= 120 for line in re.split(r"[\r\n]+", shown) if "% |" in line)


def test_a_narrow_terminal_gets_no_bar_that_is_wider(environ: dict[str, str], slow: str, tmp_path: Path) -> None:
    environ = {**environ, "TERM": "xterm-256color"}
    code, _, shown = on_terminal(("bake", "--lora", slow), environ, tmp_path, columns=60)
    assert code == 0
    bars = [line for line in re.split(r"[\r\n]+", shown) if "% |" in line]
    assert bars
    assert max(map(len, bars)) <= 60


@pytest.mark.parametrize(("arguments", "more"), [((), {"TERM": "dumb"}), (("--json",), {"TERM": "xterm-256color"})])
def test_no_bar_where_none_can_be_drawn_or_nobody_looks(
    environ: dict[str, str], slow: str, tmp_path: Path, arguments: tuple[str, ...], more: dict[str, str]
) -> None:
    code, _, shown = on_terminal(("bake", "--lora", slow, *arguments), {**environ, **more}, tmp_path)
    assert code == 0
    # The terminal itself makes \r\n of a line's end.
    assert "\r" not in shown.replace("\r\n", "\n")
    assert ("baking 1 file" in shown) is not bool(arguments)


def test_a_reader_that_goes_away_is_no_accident(environ: dict[str, str], manifest: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [SCRIPT, "list", "--manifest", str(manifest)]
    with os.fdopen(write, "wb") as gone:
        done = subprocess.run(command, env=environ, cwd=tmp_path, stdout=gone, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
