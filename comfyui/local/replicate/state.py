"""What `ship` has done so far, in one small file, so that every step can be gone on from after a kill.

A step is known by its name and a key: what went into it, of which only a hash is kept, since a link can hold a secret.
The same command finds its steps again, whatever was shipped in between; with another file or link, the steps that
depend on it are done anew. A step that starts something elsewhere is written down before it is asked for. No token is
ever in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comfyui.errors import RequestError, StorageError
from comfyui.local.replicate.api import model_name
from comfyui.local.replicate.arguments import Options
from comfyui.local.replicate.prices import cost_text
from comfyui.settings import Settings
from comfyui.weights.disk import write_whole

FORMAT = 2
_ONE_OF_EACH_NAME = 1
"""The format that had one step of each name; its steps say their keys, too."""


class ShipState:
    """The steps of one model's ships, by name and key. Every change is on the disk before the method returns.

    Raises RequestError when the file at `path` is not such a state.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._steps: dict[str, dict[str, Any]] = {}
        self.spent: list[dict[str, Any]] = []
        try:
            document = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise RequestError(f"{path} cannot be read as the state of a ship: {error}. Move it away.") from error
        found = document if isinstance(document, dict) else {}
        version, steps, spent = found.get("version"), found.get("steps"), found.get("spent")
        if version not in (FORMAT, _ONE_OF_EACH_NAME) or not isinstance(steps, dict) or not isinstance(spent, list):
            raise RequestError(
                f"{path} is not the state of a ship, format {FORMAT}. Move it away, or use --state FILE."
            )
        if version == _ONE_OF_EACH_NAME:
            steps = {_slot(name, step["key"]): step for name, step in steps.items()}
        self._steps, self.spent = steps, spent

    def done(self, step: str, key: object) -> Mapping[str, Any] | None:
        """What a finished step gave, if it was done with this key."""
        found = self._find(step, key)
        return found["facts"] if found and found["done"] else None

    def begun(self, step: str, key: object) -> Mapping[str, Any] | None:
        """What is known of a step that was begun with this key, and not finished."""
        found = self._find(step, key)
        return found["facts"] if found and not found["done"] else None

    def begin(self, step: str, key: object, facts: Mapping[str, Any]) -> None:
        """Write down what is about to be done, or how far it is."""
        self._write(step, key, facts, done=False)

    def finish(self, step: str, key: object, facts: Mapping[str, Any]) -> None:
        """Write down that a step is done, and what it gave."""
        self._write(step, key, facts, done=True)

    def forget(self, step: str, key: object) -> None:
        """Let a step be done anew."""
        self._steps.pop(_slot(step, _digest(key)), None)
        self._save()

    def spend(self, kind: str, run_id: str, seconds: float) -> None:
        """Count the run time of a run, once."""
        if all(entry["id"] != run_id for entry in self.spent):
            self.spent.append({"kind": kind, "id": run_id, "seconds": seconds})
            self._save()

    @property
    def running(self) -> list[str]:
        """The ids of runs that were begun, and whose end nobody has seen."""
        ended = {entry["id"] for entry in self.spent}
        begun = [step["facts"].get("id") for step in self._steps.values() if not step["done"]]
        return [run_id for run_id in begun if run_id is not None and run_id not in ended]

    @property
    def known(self) -> frozenset[str]:
        """The ids of all runs that a step has or had, well ended or not."""
        of_steps = (step["facts"].get("id") for step in self._steps.values())
        return frozenset(filter(None, [*of_steps, *(entry["id"] for entry in self.spent)]))

    @property
    def seconds(self) -> list[float]:
        """The run times of all runs so far, those that failed among them."""
        return [entry["seconds"] for entry in self.spent]

    def _find(self, step: str, key: object) -> dict[str, Any] | None:
        return self._steps.get(_slot(step, _digest(key)))

    def _write(self, step: str, key: object, facts: Mapping[str, Any], *, done: bool) -> None:
        digest = _digest(key)
        self._steps[_slot(step, digest)] = {"key": digest, "done": done, "facts": dict(facts)}
        self._save()

    def _save(self) -> None:
        document = {"version": FORMAT, "steps": self._steps, "spent": self.spent}
        write_whole(self.path, json.dumps(document, indent=2).encode())


def _slot(step: str, digest: str) -> str:
    return f"{step} {digest}"


def _digest(key: object) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold the lock of a state file: two at once would pay twice. Raises StorageError when another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                f"Another process is shipping with {path}; wait for it, or follow its run with scripts/replicate "
                "status ID --follow.",
                path=str(path),
                expected="nobody else",
                seen="another process",
            ) from error
        yield


def state_path(options: Options, settings: Settings) -> Path:
    """Where `ship` remembers what is done. Raises RequestError."""
    owner, name = model_name(options.model)
    if options.state is not None:
        return options.state
    folder = settings.data_dir / "ship"
    # No name has an @; a dash in the middle would give a-b/c and a/b-c one file.
    path, dashed = folder / f"{owner}@{name}.json", folder / f"{owner}-{name}.json"
    ours = not path.exists() and dashed.is_file() and ShipState(dashed).done("create", options.model) is not None
    return dashed if ours else path


def what_stays(options: Options, settings: Settings) -> str:
    """Words for what an ended command leaves behind, "" where it leaves nothing."""
    if options.command != "ship":
        return ""
    try:
        path = state_path(options, settings)
        if not path.is_file():
            return ""
        state = ShipState(path)
    except RequestError:
        return ""
    running = "".join(
        f" The run {run_id} goes on at Replicate; scripts/replicate cancel {run_id} ends it."
        for run_id in state.running
    )
    spent = f" {cost_text(state.seconds, options.hardware, options.price)}" if state.seconds else ""
    return f"\nWhat is done stays in {path}; the same command goes on from there.{running}{spent}"
