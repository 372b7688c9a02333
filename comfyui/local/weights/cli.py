"""scripts/weights: bake, verify and restore tars of weights, and keep the weights of one's own image.

    arguments ──► command ──► comfyui.weights        what happens ──► Console (terminal.py)

This is the order of each command and what it says; what the words mean is done elsewhere. Exit codes: 0 proven, 1
failed with a reason, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

from comfyui.errors import ComfyUIModelError, RequestError, WeightsError
from comfyui.local.terminal import Console
from comfyui.local.weights.arguments import Options, parse_arguments, read_list
from comfyui.local.weights.check import Report, check_folder, check_tar
from comfyui.local.weights.project import Project
from comfyui.settings import Settings
from comfyui.weights.bake.bake import bake
from comfyui.weights.folders import workflow_use
from comfyui.weights.listener import size_text
from comfyui.weights.manifest import MANIFEST_NAME, Manifest, Weight
from comfyui.weights.restore.image_weights import ensure_weights
from comfyui.weights.restore.restore import read_manifest, restore
from comfyui.weights.sources import Tokens
from comfyui.weights.tar.archive import unfinished

FAILED = 1
INTERRUPTED = 130
_HERE_CALLED = {
    "huggingface_read_token": "HF_TOKEN or --hf-token-file",
    "civitai_api_token": "CIVITAI_TOKEN or --civitai-token-file",
    "allow_pickle": "--allow-pickle",
}
"""Inputs of a training that messages name, and what a command line has in their place."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = parse_arguments(arguments)
    with Console(as_json=options.json) as console, hear_ctrl_c() as stop:
        try:
            settings = Settings.from_environ()
            return _COMMANDS[options.command](options, settings, console, stop)
        except KeyboardInterrupt:
            return _interrupted(options, console)
        except ComfyUIModelError as error:
            if stop.is_set():
                return _interrupted(options, console)
            console.error(f"{_in_flags(str(error))}{_what_stays(options)}", _facts(error))
        except BrokenPipeError:
            # Whoever read our output has gone; Python would complain about it once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            console.error(f"{error}{_what_stays(options)}", {"error": type(error).__name__})
    return FAILED


@contextmanager
def hear_ctrl_c() -> Iterator[Event]:
    """An event that Ctrl-C sets, beside the KeyboardInterrupt; a second Ctrl-C ends the process at once.

    It does so also after this context: the program is on its way out then, and that can take its time.
    """
    stop = Event()
    before = signal.getsignal(signal.SIGINT)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(INTERRUPTED)
        stop.set()
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nStopping; Ctrl-C once more ends it at once.\n")
        raise KeyboardInterrupt

    # A shell starts what runs in the background with Ctrl-C ignored, and means it.
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, on_signal)
    try:
        yield stop
    finally:
        if not stop.is_set():
            signal.signal(signal.SIGINT, before)


def _bake(options: Options, settings: Settings, console: Console, stop: Event) -> int:
    request = {name: "\n".join(map(read_list, links)) for name, links in options.links.items()}
    if options.out.is_dir():
        raise RequestError(f"--out {options.out} is a folder; name the tar, for example {options.out / 'weights.tar'}.")
    manifest = bake(
        request,
        options.out,
        settings,
        _tokens(options),
        console.listener,
        allow_pickle=options.allow_pickle,
        resume=True,
        stop=stop,
    )
    console.result([str(options.out)], {**_made(manifest), "tar": str(options.out)})
    return 0


def _verify(options: Options, settings: Settings, console: Console, stop: Event) -> int:
    folder = Path(options.target)
    if "://" not in options.target and folder.is_dir():
        manifest = _manifest_at(options.manifest, settings)
        report = check_folder(folder, manifest, console.listener, stop, extra_ok=options.extra_ok)
    else:
        report = check_tar(options.target, settings, console.listener, stop)
    for problem in report.problems:
        console.problem(f"WRONG  {problem.text}", asdict(problem))
    console.result([_summary(report)], {"ok": not report.problems, **asdict(report)})
    return FAILED if report.problems else 0


def _restore(options: Options, settings: Settings, console: Console, stop: Event) -> int:
    if not options.unproven_ok:
        _refuse_without_manifest(options.target, settings)
    manifest = restore(options.target, options.models_folder, settings, console.listener, stop)
    how = "whole or proven" if options.unproven_ok else "all proven"
    line = f"{_count(manifest.weights)}, {how}, in {options.models_folder}"
    console.result([line], {**_made(manifest), "models_folder": str(options.models_folder)})
    return 0


def _refuse_without_manifest(location: str, settings: Settings) -> None:
    try:
        read_manifest(location, settings)
    except WeightsError as error:
        if error.path != MANIFEST_NAME or "first member" not in (error.expected or ""):
            raise
        raise WeightsError(
            f"{error} To restore it all the same, by the structure of its files alone, add --unproven-ok.",
            path=error.path,
            expected=error.expected,
            seen=error.seen,
        ) from error


def _add(options: Options, settings: Settings, console: Console, stop: Event) -> int:
    project = Project(options.manifest, settings)
    listener = console.listener
    weight = project.add(
        options.target, options.folder, _tokens(options), listener, stop, allow_pickle=options.allow_pickle
    )
    lines = [f"{weight.path}: {size_text(weight.size)}, sha256 {weight.sha256}", f"In a workflow: {_use(weight)}"]
    if not (settings.models_dir / weight.path).is_file():
        lines.append("Fetch it with scripts/weights pull.")
    console.result(lines, _entry(weight))
    return 0


