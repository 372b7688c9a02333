"""Text in a prompt: choices like {red|blue}, comments, and %date:…% or %Node.widget% in file names.

Source of the rules: the frontend's formatUtil.ts (processDynamicPrompt, formatDate) and searchAndReplace.ts. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from comfyui.workflow.convert.javascript import is_missing, to_text
from comfyui.workflow.convert.model import Node

Choose = Callable[[Sequence[str]], str]

COMMENTS = re.compile(r"/\*.*?\*/|//[^\n\r\u2028\u2029]*", re.DOTALL)
"""Also inside a URL: `https://…` loses all behind its colon, as in the frontend."""
PLACEHOLDER = re.compile(r"%([^%]+)%")
NOT_IN_A_NAME = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')
DATE_PARTS = re.compile(r"dd?|MM?|hh?|mm?|ss?|yyy?y?")
NAME_FOR_REPLACEMENT = "Node name for S&R"


def expand_choices(text: str, choose: Choose) -> str:
    """A text without comments, with one option chosen of every {…|…}; a brace after a backslash stays."""
    return re.sub(r"\\([{}|])", r"\1", _expand(COMMENTS.sub("", text), choose))


def _expand(text: str, choose: Choose) -> str:
    result: list[str] = []
    index = 0
    while index < len(text):
        char = text[index]
        if char == "\\":
            result.append(text[index : index + 2] if index + 1 < len(text) else "\\undefined")
            index += 2
        elif char == "{":
            options, index = _options(text, index + 1)
            result.append(expand_choices(choose(options), choose))
        else:
            result.append(char)
            index += 1
    return "".join(result)


def _options(text: str, index: int) -> tuple[list[str], int]:
    """The options of a block that starts at `index`, and where the text goes on; an open block ends with the text."""
    options, option, depth = [], "", 0
    while index < len(text):
        char = text[index]
        index += 1
        if char == "\\":
            option += char + (text[index] if index < len(text) else "undefined")
            index += 1
            continue
        if char == "}" and depth == 0:
            break
        if char == "|" and depth == 0:
            options.append(option)
            option = ""
            continue
        depth += {"{": 1, "}": -1}.get(char, 0)
        option += char
    return [*options, option], index


def replace_placeholders(text: str, nodes: Iterable[Node], now: datetime) -> str:
    """`%date:yyyy-MM-dd%` becomes the date, `%Node.widget%` that widget's value; what is not understood stays."""
    known = list(nodes)

    def replacement(match: re.Match[str]) -> str:
        inner = match[1]
        node_name, dot, widget_name = inner.partition(".")
        if not dot or "." in widget_name:
            first = inner.split(".")[0]
            return _date(first.removeprefix("date:"), now) if first.startswith("date:") else match[0]
        node = next((node for node in known if node.properties.get(NAME_FOR_REPLACEMENT) == node_name), None)
        node = node or next((node for node in known if node.title == node_name), None)
        widget = node.widget(widget_name) if node else None
        if widget is None:
            return match[0]
        return NOT_IN_A_NAME.sub("_", "" if is_missing(widget.value) else to_text(widget.value))

    return PLACEHOLDER.sub(replacement, text)


def _date(pattern: str, now: datetime) -> str:
    values = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def part(match: re.Match[str]) -> str:
        found = match[0]
        if found[0] in values:
            return str(values[found[0]]).zfill(len(found))
        return {"yy": f"{now.year}"[2:], "yyyy": f"{now.year}"}.get(found, found)

    return DATE_PARTS.sub(part, pattern)
