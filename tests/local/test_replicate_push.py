"""`scripts/replicate push`: every check by itself, and the real script with stand-ins of cog and docker on PATH.

The stand-ins are shell scripts that say what cog and docker say, and write down their arguments; an image cannot be
built or pushed here.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from comfyui.local.replicate.api import Api
from comfyui.local.replicate.environ import Service
from comfyui.local.replicate.failures import ServiceError
from comfyui.local.replicate.models import wait_for_version
from comfyui.local.replicate.push import checks
from comfyui.settings import PROJECT_ROOT, Settings
from tests.local.replicate_standin import GOOD
from tests.local.replicate_world import BASE_VERSION, LIMIT_S, World, result
from tests.weights.samples import sha256

COG = """#!/bin/sh
if [ "$1" = --version ]; then echo "cog version 0.23.1 (built 2026-01-01)"; exit 0; fi
echo "$@" >>"$RECORD"
[ "${COG_CODE:-0}" = 0 ] && echo "$2" >>"$PUSHED"
echo "Building Docker image"
exit "${COG_CODE:-0}"
"""
SLOW_COG = """#!/bin/sh
if [ "$1" = --version ]; then echo "cog version 0.23.1"; exit 0; fi
trap 'echo cleaned >>"$RECORD"; exit 130' INT
echo "$@" >>"$RECORD"
while :; do sleep 0.05; done
"""
DOCKER = '#!/bin/sh\n[ "$1" = info ] && echo "${DOCKER_SAYS-28.0.1}" && exit "${DOCKER_CODE:-0}"\n'
HELPER = """#!/bin/sh
read -r server
[ "$1 $server" = "get r8.im" ] && echo '{"Username":"me","Secret":"r8_SECRET_helper"}' && exit "${HELPER_CODE:-0}"
exit 1
"""
SECRET = "r8_SECRET_docker"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as running:
        bin_dir = tmp_path / "bin"
        bin_dir.mkdir()
        running.environ |= {"PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}", "RECORD": str(tmp_path / "record")}
        running.replicate.pushed = tmp_path / "pushed"
        running.environ["PUSHED"] = str(tmp_path / "pushed")
        tool(running, "cog", COG)
        tool(running, "docker", DOCKER)
        auth = base64.b64encode(f"me:{SECRET}".encode()).decode()
        log_in(running, {"auths": {"r8.im": {"auth": auth}}})
        yield running


def tool(world: World, name: str, text: str) -> None:
    path = world.folder / "bin" / name
    path.write_text(text)
    path.chmod(0o755)


def log_in(world: World, config: object) -> None:
    path = world.folder / "home" / ".docker" / "config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(config if isinstance(config, str) else json.dumps(config))


def record(world: World) -> str:
    path = world.folder / "record"
    return path.read_text() if path.is_file() else ""


def test_push_checks_everything_then_pushes_and_prints_the_version(world: World) -> None:
    done = world.run("push", "me/base", "--", "--separate-weights")
    assert done.returncode == 0, done.stderr
    assert record(world) == "push r8.im/me/base --separate-weights\n"
    assert world.replicate.models["me/base"] == [BASE_VERSION, sha256(b"r8.im/me/base")]
    assert done.stdout == f"me/base:{sha256(b'r8.im/me/base')}\n"
    for name in (
        "cog: cog version 0.23.1",
        "docker: server 28.0.1",
        "log-in:",
        "cog.yaml: valid",
        "ComfyUI:",
        "sizes:",
    ):
        assert f"ok       {name}" in done.stderr
    assert "Building Docker image" in done.stderr
    assert SECRET not in done.stderr


def test_check_pushes_nothing(world: World) -> None:
    done = world.run("push", "me/base", "--check", "--json")
    assert done.returncode == 0, done.stdout
    assert all(check["ok"] for check in result(done)["checks"])
    assert record(world) == ""


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"DOCKER_CODE": "1"}, "docker: Docker does not answer (28.0.1). Start it"),
        ({"DOCKER_SAYS": ""}, "docker: Docker does not answer (no version). Start it"),
        ({"COMFYUI_DIR": "/nowhere"}, "ComfyUI: COMFYUI_DIR is /nowhere, which is not ComfyUI"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_built(world: World, environ: dict[str, str], said: str) -> None:
    done = world.run("push", "me/base", **environ)
    assert done.returncode == 1
    assert f"MISSING  {said}" in done.stderr
    assert "The push was not begun" in done.stderr
    assert record(world) == ""


def test_without_cog(world: World) -> None:
    (world.folder / "bin" / "cog").unlink()
    done = world.run("push", "me/base")
    assert done.returncode == 1
    assert (
        "MISSING  cog: There is no `cog` on PATH. Install it: https://github.com/replicate/cog#install" in done.stderr
    )


@pytest.mark.parametrize(
    ("config", "seen"),
    [
        ({"auths": {"ghcr.io": {}}}, "MISSING  log-in"),
        ({}, "MISSING  log-in"),
        ("not json", "unknown  log-in"),
        ({"credsStore": "there"}, "ok       log-in: docker-credential-there has r8.im"),
        ({"credHelpers": {"r8.im": "there"}}, "ok       log-in: docker-credential-there has r8.im"),
        ({"credsStore": "nowhere"}, "unknown  log-in"),
        ({"credsStore": "../there"}, "unknown  log-in"),
    ],
)
def test_where_cog_keeps_the_log_in(world: World, config: object, seen: str) -> None:
    tool(world, "docker-credential-there", HELPER)
    log_in(world, config)
    done = world.run("push", "me/base", "--check")
    assert seen in done.stderr
    assert "SECRET" not in done.stderr
    assert done.returncode == (1 if "MISSING" in seen else 0)
    if not seen.startswith("ok"):
        assert "cog login" in done.stderr


def test_a_credential_helper_without_the_log_in(world: World) -> None:
    tool(world, "docker-credential-there", HELPER)
    log_in(world, {"credsStore": "there"})
    done = world.run("push", "me/base", "--check", HELPER_CODE="1")
    assert "MISSING  log-in: docker-credential-there has no r8.im" in done.stderr


def test_a_push_that_fails(world: World) -> None:
    done = world.run("push", "me/base", COG_CODE="3")
    assert done.returncode == 1
    assert "cog push r8.im/me/base failed with exit code 3; its own lines above say why." in done.stderr


def test_without_a_token_the_image_is_the_result(world: World) -> None:
    done = world.run("push", "me/base", REPLICATE_API_TOKEN="")
    assert (done.returncode, done.stdout) == (0, "r8.im/me/base\n")


def test_ctrl_c_lets_cog_clean_up(world: World) -> None:
    tool(world, "cog", SLOW_COG)
    with world.start("push", "me/base") as process:
        assert process.stderr is not None
        while not record(world):
            assert process.poll() is None
            time.sleep(0.02)
        # A terminal sends Ctrl-C to the whole group.
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=LIMIT_S)
    world.check(said)
    assert process.returncode == 130
    assert record(world).endswith("cleaned\n")


def test_ship_pushes_to_a_model_that_has_no_version(world: World) -> None:
    world.replicate.add_model("me/mine")
    files = ("--checkpoint", "my.safetensors", "--out", "out")
    done = world.run("ship", "--model", "me/mine", *files)
    assert done.returncode == 0, done.stderr
    assert record(world) == "push r8.im/me/mine\n"
    pushed = sha256(b"r8.im/me/mine")
    assert world.replicate.calls("POST", f"/v1/models/me/mine/versions/{pushed}/trainings")
    again = world.run("ship", "--model", "me/mine", *files)
    assert (again.returncode, record(world)) == (0, "push r8.im/me/mine\n")


def test_an_image_that_has_not_changed_makes_no_new_version(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfyui.local.replicate.models.VERSION_WAIT_S", 0.0)
    with Api(GOOD, Service(world.replicate.url), lambda _line: None) as api:
        assert wait_for_version(api, ("me", "base"), BASE_VERSION, lambda _s: None) == BASE_VERSION
        world.replicate.add_model("me/none")
        with pytest.raises(ServiceError, match="shows no version of me/none"):
            wait_for_version(api, ("me", "none"), None, lambda _s: None)


def test_a_model_that_is_not_there_is_noticed_before_the_push(world: World) -> None:
    done = world.run("push", "me/nowhere")
    assert done.returncode == 1
    assert "Make it first: scripts/replicate create me/nowhere." in done.stderr
    assert record(world) == ""


# cog.yaml


@pytest.fixture
def project(tmp_path: Path) -> Callable[[str], str]:
    """What the check says of a cog.yaml in a project with predict.py and requirements.txt."""
    (tmp_path / "predict.py").write_text("class Predictor: pass\n")
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "requirements.txt").write_text("")

    def look(text: str) -> str:
        (tmp_path / "cog.yaml").write_text(text)
        found = checks(Settings.from_environ({}), tmp_path, {"DOCKER_CONFIG": str(tmp_path)})
        return next(check.text for check in found if check.name == "cog.yaml")

    return look


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("build:\n  gpu: true\nrun: predict.py:Predictor\n", "valid"),
        ("run: predict.py:Predictor\nbiuld: {}\n", "key biuld that cog does not know; did you mean build?"),
        ("build: {python_version: '3.11', pyton_requirements: x}\nrun: a\n", "did you mean build.python_requirements?"),
        ("build: {}\n", "names nothing to run"),
        ("run: other.py:Predictor\n", "there is no file other.py"),
        ("run: predict.py:Runner\n", "predict.py defines no Runner"),
        ("run: predict.py\n", "defines no name behind the colon"),
        ("run: broken.py:Predictor\n", "cannot be read"),
        ("run: predict.py:Predictor\nbuild: {python_requirements: none.txt}\n", "there is no such file"),
        ("- a\n", "does not hold a mapping"),
        ("a: [\n", "cannot be read"),
    ],
)
def test_cog_yaml(project: Callable[[str], str], text: str, said: str) -> None:
    assert said in project(text)


def test_this_projects_own_cog_yaml_is_valid() -> None:
    found = next(check for check in checks(Settings.from_environ({}), PROJECT_ROOT, {}) if check.name == "cog.yaml")
    assert found.ok, found.text
