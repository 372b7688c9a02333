"""The ComfyUI process: started by argv on a free loopback port, with folders of ours, watched, and really stopped.

Not for: what is sent to it (client.py), or when to start it again (engine.py).
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from comfyui.deadline import Deadline
from comfyui.engine.device import runs_on_cpu
from comfyui.engine.upstream import check_upstream
from comfyui.errors import EngineDiedError
from comfyui.process import LineLog, ManagedProcess
from comfyui.settings import Settings

NO_FRONTEND = Path(__file__).with_name("no_frontend")
READY_POLL_S = 0.05
SEE_DEATH_S = 1.0
"""After its websocket closed, how long a process gets to be seen as ended before it is taken for alive."""
PROBE_TIMEOUT_S = 5.0
PORT_TRIES = 3
OWN_PORTS = range(20000, 32768)
"""Where `free_port` looks first."""
SECRET_NAME = re.compile(
    r"(^|_)(TOKENS?|SECRETS?|PASSWORD|PASSWD|CREDENTIALS?|PAT|API_?KEY|ACCESS_KEY|PRIVATE_KEY)(_|$)|^COG_WEIGHTS$",
    re.IGNORECASE,
)
"""Names of variables that hold secrets; the URL of the weights may be a signed one."""
SPINS = "10000"
"""How often a thread of libgomp, which torch computes with on a CPU, looks for the others before it sleeps. Beside two
busy programs on two cores, tiny pictures took 18 times as long as alone with its own 300000, and 4 times with these.
"""
PORT_TAKEN = re.compile(r"address already in use|error while attempting to bind", re.IGNORECASE)


@dataclass(frozen=True)
class EngineFolders:
    """Where one ComfyUI process reads and writes; all under one run folder of ours."""

    input: Path
    output: Path
    temp: Path
    user: Path

    @classmethod
    def under(cls, run_dir: Path) -> EngineFolders:
        """The folders below `run_dir`, made if they are not there."""
        # ComfyUI appends "temp" to --temp-directory by itself.
        folders = cls(run_dir / "input", run_dir / "output", run_dir / "temp", run_dir / "user")
        for folder in (folders.input, folders.output, folders.temp, folders.user):
            folder.mkdir(parents=True, exist_ok=True)
        return folders


def main_arguments(settings: Settings, folders: EngineFolders, port: int, *, cpu: bool) -> list[str]:
    """What follows main.py on ComfyUI's command line (comfy/cli_args.py of 0.30.0)."""
    arguments = {
        "--listen": "127.0.0.1",
        "--port": str(port),
        "--models-directory": str(settings.models_dir),
        "--input-directory": str(folders.input),
        "--output-directory": str(folders.output),
        "--temp-directory": str(folders.temp.parent),
        "--user-directory": str(folders.user),
        # --user-directory does not move the SQLite file; nothing in it is worth keeping here.
        "--database-url": "sqlite:///:memory:",
        # Without the frontend package (78 MB, never shown) main.py exits with 255 unless it is given a folder.
        "--front-end-root": str(NO_FRONTEND / "web"),
    }
    flat = [part for pair in arguments.items() for part in pair]
    # API nodes call paid services of others with the caller's data; nothing here has an account for them.
    flat += ["--disable-auto-launch", "--disable-api-nodes"]
    if cpu:
        flat.append("--cpu")
    return [*flat, *settings.engine_args]


