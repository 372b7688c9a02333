"""Folders for delivered files: fresh for each prediction, swept when they are old."""

from __future__ import annotations

import os
import time
from pathlib import Path

from comfyui.scratch import KEPT_S, new_output_folder


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
