"""Run a Python program as this process, and end with the process that asked for it.

    python launch.py FD PATH/TO/main.py ARG…        a script, as `python main.py ARG…` would run it
    python launch.py FD -m PACKAGE.MODULE ARG…      a module, as `python -m` would run it

FD is the read end of a pipe whose write end only the parent holds. When the parent is gone, even by SIGKILL, the
read returns, and the whole process group of this program is killed: no ComfyUI is left behind holding a GPU.
A script of its own: it imports nothing of this project, so that ComfyUI's modules meet none of ours.

It also ends the process when the thread that runs ComfyUI's prompts ends, as it does when a node calls exit(): Python
lets a thread's SystemExit pass without a word, and ComfyUI would go on answering and never run a prompt again.
"""

import os
import runpy
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

WORKER_THREAD = "(prompt_worker)"
"""In the name that Python gives the thread, after its function in ComfyUI's main.py."""
LAST_WORDS_S = 0.3
EXIT_SOFTWARE = 70
"""sysexits.h: an internal error."""


def _end_with_parent(fd: int) -> None:
    while os.read(fd, 1):
        pass
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _end_with_worker(ended: threading.ExceptHookArgs) -> None:
    """threading.excepthook, which hears of SystemExit too."""
    if ended.thread is None or WORKER_THREAD not in ended.thread.name:
        threading.__excepthook__(ended)
        return
    traceback.print_exception(ended.exc_type, ended.exc_value, ended.exc_traceback)
    sys.stderr.write(
        f"The thread that runs prompts ended by {ended.exc_type.__name__}: {ended.exc_value}. "
        "Does a node call exit()? ComfyUI cannot go on without it.\n"
    )
    sys.stderr.flush()
    # Meanwhile the thread that serves HTTP tells on the websocket which node was at work.
    time.sleep(LAST_WORDS_S)
    os._exit(EXIT_SOFTWARE)


def main() -> None:
    """Start the watch, then become the program."""
    threading.excepthook = _end_with_worker
    watch_fd, *program = sys.argv[1:]
    threading.Thread(target=_end_with_parent, args=(int(watch_fd),), name="parent-watch", daemon=True).start()
    if program[0] == "-m":
        sys.argv = program[1:]
        sys.path[0] = str(Path.cwd())
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = program
        sys.path[0] = str(Path(program[0]).resolve().parent)
        runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main()