def engine_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for ComfyUI and its custom nodes: ours, without anything that looks like a secret.

    How long threads that wait may spin is SPINS where nobody else has said so (GOMP_SPINCOUNT and OMP_WAIT_POLICY in
    libgomp's manual).
    """
    kept = {name: value for name, value in environ.items() if not SECRET_NAME.search(name)}
    path = os.pathsep.join(filter(None, [str(NO_FRONTEND / "packages"), environ.get("PYTHONPATH")]))
    if "OMP_WAIT_POLICY" not in kept:
        kept.setdefault("GOMP_SPINCOUNT", SPINS)
    return kept | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": path}


def free_port() -> int:
    """A loopback port that nobody listened on a moment ago, and that no other program is given by chance.

    A server takes seconds to start. Linux, macOS and Windows give programs that ask for any port one from 32768 on
    (ip(7), ip_local_port_range; RFC 6335, section 6), so this looks below.
    """
    for _ in range(PORT_TRIES):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", secrets.choice(OWN_PORTS)))
            return int(probe.getsockname()[1])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class EngineServer:
    """One ComfyUI process. `base_url` is where it answers; `folders` is where it reads and writes."""

    def __init__(self, settings: Settings, run_dir: Path, log: LineLog) -> None:
        self._settings = settings
        self._log = log
        self.folders = EngineFolders.under(run_dir)
        self.port = 0
        self.on_cpu = True
        """Whether it was told to use no GPU."""
        self.was_ready = False
        """Whether the running process has answered."""
        self._process: ManagedProcess | None = None

    @property
    def base_url(self) -> str:
        """http://127.0.0.1:port of the running process."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id, None before the first start."""
        return self._process.pid if self._process else None

    def alive(self) -> bool:
        """True while the process runs; it may still be starting."""
        return self._process is not None and self._process.returncode() is None

    def spawn(self) -> None:
        """Start the process and return at once (`wait_ready` waits). EngineError if there is no ComfyUI to start."""
        source = check_upstream(self._settings)
        self._settings.models_dir.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.was_ready = False
        self.on_cpu = runs_on_cpu(self._settings)
        arguments = main_arguments(self._settings, self.folders, self.port, cpu=self.on_cpu)
        self._process = ManagedProcess(
            [str(source / "main.py"), *arguments], cwd=source, env=engine_environment(os.environ), log=self._log
        )

    async def wait_ready(self, session: aiohttp.ClientSession, deadline: Deadline) -> None:
        """Wait until it answers /system_stats. Raises EngineDiedError as soon as it ends, DeadlineError when late."""
        tries = 1
        while True:
            # First: one that has ended may have lost its port to another ComfyUI, which would answer.
            if not self.alive():
                # Between our choice of a port and its bind, another program may have taken it.
                await self.stop()
                if tries == PORT_TRIES or not PORT_TAKEN.search("\n".join(self._ended_lines())):
                    raise self.died("while it started")
                tries += 1
                self.spawn()
            elif await self._answers(session):
                self.was_ready = True
                return
            deadline.check()
            await asyncio.sleep(READY_POLL_S)

    async def seen_dead(self) -> bool:
        """Whether the process ends within SEE_DEATH_S."""
        for _ in range(int(SEE_DEATH_S / READY_POLL_S)):
            if not self.alive():
                return True
            await asyncio.sleep(READY_POLL_S)
        return False

    def died(self, when: str, *, had_prompt: bool = False) -> EngineDiedError:
        """The error for a process that ended by itself: its exit code and the end of its log."""
        lines = self._ended_lines()
        returncode = self._process.returncode() if self._process else None
        if returncode == -signal.SIGKILL:
            how = "killed by signal 9 (a machine that runs out of memory does that)"
        elif returncode is not None and returncode < 0:
            how = f"killed by signal {-returncode}"
        else:
            how = f"with exit code {returncode}"
        tail = "\n".join(f"    {line}" for line in lines[-20:])
        return EngineDiedError(
            f"ComfyUI ended {when}, {how}. The last lines it printed:\n{tail or '    (nothing)'}",
            returncode=returncode,
            last_lines=lines,
            had_prompt=had_prompt,
        )

    async def stop(self) -> None:
        """End the process and its whole group; harmless when there is none."""
        if self._process is not None:
            await asyncio.to_thread(self._process.stop)

    def _ended_lines(self) -> tuple[str, ...]:
        return self._process.ended_lines() if self._process else ()

    async def _answers(self, session: aiohttp.ClientSession) -> bool:
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
        try:
            async with session.get(f"{self.base_url}/system_stats", timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False


def engine_log_line(line: str) -> str:
    """How a line of ComfyUI's appears in our log."""
    return f"[comfyui] {line}"
