"""`cog push`, after everything that would make it fail late has been looked at early.

A push builds an image of many GB for tens of minutes; a missing log-in or an empty comfyui/upstream shows at its end.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from comfyui.engine.upstream import check_upstream
from comfyui.errors import EngineError, RequestError
from comfyui.local.replicate.failures import ServiceError
from comfyui.settings import PROJECT_ROOT, Settings
from comfyui.suggest import nearest_input
from comfyui.weights.listener import size_text

REGISTRY = "r8.im"
ANSWER_S = 30.0
INSTALL_COG = "Install it: https://github.com/replicate/cog#install"
# https://github.com/replicate/cog, docs/yaml.md
_TOP_KEYS = ("build", "image", "model", "run", "predict", "train", "environment", "weights", "concurrency")
_BUILD_KEYS = (
    *("cuda", "cudnn", "gpu", "pre_install", "python_packages", "python_requirements"),
    *("python_version", "run", "sdk_version", "system_packages"),
)


@dataclass(frozen=True)
class Check:
    """One thing a push needs. `ok` is None where that cannot be found out; `text` is what was seen, or what to do."""

    name: str
    ok: bool | None
    text: str


def checks(settings: Settings, root: Path = PROJECT_ROOT, environ: Mapping[str, str] = os.environ) -> Iterator[Check]:
    """Look at everything a push needs, one after the other; nothing is changed."""
    yield _cog()
    yield _docker()
    yield _log_in(environ)
    yield _cog_yaml(root)
    yield _comfyui(settings)
    yield _sizes(root)


def push(image: str, more: Sequence[str], root: Path) -> None:
    """Run `cog push IMAGE` in the project's folder; its own output is the progress, and goes to stderr.

    Raises ServiceError when it fails.
    """
    # In our own process group: Ctrl-C reaches cog as it reaches us, and it cleans up after itself.
    process = subprocess.Popen(["cog", "push", image, *more], cwd=root, stdout=sys.stderr)  # noqa: S607
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    if code != 0:
        raise ServiceError(
            f"cog push {image} failed with exit code {code}; its own lines above say why.", service="cog", status=code
        )


def _cog() -> Check:
    if shutil.which("cog") is None:
        return Check("cog", False, f"There is no `cog` on PATH. {INSTALL_COG}")
    code, said = _answer(["cog", "--version"])
    return Check("cog", code == 0, said if code == 0 else f"`cog --version` fails: {said}. {INSTALL_COG}")


def _docker() -> Check:
    if shutil.which("docker") is None:
        return Check(
            "docker", False, "There is no `docker` on PATH. Install it: https://docs.docker.com/engine/install/"
        )
    code, said = _answer(["docker", "info", "--format", "{{.ServerVersion}}"])
    if code != 0 or not said:
        return Check("docker", False, f"Docker does not answer ({said or 'no version'}). Start it, then try again.")
    return Check("docker", True, f"server {said}")


def _log_in(environ: Mapping[str, str]) -> Check:
    """Where `cog login` puts the token: Docker's config.json, or the credential helper it names (cog, login.go)."""
    how = (
        f"Run `cog login` to log in to {REGISTRY}; it takes the token of https://replicate.com/auth/token, which is "
        "another than REPLICATE_API_TOKEN."
    )
    path = Path(environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return Check("log-in", False, f"There is no {path}. {how}")
    except (OSError, ValueError) as error:
        return Check("log-in", None, f"{path} cannot be read ({type(error).__name__}), so nobody knows here. {how}")
    config = config if isinstance(config, dict) else {}
    helper = config.get("credsStore") or (config.get("credHelpers") or {}).get(REGISTRY)
    if not helper:
        known = REGISTRY in (config.get("auths") or {})
        return Check("log-in", known, f"{path} has {REGISTRY}" if known else f"{path} has no {REGISTRY}. {how}")
    binary = f"docker-credential-{helper}"
    if Path(binary).name != binary or shutil.which(binary) is None:
        return Check("log-in", None, f"{path} names {binary}, which is not on PATH, so nobody knows here. {how}")
    # Its output is the token: it goes nowhere.
    code, _ = _answer([binary, "get"], REGISTRY)
    return Check("log-in", code == 0, f"{binary} has {REGISTRY}" if code == 0 else f"{binary} has no {REGISTRY}. {how}")


def _cog_yaml(root: Path) -> Check:
    try:
        problem = next(_yaml_problems(root), None)
    except (OSError, yaml.YAMLError, SyntaxError) as error:
        problem = f"cannot be read: {' '.join(str(error).split())[:300]}"
    return Check("cog.yaml", problem is None, f"cog.yaml {problem}" if problem else "valid as far as can be seen here")


def _yaml_problems(root: Path) -> Iterator[str]:
    config = yaml.safe_load((root / "cog.yaml").read_text("utf-8"))
    if not isinstance(config, dict) or not isinstance(config.get("build", {}), dict):
        yield "does not hold a mapping with a `build` in it."
        return
    build: dict[str, Any] = config.get("build", {})
    for names, known, where in ((config, _TOP_KEYS, ""), (build, _BUILD_KEYS, "build.")):
        for name in names:
            if name not in known:
                near = nearest_input(str(name), known)
                hint = f"; did you mean {where}{near}?" if near else "."
                yield f"has a key {where}{name} that cog does not know{hint}"
    if "run" not in config and "predict" not in config:
        yield 'names nothing to run; it needs a line such as run: "predict.py:Predictor".'
    for key in ("run", "predict", "train"):
        if key in config:
            yield from _reference_problems(key, str(config[key]), root)
    requirements = build.get("python_requirements")
    if requirements is not None and not (root / str(requirements)).is_file():
        yield f"names build.python_requirements {requirements}, and there is no such file."


def _reference_problems(key: str, reference: str, root: Path) -> Iterator[str]:
    file, _, name = reference.partition(":")
    if not (root / file).is_file():
        yield f"has {key}: {reference}, and there is no file {file}."
        return
    defined = {getattr(node, "name", "") for node in ast.parse((root / file).read_text("utf-8")).body}
    if name not in defined:
        yield f"has {key}: {reference}, and {file} defines no {name or 'name behind the colon'}."


def _comfyui(settings: Settings) -> Check:
    inside = PROJECT_ROOT / "comfyui" / "upstream"
    try:
        folder = check_upstream(settings)
    except EngineError as error:
        return Check("ComfyUI", False, str(error))
    if folder != inside:
        return Check(
            "ComfyUI",
            False,
            f"COMFYUI_DIR is {folder}, which is not in the image. Unset it, and run scripts/fetch-comfyui.",
        )
    return Check("ComfyUI", True, str(folder))


def _sizes(root: Path) -> Check:
    models = _size(root / "models")
    with_code = models + _size(root / "comfyui" / "upstream")
    free = shutil.disk_usage(root).free
    text = f"models/ holds {size_text(models)}, which become part of the image; with ComfyUI {size_text(with_code)}"
    if free < 2 * with_code:
        return Check("sizes", None, f"{text}. Only {size_text(free)} are free here; an image needs more.")
    return Check("sizes", True, text)


def _size(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        # What Python compiles meanwhile comes and goes.
        with suppress(FileNotFoundError):
            found = path.lstat()
            size += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return size


def _answer(command: Sequence[str], given: str = "") -> tuple[int, str]:
    """Exit code and the first line of a command that answers soon."""
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, errors="replace", timeout=ANSWER_S, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, f"no answer for {ANSWER_S:g} s"
    except OSError as error:
        return 1, str(error.strerror)
    said = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip()
    return done.returncode, said.splitlines()[0][:300] if said else ""


def need_all(found: Sequence[Check], say: Callable[[str], None]) -> None:
    """Say every check; raise RequestError that lists those which fail."""
    for check in found:
        say(f"{ {True: 'ok     ', False: 'MISSING', None: 'unknown'}[check.ok] }  {check.name}: {check.text}")
    wrong = [check for check in found if check.ok is False]
    if wrong:
        names = ", ".join(check.name for check in wrong)
        raise RequestError(f"The push was not begun; it would fail for want of: {names}. {wrong[0].text}")
