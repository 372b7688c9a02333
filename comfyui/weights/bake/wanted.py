"""From lists of links to files that are known by name, size and digest, before a byte of them is fetched.

Whatever can be known to be wrong with a request is said here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from comfyui.errors import TrainingInputError
from comfyui.settings import Settings
from comfyui.suggest import unknown_inputs_message
from comfyui.weights.folders import TRAINING_INPUTS, path_key
from comfyui.weights.http.at_once import at_once
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.judge.formats import check_extension
from comfyui.weights.listener import Listener
from comfyui.weights.sources import RemoteFile, Source, Tokens, parse_list, understand
from comfyui.weights.sources.resolve import RETRY_WAITS_S, resolve


@dataclass(frozen=True)
class Wanted:
    """One link: the training input it was given to, the model folder it goes into, and what the link means."""

    input_name: str
    folder: str
    source: Source


@dataclass(frozen=True)
class Found:
    """A wanted file and what its server says of it."""

    wanted: Wanted
    remote: RemoteFile

    @property
    def path(self) -> str:
        """Its place in the models folder, and in the tar."""
        return f"{self.wanted.folder}/{self.remote.name}"


def want(request: Mapping[str, str | None], settings: Settings, tokens: Tokens, listener: Listener) -> list[Wanted]:
    """Understand the lists, say how, and refuse what cannot be right. Pure but for the listener."""
    if wrong := [name for name in request if name not in TRAINING_INPUTS]:
        raise TrainingInputError(unknown_inputs_message(wrong, tuple(TRAINING_INPUTS)), input_name=wrong[0])
    wanted: list[Wanted] = []
    seen: set[tuple[str, str]] = set()
    for input_name, folder in TRAINING_INPUTS.items():
        for entry in parse_list(request.get(input_name)):
            source = understood(entry, input_name, settings, tokens, listener)
            if (folder, source.url) in seen:
                raise TrainingInputError(
                    f"{source.display_url} is given twice in {input_name}; leave one out.", input_name=input_name
                )
            seen.add((folder, source.url))
            wanted.append(Wanted(input_name, folder, source))
    if not wanted:
        raise TrainingInputError(
            f"No weights were given. Put links, one on each line, into at least one of: {', '.join(TRAINING_INPUTS)}."
        )
    return wanted


def understood(entry: str, input_name: str, settings: Settings, tokens: Tokens, listener: Listener) -> Source:
    """What one entry of an input means, and the listener is told. Raises TrainingInputError."""
    source = understand(entry, settings, tokens, input_name=input_name)
    token = ", with your token" if source.secret_headers else ""
    for notice in source.notices:
        listener.say(notice)
    listener.say(f"{input_name}: {source.display_url} ({source.kind.value}{token})")
    return source


def find(
    wanted: Sequence[Wanted],
    settings: Settings,
    opener: HttpOpener,
    listener: Listener,
    *,
    retry_waits_s: Sequence[float] = RETRY_WAITS_S,
) -> list[Found]:
    """Ask all servers at once what they know of the files. Raises the first DownloadError, in the lists' order."""

    def ask(item: Wanted) -> RemoteFile:
        return resolve(item.source, settings, opener=opener, retry_waits_s=retry_waits_s)

    remotes = at_once(ask, wanted)
    for remote in remotes:
        for notice in remote.notices:
            listener.say(notice)
    return [Found(item, remote) for item, remote in zip(wanted, remotes, strict=True)]


def check(found: Sequence[Found], *, allow_pickle: bool) -> None:
    """Refuse two links that would become one file, and kinds of file that are not taken."""
    by_path: dict[str, Found] = {}
    for item in found:
        check_extension(item.path, allow_pickle=allow_pickle)
        other = by_path.setdefault(path_key(item.path), item)
        if other is not item:
            raise TrainingInputError(
                f"Two links would both become {item.path}: {other.wanted.source.display_url} and "
                f"{item.wanted.source.display_url}. Leave one out, or give one another name with #name=… behind it.",
                input_name=item.wanted.input_name,
            )
