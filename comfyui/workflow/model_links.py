"""Links in place of the names of model files: found in a workflow, brought for one prediction, replaced by names.

    workflow ──► find: which inputs choose from model folders? ──► bring: comfyui.weights.linked ──► names for links

Here the halves meet for links in workflows: the engine knows the model folders, the weights half has the files.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from comfyui.deadline import Deadline
from comfyui.engine.engine import Engine
from comfyui.engine.model_folders import ModelFolder, ModelFolders, ModelInputs
from comfyui.errors import (
    ComfyUIModelError,
    DownloadError,
    NodeProblem,
    RequestError,
    StorageError,
    TrainingInputError,
    WeightsError,
    WorkflowError,
)
from comfyui.settings import Settings
from comfyui.url_policy import display_url
from comfyui.weights.linked.linked import Asked, Brought, Link, LinkedWeights
from comfyui.weights.linked.names import BY_LINK, is_by_link, is_link
from comfyui.weights.linked.shelf import Lease
from comfyui.weights.linked.threads import LinksFailedError, LinkThreads
from comfyui.weights.listener import size_text
from comfyui.weights.sources import Tokens
from comfyui.workflow.node_classes import NodeClasses
from comfyui.workflow.parse import Node, Workflow
from comfyui.workflow.wording import node_name, problem, refuse

LORA_KEY = "lora"
"""Stacks whose rows /object_info does not list, such as rgthree's Power Lora Loader, have values {"on", "lora", …}."""
LORA_FOLDER = "loras"
_TOKEN_INPUTS = {"huggingface_read_token": "huggingface_token", "civitai_api_token": "civitai_token"}
"""What a training calls the tokens, and a prediction."""


@dataclass(frozen=True)
class Place:
    """A link in a workflow: the input it stands in, and the folder its file is for.

    `in_row` says that it is the LoRA of a row, {"lora": link, …}, and not the input's whole value.
    """

    node_id: str
    input_name: str
    written: str = field(repr=False)
    folder: ModelFolder
    in_row: bool = False

    @property
    def link(self) -> Link:
        """The link for the weights half; places with the same one share a file."""
        return Link(self.written, self.folder.path, self.folder.extensions)


@dataclass(frozen=True)
class FoundLinks:
    """The links of one workflow."""

    workflow: Workflow
    places: tuple[Place, ...] = ()

    def covers(self, found: NodeProblem) -> bool:
        """Whether this problem is only that a link is not in the list of names; it will be a name before it is run."""
        places = {(place.node_id, place.input_name) for place in self.places}
        return found.kind == "value_not_in_list" and (found.node_id, found.input_name) in places


def tokens_of(huggingface_token: str | None, civitai_token: str | None) -> Tokens:
    """A prediction's tokens. Raises RequestError that names the input whose text cannot be a token."""
    try:
        return Tokens(huggingface_token, civitai_token)
    except TrainingInputError as error:
        raise RequestError(_as_prediction(str(error))) from error


class ModelLinks:
    """The links in workflows of one engine; one for each process. `weights` is made of the settings if not given."""

    def __init__(self, engine: Engine, settings: Settings, weights: LinkedWeights | None = None) -> None:
        self._engine = engine
        self._folders = ModelFolders(engine, settings.models_dir, f"{BY_LINK}-probe")
        self._weights = weights or LinkedWeights(settings)

    async def find(self, workflow: Workflow) -> FoundLinks:
        """The links that stand where the name of a model file belongs; nothing is fetched.

        Raises WorkflowError for the name of a file that another prediction's link brought, and an EngineError.
        """
        classes = NodeClasses(await self._engine.object_info(fresh=False))
        if not may_have_links(workflow, classes):
            return FoundLinks(workflow)
        inputs = await self._folders.inputs()
        if foreign := list(foreign_names(workflow, inputs)):
            raise refuse(foreign)
        return FoundLinks(workflow, tuple(find_places(workflow, classes, inputs)))

    @asynccontextmanager
    async def bring(
        self, found: FoundLinks, tokens: Tokens, *, say: Callable[[str], None], deadline: Deadline | None = None
    ) -> AsyncIterator[Workflow]:
        """The workflow with names in place of its links; their files are there, and stay, until the end of the block.

        `say` is called in this coroutine. Raises WorkflowError, DownloadError, WeightsError or StorageError, each with
        the names of nodes and inputs, and DeadlineError when `deadline` comes before all is there.
        """
        if not found.places:
            yield found.workflow
            return
        lease = self._weights.lease()
        try:
            asked, brought = await self._bring(found, tokens, lease, say, deadline)
            for place in found.places:
                say(_brought_line(place, found.workflow, asked[place.link], brought[place.link]))
            yield replaced(found, {link: file.name for link, file in brought.items()})
        finally:
            await asyncio.shield(asyncio.to_thread(lease.close))

    async def _bring(
        self, found: FoundLinks, tokens: Tokens, lease: Lease, say: Callable[[str], None], deadline: Deadline | None
    ) -> tuple[Mapping[Link, Asked], Mapping[Link, Brought]]:
        threads = LinkThreads(self._weights, lambda line: say(_as_prediction(line)))
        links = list(dict.fromkeys(place.link for place in found.places))
        try:
            async with asyncio.timeout(deadline.remaining_s() if deadline else None):
                asked = await threads.ask(links, tokens)
                return asked, await threads.bring(asked, lease)
        except TimeoutError as error:
            raise (deadline.error() if deadline else error) from error
        except LinksFailedError as error:
            raise _explained(found, error.failures) from error


