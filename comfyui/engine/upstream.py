"""Puts ComfyUI's own source into comfyui/upstream, verified, and says whether it is there.

    archive or git  ->  upstream.<random>.part/tree  ->  counted, hashed, compiled, stamped  ->  comfyui/upstream

`python -m comfyui.engine.upstream` (scripts/fetch-comfyui) is the only thing that changes that folder. A folder given
as COMFYUI_DIR belongs to the user: it is looked at and never written.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from comfyui.engine.git_tree import read_tree, tree_hash
from comfyui.engine.upstream_folder import (
    NOT_IN_TREE,
    PYTHON_TAG,
    Report,
    Stamp,
    compile_tree,
    locked,
    put_in_place,
    read_stamp,
    settle,
    why_not_intact,
)
from comfyui.engine.upstream_sources import (
    COMFYUI,
    Fetch,
    GitSource,
    PinnedSource,
    Tools,
    checkout,
    fetch_archive,
    remote_commits,
    unpack_pinned,
)
from comfyui.errors import ComfyUIModelError, EngineError
from comfyui.settings import PROJECT_ROOT, Settings

DEFAULT_DIR = PROJECT_ROOT / "comfyui" / "upstream"
_MUST_HAVE = ("main.py", "comfyui_version.py")


def check_upstream(settings: Settings) -> Path:
    """Return the folder ComfyUI can be started from: a look at two files, no hashes, no network.

    Raises EngineError that says how to get one.
    """
    folder = settings.upstream_dir
    missing = [name for name in _MUST_HAVE if not (folder / name).is_file()]
    if not missing:
        return folder
    seen = f"it has no {' and no '.join(missing)}" if folder.is_dir() else "there is no such folder"
    if _is_ours(settings):
        raise EngineError(f"ComfyUI is not in {folder} ({seen}). Run scripts/fetch-comfyui to put it there.")
    raise EngineError(
        f"COMFYUI_DIR is {folder}, which is not ComfyUI: {seen}. Set it to a ComfyUI folder, or unset it and run "
        "scripts/fetch-comfyui."
    )


def ensure_upstream(settings: Settings, report: Report, source: PinnedSource | GitSource = COMFYUI) -> Path:
    """Return the folder ComfyUI can be started from, fetching or repairing it first where that is needed.

    A COMFYUI_DIR of the user's own is only checked. `report` gets one line for each thing done; none when nothing was.
    Raises EngineError that says what to do.
    """
    if _is_ours(settings):
        return install_upstream(settings.upstream_dir, source, report)
    if isinstance(source, GitSource):
        raise EngineError(
            f"COMFYUI_DIR is set to {settings.upstream_dir}, a folder of your own that is never written. "
            "Unset COMFYUI_DIR to fetch another version with --git."
        )
    return check_upstream(settings)


def install_upstream(
    folder: Path, source: PinnedSource | GitSource, report: Report, *, fetch: Fetch = fetch_archive
) -> Path:
    """Make `folder` the tree of `source`, whatever is there now, and return it; does nothing where it is already.

    See upstream_folder for what happens to the user's files and to a call that is killed. `fetch` gets the archive of
    a pinned source. Raises EngineError.
    """
    if folder.is_symlink():
        raise EngineError(f"{folder} is a link; this program would replace it. Remove it and set COMFYUI_DIR instead.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent, report) as lock_fd:
            settle(folder, report)
            _replace_unless_intact(folder, source, report, fetch, Tools(lock_fd))
    except OSError as error:
        raise EngineError(
            f"ComfyUI cannot be put into {folder}: {error}. Check rights and free space there."
        ) from error
    return folder


def _replace_unless_intact(
    folder: Path, source: PinnedSource | GitSource, report: Report, fetch: Fetch, tools: Tools
) -> None:
    stamp = read_stamp(folder)
    reason = why_not_intact(folder, stamp)
    if reason is None and stamp is not None:
        if not _is_from(stamp, source, tools, folder.parent):
            reason = f"holds another version ({_origin(stamp)})"
        elif stamp.python == PYTHON_TAG:
            return
        else:
            report(f"{folder} was compiled for {stamp.python}: compiling it for {PYTHON_TAG}.")
            compile_tree(folder, stamp.files, tools.lock_fd, report)
            replace(stamp, python=PYTHON_TAG).write(folder)
            return
    report(f"{folder} {reason}: fetching {_name(source)}.")
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        tree = part / "tree"  # one level down: the temporary folder itself is readable by its owner only
        new = _fill(tree, part, source, fetch, tools)
        compile_tree(tree, new.files, tools.lock_fd, report)
        new.write(tree)
        put_in_place(tree, folder)
    finally:
        shutil.rmtree(part)
    report(f"{folder} is ComfyUI {upstream_version(folder)}: {len(new.files)} files, tree {new.source['tree']}.")


def _fill(tree: Path, part: Path, source: PinnedSource | GitSource, fetch: Fetch, tools: Tools) -> Stamp:
    """Put the source's files into the new folder `tree`, check them, and return the stamp they deserve."""
    if isinstance(source, PinnedSource):
        unpack_pinned(source, fetch(source, part, tools), tree)
        files = tuple(read_tree(tree))
        seen = tree_hash(files)
        if (len(files), seen) != (source.file_count, source.tree_hash):
            raise EngineError(
                f"{source.requirement} unpacked to {len(files)} files with tree hash {seen}, expected "
                f"{source.file_count} files with {source.tree_hash}. The disk may be at fault: try again."
            )
        return Stamp(source.describe(), PYTHON_TAG, files)
    commit = checkout(source, tree, tools)
    missing = [name for name in _MUST_HAVE if not (tree / name).is_file()]
    if missing:
        raise EngineError(f"{source.ref} of {source.shown_url} is not ComfyUI: it has no {' and no '.join(missing)}.")
    files = tuple(read_tree(tree, skip=NOT_IN_TREE))
    told = {"git": source.shown_url, "ref": source.ref, "commit": commit, "tree": tree_hash(files)}
    return Stamp(told, PYTHON_TAG, files)


