"""All that scripts/replicate speaks to, on loopback, and the script itself as people and programs call it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from comfyui.settings import PROJECT_ROOT
from tests.local.hub_upload_standin import READER, WRITER, HubUploadStandin, ObjectStorage
from tests.local.replicate_standin import GOOD, ReplicateStandin
from tests.weights.samples import safetensors
from tests.weights.storage_standin import StorageStandin

SCRIPT = str(PROJECT_ROOT / "scripts" / "replicate")
LIMIT_S = 60
SECRETS = (GOOD, WRITER, READER)
BASE_VERSION = "b" * 64

Done = subprocess.CompletedProcess[str]


class World:
    """The stand-ins, a folder with two weight files in it, and the script. Use it as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.delivery = StorageStandin()
        self.storage = ObjectStorage()
        self.replicate = ReplicateStandin(self.delivery)
        self.hub = HubUploadStandin(self.storage)
        self.replicate.add_model("me/base", BASE_VERSION)
        (folder / "my.safetensors").write_bytes(safetensors(1))
        (folder / "mimi.safetensors").write_bytes(safetensors(2, size=5000))
        (folder / "home").mkdir()
        gone = {"CIVITAI_TOKEN", "COLUMNS", "DOCKER_CONFIG", "COMFYUI_DIR"}
        self.environ = {
            **{name: value for name, value in os.environ.items() if name not in gone},
            "PYTHON": sys.executable,
            "HOME": str(folder / "home"),
            "DATA_DIR": str(folder / "data"),
            "ALLOW_PRIVATE_URLS": "1",
            "REPLICATE_BASE_URL": self.replicate.url,
            "REPLICATE_API_TOKEN": GOOD,
            "REPLICATE_POLL_INTERVAL": "0.01",
            "HF_ENDPOINT": self.hub.url,
            "HF_TOKEN": WRITER,
            "HF_READ_TOKEN": READER,
            # The stand-in speaks Git LFS, which the real hub speaks too.
            "HF_HUB_DISABLE_XET": "1",
        }
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for server in (self.delivery, self.storage, self.replicate, self.hub):
            self._stack.enter_context(server)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def run(self, *arguments: str, **environ: str) -> Done:
        """Run the script from the folder; checks what holds for every run."""
        done = subprocess.run(
            [SCRIPT, *arguments],
            cwd=self.folder,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        self.check(done.stdout + done.stderr)
        return done

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the script in a process group of its own, as a shell does, and leave it running."""
        return subprocess.Popen(
            [SCRIPT, *arguments],
            cwd=self.folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=hear_ctrl_c,
            start_new_session=True,
        )

    def check(self, said: str) -> None:
        """What was printed, and all files of the data folder, hold no token; nothing is coloured, nothing is traced."""
        assert "Traceback" not in said
        assert "\x1b" not in said
        written = "".join(path.read_text() for path in (self.folder / "data").rglob("*") if path.is_file())
        assert not any(secret in said + written for secret in SECRETS)
        # Each token reaches its own service, and nobody else. Storage answers one that reaches it with 400.
        assert self.delivery.tokens_seen <= {None}
        assert not {f"Bearer {WRITER}", f"Bearer {READER}"} & {
            seen.headers["Authorization"] for seen in self.replicate.seen
        }
        assert not any(GOOD in str(dict(seen.headers)) for seen in [*self.hub.seen, *self.storage.seen])
        assert not any("Prefer" in request.headers for request in self.replicate.seen)


def hear_ctrl_c() -> None:
    """In a child, before its program: a test run in the background hands on that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def events(done: Done) -> list[dict[str, Any]]:
    """Every line of stdout, all of which must be JSON objects; nothing may be on stderr."""
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def result(done: Done) -> dict[str, Any]:
    """The result of a command called with --json."""
    last = events(done)[-1]
    assert last["event"] == "result", last
    return last