def _remove(options: Options, settings: Settings, console: Console, stop: Event) -> int:
    gone = Project(options.manifest, settings).remove(options.target)
    file = settings.models_dir / gone.path
    there = file.is_file()
    lines = [f"{gone.path} is out of the manifest."]
    if there and options.delete:
        file.unlink()
        lines.append(f"{file} is removed.")
    elif there:
        lines.append(f"Its file stays at {file}, and goes into the image at the next cog push unless you delete it.")
    console.result(lines, {**_entry(gone), "file_stays": there and not options.delete})
    return 0


def _pull(options: Options, settings: Settings, console: Console, stop: Event) -> int:
    project = Project(options.manifest, settings)
    manifest = project.manifest()
    full = not options.quick
    ensure_weights(manifest, settings.models_dir, settings, console.listener, _tokens(options), stop, full=full)
    how = "all proven" if full else "those fetched now proven, the others looked at"
    lines = [f"{_count(manifest.weights)}, {how}, in {settings.models_dir}"]
    extras = project.extras()
    lines += [f"Not in the manifest, and in the image all the same: {path}" for path in extras]
    console.result(lines, {**_made(manifest), "models_folder": str(settings.models_dir), "extras": extras})
    return 0


def _list(options: Options, settings: Settings, console: Console, stop: Event) -> int:
    project = Project(options.manifest, settings)
    states, extras = project.states(), project.extras()
    width = max((len(state.weight.path) for state in states), default=0)
    lines = []
    for entry in states:
        shown = entry.state if entry.state != "other size" else f"other size ({size_text(entry.seen)})"
        weight = entry.weight
        lines.append(f"{weight.path:{width}}  {size_text(weight.size):>12}  {shown:10}  {weight.url or 'no link'}")
    if not states:
        lines.append(f"{options.manifest.name} has no weights. Add some with scripts/weights add LINK --to FOLDER.")
    if extras:
        lines += ["", f"In {settings.models_dir}, but not in the manifest:", *(f"  {path}" for path in extras)]
    listed = [{**_entry(entry.weight), "state": entry.state, "seen": entry.seen} for entry in states]
    facts = {"models_folder": str(settings.models_dir), "weights": listed, "extras": extras}
    console.result(lines, facts)
    return 0


_COMMANDS: Mapping[str, Callable[[Options, Settings, Console, Event], int]] = {
    "bake": _bake,
    "verify": _verify,
    "restore": _restore,
    "add": _add,
    "remove": _remove,
    "pull": _pull,
    "list": _list,
}


def _tokens(options: Options) -> Tokens:
    """The person's tokens: a file named on the command line before the environment."""
    huggingface = _token(options.hf_token_file, "HF_TOKEN")
    return Tokens(huggingface, _token(options.civitai_token_file, "CIVITAI_TOKEN"))


def _token(file: Path | None, variable: str) -> str | None:
    if file is None:
        return os.environ.get(variable)
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        # Not the error itself: what cannot be decoded would be quoted in it.
        raise RequestError(f"The token file {file} cannot be read: {type(error).__name__}.") from None


def _manifest_at(path: Path, settings: Settings) -> Manifest:
    """A manifest file, or the manifest inside a tar."""
    if not path.is_file():
        raise RequestError(f"There is no manifest at {path}.")
    with path.open("rb") as file:
        is_json = file.read(512).lstrip().startswith(b"{")
    return Manifest.load(path) if is_json else read_manifest(str(path), settings)


def _interrupted(options: Options, console: Console) -> int:
    console.error(f"Stopped.{_what_stays(options)}", {"error": "Interrupted"})
    return INTERRUPTED


def _what_stays(options: Options) -> str:
    """Words for what an ended bake keeps, "" where nothing is kept."""
    part = unfinished(options.out)
    if options.command != "bake" or not part.is_file():
        return ""
    return (
        f"\nWhat was fetched stays in {part}: the same command goes on from there. To "
        f"give it up, delete that file and .{options.out.name}.journal beside it."
    )


def _in_flags(text: str) -> str:
    named = [f"{name} is {flag}" for name, flag in _HERE_CALLED.items() if name in text]
    return text + (f" (On this command line, {', and '.join(named)}.)" if named else "")


def _facts(error: ComfyUIModelError) -> dict[str, Any]:
    plain = {key: value for key, value in vars(error).items() if isinstance(value, str | int | float | None)}
    return {"error": type(error).__name__, **plain}


def _summary(report: Report) -> str:
    words = f"{len(report.proven)} file{'' if len(report.proven) == 1 else 's'} proven"
    words += f", {size_text(report.bytes_proven)}" if report.proven else ""
    if report.unknown:
        words += f"; {len(report.unknown)} not in the manifest"
    return f"{words}; {len(report.problems)} wrong" if report.problems else f"{words}; nothing wrong"


def _count(weights: Sequence[Weight]) -> str:
    count = f"{len(weights)} file{'' if len(weights) == 1 else 's'}"
    return f"{count}, {size_text(sum(weight.size for weight in weights))}"


def _made(manifest: Manifest) -> dict[str, Any]:
    return {"ok": True, "weights": [_entry(weight) for weight in manifest.weights]}


def _entry(weight: Weight) -> dict[str, Any]:
    return {**asdict(weight), "use": _use(weight)}


def _use(weight: Weight) -> str:
    return workflow_use(weight.path).removeprefix(f"{weight.path}: ")


if __name__ == "__main__":
    sys.exit(main())
