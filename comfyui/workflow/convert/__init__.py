"""UI format to API format: what ComfyUI saves becomes what ComfyUI runs, by the rules of its own frontend.

    convert ──► load (file → graph) ──► prompt (graph → API format)

The rules were learned from comfyui-frontend-package 1.47.12 (for ComfyUI 0.30.0) and from prompts that it made; each
module names the frontend's files that it follows. Two differences are meant: numbers keep all their digits (in a
browser a seed above 2**53 loses some), and a workflow that the frontend would turn into an incomplete prompt, because
a class is not installed, is refused. Pure: no network, no files.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from comfyui.workflow.convert.load import load
from comfyui.workflow.convert.prompt import make_prompt
from comfyui.workflow.convert.read import is_ui_format
from comfyui.workflow.convert.resolve import too_deep
from comfyui.workflow.convert.specs import ClassLibrary
from comfyui.workflow.convert.text import Choose

__all__ = ["convert", "is_ui_format"]


def convert(
    ui: Mapping[str, Any],
    object_info: Mapping[str, Any],
    *,
    now: datetime | None = None,
    choose: Choose = random.choice,
) -> dict[str, Any]:
    """The API format of a workflow in UI format, as the frontend's graphToPrompt makes it.

    `object_info` is ComfyUI's /object_info. `now` stands in file names with %date:…%; `choose` picks from {a|b} in
    prompts, at random as in the browser. The nodes come as a browser lists them: those of the workflow by number, then
    those of subgraphs in execution order. Neither argument is changed. Raises WorkflowError naming id, title and class
    of what cannot be converted.
    """
    try:
        graph = load(ui, ClassLibrary(object_info))
        return make_prompt(graph, now=now or datetime.now().astimezone(), choose=choose)
    except RecursionError as error:
        raise too_deep() from error