def may_have_links(workflow: Workflow, classes: NodeClasses) -> bool:
    """Whether it is worth asking which inputs choose from model folders. Pure, as all below."""

    def may_be(node: Node, name: str, value: Any) -> bool:
        spec = classes.input(node.class_type, name)
        # An input that is not known may be one inside a dynamic one.
        chooses = spec is None or (spec.choices is not None and not spec.takes_file)
        return chooses and (is_by_link(value) or _is_new(node, name, value, classes))

    return any(
        _row_lora(value) is not None or may_be(node, name, value)
        for node in workflow.nodes.values()
        for name, value in node.inputs.items()
    )


def find_places(workflow: Workflow, classes: NodeClasses, inputs: ModelInputs) -> Iterator[Place]:
    """The links in inputs that choose from a model folder, and in rows of LoRA stacks. All other text stays text."""
    loras = inputs.folders.get(LORA_FOLDER)
    for node in workflow.nodes.values():
        for name, value in node.inputs.items():
            folder = inputs.folder(node.class_type, name)
            row = _row_lora(value)
            if folder is not None and _is_new(node, name, value, classes):
                yield Place(node.id, name, value.strip(), folder)
            elif folder is None and loras is not None and row is not None and is_link(row):
                yield Place(node.id, name, row.strip(), loras, in_row=True)


def foreign_names(workflow: Workflow, inputs: ModelInputs) -> Iterator[NodeProblem]:
    """The values that name a file in a folder of ours: it belongs to the prediction whose link brought it."""
    for node in workflow.nodes.values():
        for name, value in node.inputs.items():
            row = _row_lora(value)
            if is_by_link(row) or (inputs.folder(node.class_type, name) is not None and is_by_link(value)):
                what = (
                    f"{name} is {row or value!r}, a file that a link brought for one prediction; give the link itself."
                )
                yield problem(workflow, node.id, name, "value_not_in_list", what)


def replaced(found: FoundLinks, names: Mapping[Link, str]) -> Workflow:
    """A copy of the workflow with these names in place of the links."""

    def change(node: Node) -> Mapping[str, Any]:
        places = [place for place in found.places if place.node_id == node.id]
        return {
            place.input_name: {**node.inputs[place.input_name], LORA_KEY: names[place.link]}
            if place.in_row
            else names[place.link]
            for place in places
        }

    return found.workflow.changed(change)


def _is_new(node: Node, name: str, value: Any, classes: NodeClasses) -> bool:
    """Whether a value is a link, and no name in the list: a file may be called owner/repo."""
    spec = classes.input(node.class_type, name)
    return is_link(value) and not (spec is not None and spec.choices is not None and value in spec.choices)


def _row_lora(value: Any) -> str | None:
    lora = value.get(LORA_KEY) if isinstance(value, Mapping) else None
    return lora if isinstance(lora, str) and (is_link(lora) or is_by_link(lora)) else None


def _where(place: Place, workflow: Workflow) -> str:
    name = node_name(place.node_id, workflow.nodes[place.node_id].class_type, workflow)
    return f"{name}, input {place.input_name}"


def _brought_line(place: Place, workflow: Workflow, asked: Asked, file: Brought) -> str:
    how = f"fetched in {file.seconds:.1f} s" if file.fetched else "was there already"
    return f"{_where(place, workflow)}: {file.name} from {asked.display_url} ({size_text(file.size)}, {how})"


def _explained(found: FoundLinks, failures: Mapping[Link, Exception]) -> Exception:
    """The first failure, in its family, with the names of nodes; its text tells of all of them."""
    failed = [(place, failures[place.link]) for place in found.places if place.link in failures]
    problems = [_problem(place, error, found.workflow) for place, error in failed]
    text = problems[0].text
    if len(problems) > 1:
        lines = "\n".join(f"  {number}. {problem.text}" for number, problem in enumerate(problems, 1))
        text = f"{len(problems)} links in this workflow cannot be used:\n{lines}"
    match failed[0][1]:
        case DownloadError() as first:
            return DownloadError(text, url=first.url, status=first.status)
        case WeightsError() as first:
            return WeightsError(text, path=first.path, expected=first.expected, seen=first.seen)
        case StorageError() as first:
            return StorageError(text, path=first.path, expected=first.expected, seen=first.seen)
        case RequestError():
            return WorkflowError(text, problems=problems)
        case first:
            return first


def _problem(place: Place, error: Exception, workflow: Workflow) -> NodeProblem:
    said = _as_prediction(str(error)) if isinstance(error, ComfyUIModelError) else type(error).__name__
    shown = display_url(place.written)
    via = "" if shown in said else f", {shown}"
    node = workflow.nodes[place.node_id]
    text = f"{_where(place, workflow)}{via}: {said}"
    return NodeProblem(place.node_id, node.title, node.class_type, place.input_name, "link_not_brought", text)


def _as_prediction(text: str) -> str:
    """Advice that speaks of a training's inputs, for a prediction."""
    for training, prediction in _TOKEN_INPUTS.items():
        text = text.replace(training, prediction)
    return text
