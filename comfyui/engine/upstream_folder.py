"""The folder ComfyUI lives in: whether it is as it was put there, and how a new tree takes its place.

A stamp inside the folder lists every file that was put there with its hash. Files that are not in the list make no
difference to the check: they are the user's or ComfyUI's own. When a tree is replaced,
  - everything in USER_FOLDERS and USER_FILES that the new tree does not have is moved along;
  - everything else goes, and what was edited by hand is named in a report line.

A replacement survives a kill at any instant. Its states, and what `settle` makes of each:

    upstream            upstream.old        meaning                                  settle
    old tree            -                   the new one is still being prepared      removes upstream.*.part
    -                   old tree            killed between the two renames           renames it back
    new tree            old tree            the user's files are being moved         moves the rest, removes the old

A lock on the parent folder keeps two calls from doing this at once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from comfyui.engine.git_tree import TreeFile, blob_of, tree_hash
from comfyui.errors import EngineError

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

Report = Callable[[str], None]

STAMP_NAME = ".comfyui-cog.json"
STAMP_FORMAT = 1
USER_FOLDERS = ("custom_nodes", "input", "models", "output", "user")
USER_FILES = ("extra_model_paths.yaml",)
NOT_IN_TREE = frozenset({STAMP_NAME, "__pycache__"})
PYTHON_TAG = sys.implementation.cache_tag or sys.version.split()[0]

_NAMED_FILES = 5


@dataclass(frozen=True)
class Stamp:
    """What was put into a folder: from where, which files, and for which Python they were compiled."""

    source: dict[str, str]
    python: str
    files: tuple[TreeFile, ...]

    def write(self, folder: Path) -> None:
        """Write the stamp into `folder`, whole or not at all."""
        rows = [[file.mode, file.blob, file.path] for file in self.files]
        text = json.dumps({"format": STAMP_FORMAT, **asdict(self), "files": rows}, indent=0)
        part = folder / (STAMP_NAME + ".part")
        part.write_text(text, encoding="utf-8")
        part.replace(folder / STAMP_NAME)


def read_stamp(folder: Path) -> Stamp | None:
    """The stamp in `folder`; None where there is none that this version of the program can read."""
    try:
        data = json.loads((folder / STAMP_NAME).read_bytes())
        if data["format"] != STAMP_FORMAT:
            return None
        files = tuple(TreeFile(str(mode), str(blob), str(path)) for mode, blob, path in data["files"])
        return Stamp({str(k): str(v) for k, v in data["source"].items()}, str(data["python"]), files)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # not our writing: the folder is treated as one without a stamp, and replaced


def why_not_intact(folder: Path, stamp: Stamp | None) -> str | None:
    """Say in a few words why `folder` is not the tree its stamp names, or None where every byte is as it was put.

    Reads and hashes every listed file (0.1 s for ComfyUI). Files beneath a user folder that is a link are not looked
    at: whoever makes models/ a link to another disk has no placeholders there.
    """
    if not os.path.lexists(folder):
        return "is not there yet"
    if stamp is None:
        return "was not put there by this program, or not completely"
    if tree_hash(stamp.files) != stamp.source["tree"]:
        return "has a list of files that does not fit its tree hash"
    linked = {name for name in USER_FOLDERS if (folder / name).is_symlink()}
    wrong = [
        file.path for file in stamp.files if file.path.split("/")[0] not in linked and not _is_as_put(folder, file)
    ]
    if not wrong:
        return None
    more = f" and {len(wrong) - _NAMED_FILES} more" if len(wrong) > _NAMED_FILES else ""
    return f"was changed: {', '.join(wrong[:_NAMED_FILES])}{more}"


def _is_as_put(folder: Path, file: TreeFile) -> bool:
    try:
        return blob_of(folder / file.path) == file.blob
    except OSError:  # missing, unreadable, or a folder now: not as put, whichever it is
        return False


@contextmanager
def locked(parent: Path, report: Report) -> Iterator[int | None]:
    """Hold the lock on `parent`, waiting for whoever has it; yields its descriptor for the programs we start.

    The folder itself is locked, so no lock file is left behind. Where the system or disk has no locks, says so in a
    report line and goes on with None.
    """
    if fcntl is None:
        report("This system has no file locks: do not run this twice at the same time.")
        yield None
        return
    descriptor = os.open(parent, os.O_RDONLY)
    try:
        held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("Another call is at work in the same place: waiting for it to end.")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            report(f"{parent} cannot be locked ({error}): do not run this twice at the same time.")
            held = False
        yield descriptor if held else None
    finally:
        os.close(descriptor)


def settle(folder: Path, report: Report) -> None:
    """Finish or undo what a killed call left beside `folder`; hold the lock. Raises EngineError, OSError."""
    old = _old(folder)
    if old.exists():
        if os.path.lexists(folder):
            _finish(folder)
        else:
            old.rename(folder)
    for part in folder.parent.glob(f"{folder.name}.*.part"):
        report(f"Removing {part.name}, left by a call that was stopped.")
        shutil.rmtree(part)


def put_in_place(tree: Path, folder: Path) -> None:
    """Make the finished `tree`, a folder on the same disk, the new `folder`. Raises EngineError, OSError."""
    if os.path.lexists(folder):
        folder.rename(_old(folder))
        tree.rename(folder)
        _finish(folder)
    else:
        tree.rename(folder)


def _old(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")


def _finish(folder: Path) -> None:
    old = _old(folder)
    if old.is_dir():
        for name in (*USER_FOLDERS, *USER_FILES):
            if os.path.lexists(old / name):
                _move_along(old / name, folder / name)
        shutil.rmtree(old)
    else:
        old.unlink()


def _move_along(old: Path, new: Path) -> None:
    if not os.path.lexists(new):
        old.rename(new)
    elif old.is_symlink() and old.is_dir():
        # Only our own placeholders can be in the new one: the user's link takes its place.
        if not new.is_symlink():
            shutil.rmtree(new)
            old.rename(new)
    elif old.is_dir() and new.is_dir():
        for child in sorted(old.iterdir()):
            if child.name != "__pycache__":
                _move_along(child, new / child.name)
    elif old.is_dir() or new.is_dir():
        raise EngineError(
            f"{old} cannot be moved to {new}: one is a folder and the other is not. Move {old} out of the way by hand, "
            "then run scripts/fetch-comfyui again."
        )


def compile_tree(folder: Path, files: tuple[TreeFile, ...], lock_fd: int | None, report: Report) -> None:
    """Write the .pyc of every Python file of the tree (halves ComfyUI's start), one process for each core.

    The .pyc are of the "checked hash" kind: Python compares a hash of the source, not its time. An image or a copy may
    change times, which would make every ordinary .pyc useless; and unlike "unchecked hash", a source edited by hand
    still takes effect. compileall writes real files even where PYTHONDONTWRITEBYTECODE is set.
    A file that does not compile is named in a report line and left as it is: Python will say more when it is imported.
    """
    names = [file.path for file in files if file.path.endswith(".py")]
    argv = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "-i", "-"]
    count = max(1, min(os.cpu_count() or 1, len(names)))
    pass_fds = () if lock_fd is None else (lock_fd,)
    # Not compileall's own worker pool: its workers would wait for ever if this process were killed.
    workers = [
        subprocess.Popen(
            argv,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=pass_fds,
        )
        for _ in range(count)
    ]
    try:
        for index, worker in enumerate(workers):
            assert worker.stdin is not None  # noqa: S101 - for the type checker: we asked for a pipe
            worker.stdin.write("".join(f"{name}\n" for name in names[index::count]))
            worker.stdin.close()
            worker.stdin = None
        for worker in workers:
            said, _ = worker.communicate()
            if worker.returncode != 0:
                report(f"Some Python files were not compiled; ComfyUI may start more slowly:\n{said.strip()}")
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
