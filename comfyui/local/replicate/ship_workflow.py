"""The workflow of a first picture: the person's own, or the example with the names of their files in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from comfyui.errors import RequestError
from comfyui.local.demo.workflow import with_prompt, with_seed, with_values
from comfyui.local.paths import typed_path
from comfyui.local.quickstart import EXAMPLES, REAL_SIZE
from comfyui.local.replicate.arguments import Options
from comfyui.local.replicate.runs import read_workflow
from comfyui.local.replicate.upload import LocalWeight
from comfyui.local.replicate.workflow_inputs import PreparedWorkflow, prepare_workflow
from comfyui.settings import Settings
from comfyui.weights.sources import NO_TOKENS, understand
from comfyui.workflow.parse import Workflow, parse_workflow


def first_workflow(
    options: Options, local: Sequence[LocalWeight], links: Mapping[str, Sequence[str]], settings: Settings
) -> PreparedWorkflow:
    """What the first picture is made with. Raises RequestError, WorkflowError among them."""
    if options.workflow is not None:
        own = read_workflow(options.workflow, options.set)
        if options.prompt is None and options.seed is None:
            return own
        text = own.text
    else:
        own = PreparedWorkflow("")
        text = json.dumps(_example(local, links, settings).prompt())
    workflow = parse_workflow(text)
    if options.prompt is not None:
        workflow = with_prompt(workflow, options.prompt)
    if options.seed is not None:
        workflow = with_seed(workflow, options.seed)
    overrides = options.set if options.workflow is None else ()
    made = prepare_workflow(json.dumps(workflow.prompt()), overrides, typed_path("."))
    return PreparedWorkflow(made.text, {**own.files, **made.files}, notices=(*own.notices, *made.notices))


def _example(local: Sequence[LocalWeight], links: Mapping[str, Sequence[str]], settings: Settings) -> Workflow:
    checkpoint, lora = (_first_name(name, local, links, settings) for name in ("checkpoints", "loras"))
    if checkpoint is None:
        raise RequestError(
            "The first picture needs a checkpoint whose file name is known. Give one with --checkpoint, or a workflow "
            "of your own with --workflow FILE."
        )
    if lora is None and links.get("loras"):
        raise RequestError(
            "The first picture is made with the LoRA, so its file name must be known before it is fetched. Write it "
            "behind the link (#name=my.safetensors), or give a workflow of your own with --workflow FILE."
        )
    example = EXAMPLES / ("txt2img_lora.json" if lora else "txt2img.json")
    values: dict[str, Any] = {"ckpt_name": checkpoint} | ({"lora_name": lora} if lora else {})
    return with_values(parse_workflow(example.read_text("utf-8")), values | REAL_SIZE)


def _first_name(
    input_name: str, local: Sequence[LocalWeight], links: Mapping[str, Sequence[str]], settings: Settings
) -> str | None:
    """The file name, in ComfyUI, of the first file of a list."""
    names = [weight.path.name for weight in local if weight.input_name == input_name]
    if names:
        return names[0]
    known = [understand(link, settings, NO_TOKENS, input_name=input_name).name for link in links.get(input_name, ())]
    return next(filter(None, known), None)
