"""The inputs of a training, judged before it costs anything: their names, and the links in them. Pure.

Two traps end here: `hf_lora` looks like the right name and is not, and a `blob/` link is a web page about a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from comfyui.errors import RequestError, TrainingInputError
from comfyui.settings import Settings
from comfyui.suggest import unknown_inputs_message
from comfyui.weights.folders import TRAINING_INPUTS
from comfyui.weights.sources import NO_TOKENS, Kind, Source, understand
from comfyui.weights.sources.entries import parse_list
from comfyui.weights.sources.hub_links import verb_of

HUGGING_FACE = "https://huggingface.co"
_SITES = {"huggingface_read_token": Kind.HUGGING_FACE, "civitai_api_token": Kind.CIVITAI}


@dataclass(frozen=True)
class Links:
    """The links of one training's lists, as they are sent: input name → one link on each line. `kinds` are the sites
    that they lead to.
    """

    lists: Mapping[str, str]
    notices: Sequence[str]
    kinds: frozenset[Kind] = frozenset()


def judge_links(given: Mapping[str, Sequence[str]], settings: Settings) -> Links:
    """Check every link of every list, and put the link of the file where that of its web page was given.

    What counts is how a training on Replicate sees a link, whatever mirror of Hugging Face this machine uses; but a
    link to that mirror is of the kind that it has here, too. Raises TrainingInputError for one that cannot be the link
    of a file.
    """
    there = replace(settings, hf_endpoint=HUGGING_FACE)
    lists: dict[str, str] = {}
    notices: list[str] = []
    kinds: set[Kind] = set()
    for name, entries in given.items():
        links: list[str] = []
        for entry in chain.from_iterable(map(parse_list, entries)):
            source = understand(entry, there, NO_TOKENS, input_name=name)
            notices.extend(source.notices)
            kinds |= {source.kind, understand(entry, settings, NO_TOKENS, input_name=name).kind}
            links.append(_file_link(entry, source))
        if links:
            lists[name] = "\n".join(links)
    return Links(lists, notices, frozenset(kinds))


def _file_link(entry: str, source: Source) -> str:
    bare, hash_sign, fragment = entry.partition("#")
    if source.hub is None or verb_of(bare) not in ("blob", "raw"):
        return entry
    # The server of another version of the model may not know what a page's link means.
    return source.url + hash_sign + fragment


def sort_inputs(
    files: Mapping[str, Sequence[str]], more: Mapping[str, Any]
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """The links of each list, those that were given as other inputs among them, and the inputs that are no lists."""
    lists = {name: list(links) for name, links in files.items()}
    for name in (name for name in TRAINING_INPUTS if name in more):
        value = more[name]
        lists.setdefault(name, []).extend(map(str, value if isinstance(value, list) else [value]))
    return lists, {name: value for name, value in more.items() if name not in TRAINING_INPUTS}


def needed_secrets(
    secrets: Mapping[str, str | None], links: Links, existing_lora: object, settings: Settings
) -> dict[str, str | None]:
    """Of a training's tokens, by input name, those of the sites that its links lead to: no other has to leave this
    machine. `existing_lora` is that input, or None. Raises TrainingInputError for one that is no link of a file.
    """
    kinds = set(links.kinds)
    if isinstance(existing_lora, str):
        kinds |= judge_links({"existing_lora": [existing_lora]}, settings).kinds
    return {name: token for name, token in secrets.items() if _SITES[name] in kinds}


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
