"""Real child processes: what they print, how they end, and that nothing of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from comfyui.process import KEPT_LINES, MAX_LINE_CHARS, LineLog, ManagedProcess
from comfyui.settings import PROJECT_ROOT

WAIT_S = 20.0


def until(true: Callable[[], object], within_s: float = WAIT_S) -> None:
    """Return as soon as it is true; fail when it never is."""
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """No such process, or nothing of it but an entry that its parent has yet to read."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Starter:
    """Starts Python source text as managed processes of one test; whatever it leaves running is stopped at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.started: list[ManagedProcess] = []

    def write(self, source: str, name: str = "program.py") -> Path:
        path = self.folder / name
        path.write_text(textwrap.dedent(source), "utf-8")
        return path

    def start(self, source: str, *arguments: str) -> ManagedProcess:
        return self.run([str(self.write(source)), *arguments])

    def run(self, program: list[str]) -> ManagedProcess:
        process = ManagedProcess(
            program, cwd=self.folder, env={**os.environ, "PYTHONUNBUFFERED": "1"}, log=LineLog(self.lines.append)
        )
        self.started.append(process)
        return process

    def finish(self, source: str) -> ManagedProcess:
        process = self.start(source)
        until(lambda: process.returncode() is not None)
        process.ended_lines()
        return process


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[Starter]:
    made = Starter(tmp_path)
    yield made
    for process in made.started:
        process.stop(grace_s=0)


def test_every_line_comes_without_colours_and_a_carriage_return_ends_one_too(starter: Starter) -> None:
    starter.finish(
        r"""
        import sys
        print("plain  line  ")
        print("\x1b[32m[INFO]\x1b[0m coloured\x1b[K")
        sys.stdout.write("step 1\rstep 2\rstep 3\r\n\n\n")
        print("schön 🐈", file=sys.stderr)
        sys.stdout.buffer.write(b"broken \xff byte\nno end")
        """
    )
    assert starter.lines == [
        "plain  line",
        "[INFO] coloured",
        "step 1",
        "step 2",
        "step 3",
        "schön 🐈",
        "broken \ufffd byte",
        "no end",
    ]


def test_lines_come_while_the_process_runs(starter: Starter) -> None:
    process = starter.start("import time\nprint('up')\ntime.sleep(600)")
    until(lambda: starter.lines == ["up"])
    assert process.returncode() is None


def test_a_line_without_end_is_handed_on_in_pieces(starter: Starter) -> None:
    process = starter.start(
        f"import sys, time\nsys.stdout.write('x' * {3 * MAX_LINE_CHARS})\nsys.stdout.flush()\ntime.sleep(600)"
    )
    until(lambda: len(starter.lines) == 3)
    assert {len(line) for line in starter.lines} == {MAX_LINE_CHARS}
    assert process.returncode() is None


def test_the_exit_code_and_the_last_lines_are_noticed(starter: Starter) -> None:
    process = starter.finish(f"for n in range({KEPT_LINES + 40}): print('line', n)\nraise SystemExit(7)")
    assert process.returncode() == 7
    assert process.ended_lines() == tuple(f"line {n}" for n in range(40, KEPT_LINES + 40))
    assert process.stop() == 7


def test_a_traceback_is_among_the_last_lines(starter: Starter) -> None:
    process = starter.finish("def load():\n    raise OSError('no weights')\nload()")
    assert process.returncode() == 1
    assert process.ended_lines()[-1] == "OSError: no weights"


def test_the_signal_that_ended_a_process_is_its_exit_code(starter: Starter) -> None:
    process = starter.start("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    until(lambda: process.returncode() is not None)
    assert process.returncode() == -signal.SIGSEGV


def test_a_script_runs_as_python_would_run_it(starter: Starter) -> None:
    starter.write("VALUE = 'from the folder of the script'", "beside.py")
    script = starter.write(
        """
        import sys, os
        import beside
        print(__name__, sys.argv, beside.VALUE)
        print(sys.modules["__main__"].__file__ == __file__, os.getcwd() == os.path.dirname(__file__))
        print(sorted(name for name in sys.modules if name.startswith("comfyui")))
        print(sys.stdin.read() == "")
        """
    )
    process = starter.run([str(script), "--flag", "a b"])
    until(lambda: process.returncode() == 0)
    process.ended_lines()
    assert starter.lines == [
        f"__main__ {[str(script), '--flag', 'a b']} from the folder of the script",
        "True True",
        "[]",
        "True",
    ]


def test_a_module_runs_as_python_would_run_it(starter: Starter) -> None:
    (starter.folder / "package").mkdir()
    module = starter.write("import sys\nprint(__name__, sys.argv, __package__)", "package/tool.py")
    process = starter.run(["-m", "package.tool", "--flag"])
    until(lambda: process.returncode() == 0)
    process.ended_lines()
    assert starter.lines == [f"__main__ {[str(module), '--flag']} package"]


STUBBORN = """
    import signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", "import signal, time\\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\n"
        "import os; print('child', os.getpid(), flush=True)\\n"
        "time.sleep(600)"])
    time.sleep(600)
