"""scripts/setup in a small project: its own lib.sh and real virtual environments, with pins of nothing at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from comfyui.settings import PROJECT_ROOT

LIMIT_S = 120


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The scripts, in a folder with a space in its name, and requirements of no package."""
    root = tmp_path / "my project"
    (root / "scripts").mkdir(parents=True)
    for name in ("lib.sh", "setup"):
        shutil.copy(PROJECT_ROOT / "scripts" / name, root / "scripts" / name)
    for name in ("requirements.txt", "requirements-local.txt", "requirements-dev.txt"):
        (root / name).write_text("# none\n")
    return root


def setup(project: Path, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "PYTHONPATH")}
    # The Python that runs the tests is new enough, whatever the machine calls python3.
    environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environ["PATH"]])
    return subprocess.run(
        [project / "scripts" / "setup"],
        cwd=cwd,
        env={**environ, **more},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def has_pip(project: Path) -> bool:
    python = project / ".venv" / "bin" / "python"
    return subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0


def test_an_environment_that_was_left_half_made_is_made_anew(project: Path) -> None:
    """As Debian's Python leaves it without python3-venv, and Ctrl-C while pip is put in."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", project / ".venv"], check=True)
    done = setup(project, project)
    assert done.returncode == 0, done.stderr
    assert "Making .venv with Python 3." in done.stdout
    assert has_pip(project)
    assert setup(project, project).stdout == "", "there is nothing left to do"


def test_it_works_where_cd_prints_what_it_finds(project: Path) -> None:
    done = setup(project, project.parent, CDPATH=f".:{project.parent}")
    assert done.returncode == 0, done.stderr
    assert has_pip(project)


def test_a_newer_python_beside_an_old_python3_is_found(project: Path, tmp_path: Path) -> None:
    old = tmp_path / "bin"
    old.mkdir()
    for name in ("bash", "dirname", "basename", "cat", "cksum", "grep"):
        (old / name).symlink_to(shutil.which(name) or name)
    (old / "python3").write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.10.12"\nexit 1\n')
    (old / "python3").chmod(0o755)
    environ = {"PATH": str(old), "HOME": str(tmp_path)}

    def run() -> subprocess.CompletedProcess[str]:
        command = [old / "bash", project / "scripts" / "setup"]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False)

    done = run()
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed; python3 is Python 3.10.12. Install one and put it on PATH." in done.stderr
    (old / "python3.11").symlink_to(sys.executable)
    done = run()
    assert done.returncode == 0, done.stderr
    assert has_pip(project)


def test_a_python_of_ones_own_is_left_alone_and_that_is_said(project: Path) -> None:
    done = setup(project, project, PYTHON=sys.executable)
    assert done.returncode == 1
    assert f"PYTHON is set to {sys.executable}, which is your own: nothing was installed." in done.stderr
    assert not (project / ".venv").exists()
