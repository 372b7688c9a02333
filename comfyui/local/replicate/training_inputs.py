"""The inputs of a training, judged before it costs anything: their names, and the links in them. Pure.

Two traps end here: `hf_lora` looks like the right name and is not, and a `blob/` link is a web page about a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from comfyui.errors import RequestError, TrainingInputError
from comfyui.settings import Settings
from comfyui.suggest import unknown_inputs_message
from comfyui.weights.sources import NO_TOKENS, understand
from comfyui.weights.sources.entries import parse_list
from comfyui.weights.sources.hub_links import verb_of

HUGGING_FACE = "https://huggingface.co"


@dataclass(frozen=True)
class Links:
    """The links of one training's lists, as they are sent: input name → one link on each line."""

    lists: Mapping[str, str]
    notices: Sequence[str]


def judge_links(given: Mapping[str, Sequence[str]], settings: Settings) -> Links:
    """Check every link of every list, and put the link of the file where that of its web page was given.

    What counts is how a training on Replicate sees a link, whatever mirror of Hugging Face this machine uses. Raises
    TrainingInputError for one that cannot be the link of a file.
    """
    settings = replace(settings, hf_endpoint=HUGGING_FACE)
    lists: dict[str, str] = {}
    notices: list[str] = []
    for name, entries in given.items():
        links = [_link(entry, name, settings, notices) for text in entries for entry in parse_list(text)]
        if links:
            lists[name] = "\n".join(links)
    return Links(lists, notices)


def _link(entry: str, name: str, settings: Settings, notices: list[str]) -> str:
    source = understand(entry, settings, NO_TOKENS, input_name=name)
    notices.extend(source.notices)
    bare, hash_sign, fragment = entry.partition("#")
    if source.hub is None or verb_of(bare) not in ("blob", "raw"):
        return entry
    # The server of another version of the model may not know what a page's link means.
    return source.url + hash_sign + fragment


def check_names(names: Sequence[str], known: Sequence[str] | None, what: str) -> None:
    """Raise RequestError unless every name is an input of `what`; for names of other tools, with the right one.

    `known` is None for a version that takes no such inputs at all.
    """
    if known is None:
        raise RequestError(
            f"{what} takes none: this version was pushed without it. Push this project with scripts/replicate push, or "
            "name another version."
        )
    if unknown := [name for name in names if name not in known]:
        raise RequestError(f"{what}: {unknown_inputs_message(unknown, known)}")


def read_assignment(text: str) -> tuple[str, str]:
    """NAME and VALUE of NAME=VALUE. Raises RequestError without a name or an equals sign."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise RequestError(f"{text!r} is not NAME=VALUE.")
    return name.strip(), value


def check_some(lists: Mapping[str, object]) -> None:
    """Raise TrainingInputError when a training would have nothing to do."""
    if not lists:
        flags = "--checkpoint URL, --lora URL or --images FILE"
        raise TrainingInputError(f"There is nothing to train with; name at least one file: {flags}.")