def _is_from(stamp: Stamp, source: PinnedSource | GitSource, tools: Tools, cwd: Path) -> bool:
    if isinstance(source, PinnedSource):
        return stamp.source == source.describe()
    return stamp.source.get("git") == source.shown_url and stamp.source.get("commit") in remote_commits(
        source, tools, cwd
    )


def upstream_version(folder: Path) -> str:
    """ComfyUI's own version of the tree in `folder` ("0.30.0"); "of unknown version" where it does not say."""
    text = (folder / "comfyui_version.py").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^__version__\s*=\s*[\"']([^\"']+)", text, re.MULTILINE)
    return found.group(1) if found else "of unknown version"


def _is_ours(settings: Settings) -> bool:
    return settings.upstream_dir == DEFAULT_DIR


def _name(source: PinnedSource | GitSource) -> str:
    return source.requirement if isinstance(source, PinnedSource) else f"{source.ref} of {source.shown_url}"


def _origin(stamp: Stamp) -> str:
    told = stamp.source
    return f"{told['ref']} of {told['git']}" if "git" in told else told.get("requirement", "of unknown origin")


_HELP = """\
Put ComfyUI into comfyui/upstream, checked byte for byte against a pinned hash.

Run it as often as you like: where everything is as it should be, it only says so. A tree that was
changed or is incomplete is replaced. Your own files in custom_nodes/, input/, models/, output/, user/
and extra_model_paths.yaml stay; edits to ComfyUI's own files do not."""

_EPILOG = """\
examples:
  scripts/fetch-comfyui                     the version this project is tested with
  scripts/fetch-comfyui --verify            only check; changes nothing
  scripts/fetch-comfyui --git https://github.com/comfyanonymous/ComfyUI --ref v0.30.0
                                            another version; without --git the tested one comes back
  COMFYUI_DIR=~/ComfyUI scripts/serve       a ComfyUI you have: used as it is, never written

exit codes: 0 ready, 1 failed (the last line says what to do), 2 wrong arguments, 130 stopped with Ctrl-C"""


def main(argv: Sequence[str] | None = None) -> int:
    """scripts/fetch-comfyui: returns the exit code; messages go to stderr, the folder's path to stdout."""
    parser = argparse.ArgumentParser(
        prog="scripts/fetch-comfyui",
        description=_HELP,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--git", metavar="URL", help="take ComfyUI from this git repository (needs --ref)")
    parser.add_argument("--ref", metavar="REF", help="branch, tag or full commit hash in that repository")
    parser.add_argument("--verify", action="store_true", help="check what is there, fetch nothing, change nothing")
    options = parser.parse_args(argv)
    if (options.git is None) != (options.ref is None):
        parser.error("--git and --ref go together: a URL, and the branch, tag or commit to take from it")
    if options.verify and options.git is not None:
        parser.error("--verify checks what is there; it takes no --git")
    try:
        settings = Settings.from_environ()
        if options.verify:
            folder = _verify(settings)
        else:
            source = COMFYUI if options.git is None else GitSource(options.git, options.ref)
            folder = ensure_upstream(settings, _to_stderr, source)
        _to_stderr(f"ComfyUI {upstream_version(folder)} is ready.")
    except ComfyUIModelError as error:
        _to_stderr(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _to_stderr("Stopped. What was there before is still there; run it again to go on.")
        return 130
    print(folder)  # noqa: T201 - the answer, for scripts
    return 0


def _verify(settings: Settings) -> Path:
    folder = check_upstream(settings)
    if not _is_ours(settings):
        return folder
    reason = why_not_intact(folder, read_stamp(folder))
    if reason is not None:
        raise EngineError(f"{folder} {reason}. Run scripts/fetch-comfyui to repair it.")
    return folder


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
