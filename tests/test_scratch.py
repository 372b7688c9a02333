"""Folders for delivered files, swept when they are old; folders of runs, swept when their process has ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from comfyui.scratch import KEPT_S, new_output_folder, new_run_dir, remove_run_dir
from comfyui.settings import PROJECT_ROOT


def test_every_folder_is_new_and_empty(tmp_path: Path) -> None:
    first, second = new_output_folder(tmp_path / "outputs"), new_output_folder(tmp_path / "outputs")
    assert first != second
    assert list(first.iterdir()) == []
    assert first.parent == second.parent == tmp_path / "outputs"


def test_old_folders_are_swept_and_young_ones_kept(tmp_path: Path) -> None:
    old, young = new_output_folder(tmp_path), new_output_folder(tmp_path)
    for folder, age_s in ((old, KEPT_S + 60), (young, KEPT_S - 60)):
        (folder / "a.png").write_bytes(b"x")
        os.utime(folder, (time.time() - age_s,) * 2)
    new = new_output_folder(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([young, new])
    assert (young / "a.png").exists()


OTHER = """
import sys
from pathlib import Path
from comfyui.scratch import new_run_dir
print(new_run_dir(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def test_run_folders_of_ended_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    """Also where their process ids say nothing, as between a container and its host."""
    ours = new_run_dir(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, tmp_path],
        cwd=PROJECT_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        (theirs / "output").mkdir()
        second = new_run_dir(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([ours, second, theirs])
        process.kill()
        process.wait()
        (tmp_path / "engine-1234-of-an-older-version").mkdir()
        third = new_run_dir(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([ours, second, third])
    for folder in (ours, second, third):
        remove_run_dir(folder)
    assert list(tmp_path.iterdir()) == []


def test_run_folders_leave_no_file_open(tmp_path: Path) -> None:
    before = psutil.Process().num_fds()
    for _ in range(5):
        remove_run_dir(new_run_dir(tmp_path))
    assert psutil.Process().num_fds() == before