"""


def child_pid(lines: list[str]) -> int:
    until(lambda: any(line.startswith("child") for line in lines))
    return next(int(line.split()[1]) for line in lines if line.startswith("child"))


def test_stop_lets_a_process_end_in_its_own_way(starter: Starter) -> None:
    process = starter.start(
        """
        import signal, sys, time
        def end(*args):
            print("goodbye")
            sys.exit(3)
        signal.signal(signal.SIGTERM, end)
        print("up")
        time.sleep(600)
        """
    )
    until(lambda: starter.lines)
    assert process.stop() == 3
    assert starter.lines == ["up", "goodbye"]


def test_stop_ends_a_process_that_ignores_it_and_its_children(starter: Starter) -> None:
    process = starter.start(STUBBORN)
    child = child_pid(starter.lines)
    assert process.stop(grace_s=0.3) == -signal.SIGKILL
    until(lambda: gone(child) and gone(process.pid))


def test_stop_ends_what_an_ended_process_left_behind(starter: Starter) -> None:
    """The children of a ComfyUI that crashed hold its GPU memory too."""
    process = starter.start(STUBBORN)
    child = child_pid(starter.lines)
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: process.returncode() is not None)
    assert not gone(child)
    assert process.stop() == -signal.SIGKILL
    until(lambda: gone(child))


def test_stopping_twice_signals_nobody(starter: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first stop the number may belong to another program."""
    process = starter.start("import time\ntime.sleep(600)")
    first = process.stop()
    monkeypatch.setattr(os, "killpg", lambda *args: pytest.fail(f"signalled {args}"))
    assert process.stop() == first == -signal.SIGTERM


PARENT = """
    import os, sys, time
    from pathlib import Path
    from comfyui.process import LineLog, ManagedProcess
    log = LineLog(lambda line: print(line, flush=True))
    process = ManagedProcess([sys.argv[1]], cwd=Path(sys.argv[1]).parent, env=dict(os.environ), log=log)
    print("managed", process.pid, flush=True)
    time.sleep(600)
"""


def test_a_parent_killed_outright_leaves_no_process_behind(starter: Starter) -> None:
    """Neither the managed process nor its child, though both ignore SIGTERM."""
    parent = subprocess.Popen(
        [sys.executable, starter.write(PARENT, "parent.py"), starter.write(STUBBORN, "stubborn.py")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT_ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    assert parent.stdout is not None
    pids = {}
    with parent, parent.stdout:
        for line in parent.stdout:
            word, pid = line.split()
            pids[word] = int(pid)
            if len(pids) == 2:
                break
        assert not any(gone(pid) for pid in pids.values())
        parent.send_signal(signal.SIGKILL)
        assert parent.wait(WAIT_S) == -signal.SIGKILL
    until(lambda: all(gone(pid) for pid in pids.values()), within_s=5)


def test_two_may_stop_it_at_once(starter: Starter) -> None:
    process = starter.run([str(starter.write(STUBBORN))])
    until(lambda: bool(starter.lines))
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(process.stop, (0.5, 0.5))) == [-signal.SIGKILL] * 2


def test_two_processes_do_not_keep_each_other_alive(starter: Starter) -> None:
    """The second must not inherit the pipe by which the first sees that we live."""
    program = [str(starter.write("import time\nprint('up')\ntime.sleep(600)"))]
    first = starter.run(program)
    starter.run(program)
    until(lambda: len(starter.lines) == 2)
    # What the kernel does for us when we are killed; the number stays open, so that stop() may close it.
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), first._watch_write)
    until(lambda: first.returncode() == -signal.SIGKILL, within_s=5)


def test_starting_and_stopping_leaves_no_file_open_and_no_thread(starter: Starter) -> None:
    starter.start("pass").stop()
    us = psutil.Process()
    before = us.num_fds(), us.num_threads()
    for number in range(50):
        if number % 5:
            starter.start("print('never seen')").stop(grace_s=0)
        else:
            starter.finish("print('done')").stop()
    assert us.num_fds() <= before[0]
    until(lambda: us.num_threads() <= before[1])  # join() returns a moment before the kernel's thread is gone


def test_a_program_that_cannot_be_started_leaves_no_file_open(starter: Starter, tmp_path: Path) -> None:
    before = psutil.Process().num_fds()
    for _ in range(5):
        with pytest.raises(FileNotFoundError):
            ManagedProcess(["x.py"], cwd=tmp_path / "nowhere", env={}, log=LineLog(print))
    assert psutil.Process().num_fds() == before


def test_a_listener_takes_the_lines_over_until_it_ends() -> None:
    sink: list[str] = []
    log = LineLog(sink.append)
    log.add("before")
    with log.listen() as first, log.listen() as second:
        log.add("during")
        assert (first.get_nowait(), second.get_nowait()) == ("during", "during")
        assert first.empty()
    log.add("after")
    assert sink == ["before", "after"]
    assert second.empty()
    assert log.last_lines() == ("before", "during", "after")
