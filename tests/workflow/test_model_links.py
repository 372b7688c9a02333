"""Links in place of model names: which are taken for links, and real workflows that load them in the real ComfyUI."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from comfyui.deadline import Deadline
from comfyui.engine.client import PromptRefusedError
from comfyui.engine.engine import Engine
from comfyui.engine.events import ExecutionCached
from comfyui.engine.model_folders import ModelFolder, ModelInputs
from comfyui.errors import DeadlineError, DownloadError, RequestError, StorageError, WeightsError, WorkflowError
from comfyui.settings import Settings
from comfyui.weights.linked.linked import LinkedWeights
from comfyui.weights.sources import NO_TOKENS, Tokens
from comfyui.workflow.check import check
from comfyui.workflow.model_links import (
    FoundLinks,
    ModelLinks,
    Place,
    find_places,
    foreign_names,
    may_have_links,
    tokens_of,
)
from comfyui.workflow.node_classes import NodeClasses
from comfyui.workflow.parse import Workflow, workflow_of
from tests.engine.lora_stacks import engine_arguments
from tests.parts import SD3, demo_files, example
from tests.weights.civitai_standin import CivitaiStandin, File, Version
from tests.weights.file_server import FileServer
from tests.weights.hugging_face_standin import GOOD, HuggingFaceStandin, Repo
from tests.weights.samples import files_below, safetensors
from tests.weights.storage_standin import StorageStandin
from tests.weights.tars import IMPATIENT, RangeServer

LORAS = ModelFolder("loras", "loras")
INPUTS = ModelInputs({"Loader": {"lora_name": LORAS}, "Grow": {"mode.lora_name": LORAS}}, {"loras": LORAS})
CLASSES = NodeClasses(
    {
        "Loader": {
            "input": {
                "required": {
                    "lora_name": [["a.safetensors", "owner/repo"], {}],
                    "sampler": [["euler"], {}],
                    "text": ["STRING", {}],
                    "image": [["x.png"], {"image_upload": True}],
                }
            }
        },
        "Rows": {"input": {"required": {}}},
        "Grow": {"input": {"required": {"mode": ["COMFY_DYNAMICCOMBO_V3", {}]}}},
    }
)
URL = "https://example.com/a.safetensors?token=SECRET"


def workflow(class_type: str = "Loader", **inputs: Any) -> Workflow:
    return workflow_of({"1": {"class_type": class_type, "inputs": inputs, "_meta": {"title": "Mine"}}})


@pytest.mark.parametrize(
    "value",
    [URL, "HTTP://a/b", "hf://me/repo/a.safetensors", "me/repo", "me/repo@main", "https://civitai.com/models/1"],
)
def test_a_link_in_a_list_of_models_is_taken(value: str) -> None:
    for flow in (workflow(lora_name=value), workflow("Grow", **{"mode.lora_name": value})):
        assert may_have_links(flow, CLASSES)
        (place,) = find_places(flow, CLASSES, INPUTS)
        assert (place.node_id, place.written, place.folder, place.in_row) == ("1", value, LORAS, False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lora_name", "a.safetensors"),
        ("lora_name", "sub/a.safetensors"),
        ("lora_name", "owner/repo"),
        ("lora_name", ["2", 0]),
        ("lora_name", 7),
        ("lora_name", None),
        ("text", URL),
        ("image", URL),
    ],
)
def test_everything_else_is_not_even_asked_about(name: str, value: Any) -> None:
    flow = workflow(**{name: value})
    assert not may_have_links(flow, CLASSES)
    assert list(find_places(flow, CLASSES, INPUTS)) == []


def test_a_url_among_choices_that_are_no_models_stays_and_is_a_problem() -> None:
    flow = workflow(sampler=URL, lora_name="a.safetensors")
    assert list(find_places(flow, CLASSES, INPUTS)) == []


def test_spaces_around_a_link_do_not_count() -> None:
    (place,) = find_places(workflow(lora_name=f" {URL}\n"), CLASSES, INPUTS)
    assert place.written == URL


def test_a_token_that_is_none_is_named_as_the_prediction_calls_it() -> None:
    assert tokens_of(" hf_x\n", None) == Tokens(huggingface="hf_x")
    for name, given in (("huggingface_token", ("a b", None)), ("civitai_token", (None, "ä"))):
        with pytest.raises(RequestError, match=f"^{name} has a space"):
            tokens_of(*given)


def test_the_rows_of_a_stack() -> None:
    rows = {
        "lora_1": {"on": True, "lora": URL, "strength": 1},
        "lora_2": {"on": True, "lora": "a.safetensors", "strength": 1},
        "lora_3": {"on": True, "other": URL},
        "header": {"type": "Header"},
    }
    flow = workflow("Rows", **rows)
    assert may_have_links(flow, CLASSES)
    assert [(place.input_name, place.in_row) for place in find_places(flow, CLASSES, INPUTS)] == [("lora_1", True)]
    assert not may_have_links(workflow("Rows", lora_2=rows["lora_2"], header=rows["header"]), CLASSES)


@pytest.mark.parametrize("value", ["by-link/0123/a.safetensors", "x\\by-link\\a.safetensors", "by-link-probe-1/a"])
def test_the_files_of_other_predictions_are_refused(value: str) -> None:
    for flow in (workflow(lora_name=value), workflow("Rows", lora_1={"on": True, "lora": value})):
        assert may_have_links(flow, CLASSES)
        (problem,) = foreign_names(flow, INPUTS)
        assert "give the link itself" in problem.text
    assert list(foreign_names(workflow(text=value), INPUTS)) == []


def test_a_link_that_will_be_a_name_is_no_problem() -> None:
    flow = workflow(lora_name=URL, sampler=URL, text="")
    found = FoundLinks(flow, (Place("1", "lora_name", URL, LORAS),))
    problems = [problem for problem in check(_with_output(flow), _with_save()) if problem.kind == "value_not_in_list"]
    assert [(problem.input_name, found.covers(problem)) for problem in problems] == [
        ("lora_name", True),
        ("sampler", False),
    ]
    assert "SECRET" not in repr(found.places)


def _with_save() -> NodeClasses:
    return NodeClasses({**CLASSES._info, "Save": {"input": {"required": {"x": ["*"]}}, "output_node": True}})


def _with_output(flow: Workflow) -> Workflow:
    return workflow_of({**flow.prompt(), "2": {"class_type": "Save", "inputs": {"x": ["1", 0]}}})


@pytest.fixture(scope="module")
def storage() -> Iterator[RangeServer]:
    files = demo_files(*SD3, "loras/tiny-sd3-lora")
    with RangeServer() as running:
        for path, file in files.items():
            running.put(f"/{path}", file.read_bytes())
        yield running


@dataclass
class Rig:
    """The real ComfyUI with an empty models folder, and the links of its workflows."""

    engine: Engine
    settings: Settings
    links: ModelLinks
    said: list[str] = field(default_factory=list)

    async def run(self, prompt: dict[str, Any], tokens: Tokens = NO_TOKENS) -> list[str]:
        """Run a workflow as a prediction does; returns the nodes that ComfyUI had in its cache."""
        cached: list[str] = []

        def observe(item: object) -> None:
            if isinstance(item, ExecutionCached):
                cached.extend(item.node_ids)

        self.said.clear()
        found = await self.links.find(workflow_of(prompt))
        async with self.links.bring(found, tokens, say=self.said.append) as ready:
            self.ready = ready
            deadline = Deadline(60, "A test's workflow")
            entry = await self.engine.run(ready.prompt(), deadline=deadline, observe=observe)
        assert entry.succeeded, entry.failure
        return cached


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_rig(tmp_path_factory: pytest.TempPathFactory, sites: Sites) -> AsyncIterator[Rig]:
    folder = tmp_path_factory.mktemp("links")
    settings = replace(
        Settings.from_environ({"ALLOW_PRIVATE_URLS": "1"}),
        models_dir=folder / "models",
        data_dir=folder / "data",
        device="cpu",
        engine_args=engine_arguments(folder),
        hf_endpoint=sites.hub.url,
        civitai_endpoint=sites.civitai.url,
    )
    engine = Engine(settings, sink=lambda _line: None)
    await engine.ready()
    yield Rig(engine, settings, ModelLinks(engine, settings, LinkedWeights(settings, options=IMPATIENT)))
    await engine.stop()


@pytest.fixture
def rig(shared_rig: Rig) -> Iterator[Rig]:
    """Nothing of a prediction may be left in the models folder, whatever it did."""
    yield shared_rig
    assert files_below(shared_rig.settings.models_dir) == []


@dataclass
class Sites:
    hub: HuggingFaceStandin
    civitai: CivitaiStandin


@pytest.fixture(scope="module")
def sites() -> Iterator[Sites]:
    lora = demo_files("loras/tiny-sd3-lora")["loras/tiny-sd3-lora.safetensors"].read_bytes()
    with StorageStandin() as store, HuggingFaceStandin(store) as hub, CivitaiStandin(store) as civitai:
        hub.repos["me/private"] = Repo({"loras/mine.safetensors": lora}, private=True)
        civitai.versions[7] = Version(3, [File(1, "theirs.safetensors", lora, primary=True)], login=True)
        yield Sites(hub, civitai)


def stacked(storage: RangeServer, class_type: str, **inputs: Any) -> dict[str, Any]:
    """The SD3 example with its checkpoint by link, and a node of the pack between model and sampler."""
    flow = example("tiny_sd3", seed=1, ckpt_name=f"{storage.url}/checkpoints/tiny-sd3-notext.safetensors")
    flow["20"] = {
        "class_type": class_type,
        "inputs": {"model": ["1", 0], **inputs},
        "_meta": {"title": "My stack"},
    }
    flow["6"]["inputs"]["model"] = ["20", 0]
    return flow


in_module_loop = pytest.mark.asyncio(loop_scope="module")


@in_module_loop
async def test_a_checkpoint_and_a_lora_by_link_are_loaded_and_come_from_the_cache_next_time(
    rig: Rig, storage: RangeServer
) -> None:
    lora = f"{storage.url}/loras/tiny-sd3-lora.safetensors"
    flow = stacked(storage, "LoraLoaderModelOnly", lora_name=lora, strength_model=1.0)
    await rig.run(flow)
    told = "\n".join(rig.said)
    own = r"by-link/[0-9a-f]{16}/tiny-sd3-lora-[0-9a-f]{12}\.safetensors"
    pattern = rf"Node 20 'My stack' \(LoraLoaderModelOnly\), input lora_name: {own} from {re.escape(lora)} \(9\.7 kB, "
    assert re.search(pattern + r"fetched in \d+\.\d s\)", told)
    assert re.search(r"Node 1 'Checkpoint' .*input ckpt_name: .* \(6\.3 MB, fetched in ", told)
    cached = await rig.run(flow)
    assert {"1", "20"} <= set(cached)
    assert [line.rpartition("(")[2] for line in rig.said] == [
        "6.3 MB, was there already)",
        "9.7 kB, was there already)",
    ]


@in_module_loop
@pytest.mark.parametrize(
    ("class_type", "inputs"),
    [
        ("ListStack", {"lora_1": "LINK", "lora_2": "LINK", "note": "LINK"}),
        ("RowStack", {"lora_1": {"on": True, "lora": "LINK", "strength": 0.5}}),
        ("DynamicStack", {"mode": "one", "mode.lora_name": "LINK"}),
    ],
)
async def test_lora_stacks_of_custom_nodes(
    rig: Rig, storage: RangeServer, class_type: str, inputs: dict[str, Any]
) -> None:
    lora = f"{storage.url}/loras/tiny-sd3-lora.safetensors"
    given = json.loads(json.dumps(inputs).replace("LINK", lora))
    await rig.run(stacked(storage, class_type, **given))
    ran = rig.ready.nodes["20"].inputs
    assert ran.get("note") == given.get("note")
    name = next(line.split(": ")[1].split(" from ")[0] for line in rig.said if f" from {lora} (" in line)
    expected = json.loads(json.dumps(inputs).replace("LINK", name)) | {"note": given.get("note")}
    assert {key: ran.get(key) for key in expected} == expected


@in_module_loop
async def test_short_forms_with_tokens(rig: Rig, storage: RangeServer) -> None:
    links = {"lora_1": "hf://me/private/loras/mine.safetensors", "lora_2": "https://civitai.com/models/3"}
    await rig.run(stacked(storage, "ListStack", **links), Tokens(huggingface=GOOD, civitai="cv_SECRET_good"))
    assert "SECRET" not in "\n".join(rig.said)
    found = await rig.links.find(workflow_of(stacked(storage, "ListStack", **links)))
    with pytest.raises(DownloadError) as caught:
        async with rig.links.bring(found, NO_TOKENS, say=print):
            pytest.fail("it was brought")
    text = str(caught.value)
    assert text.startswith(
        "2 links in this workflow cannot be used:\n  1. Node 20 'My stack' (ListStack), input lora_1"
    )
    assert "huggingface_token" in text
    assert "give civitai_token" in text.lower()
    assert "read_token" not in text


async def error_of(rig: Rig, flow: dict[str, Any]) -> Exception:
    found = await rig.links.find(workflow_of(flow))
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the tests look at it
        async with rig.links.bring(found, NO_TOKENS, say=print):
            pytest.fail("it was brought")
    assert "SECRET" not in str(caught.value)
    return caught.value


@in_module_loop
@pytest.mark.parametrize(
    ("link", "family", "words"),
    [
        ("/gone.safetensors?sig=SECRET", DownloadError, r"input lora_1: .*/gone\.safetensors was not given"),
        ("/a.ckpt?sig=SECRET", WeightsError, r"input lora_1, http.*/a\.ckpt: a\.ckpt is refused: .*allow_pickle"),
        ("/cut.safetensors?sig=SECRET", WeightsError, r"input lora_1, http.*/cut\.safetensors: "),
        ("/a.safetensors?sig=SECRET#sha1=7", WorkflowError, r"input lora_1: .*/a\.safetensors has 'sha1' behind its #"),
    ],
)
async def test_a_link_that_cannot_be_used_is_named_with_its_node(
    rig: Rig, storage: RangeServer, link: str, family: type[Exception], words: str
) -> None:
    storage.put("/a.ckpt", b"\x80\x02" + bytes(500))
    storage.put("/cut.safetensors", safetensors()[:-1])
    error = await error_of(rig, stacked(storage, "ListStack", lora_1=storage.url + link, lora_2="None"))
    assert type(error) is family
    assert re.match(r"Node 20 'My stack' \(ListStack\), " + words, str(error)), str(error)
    if isinstance(error, WorkflowError):
        assert [(problem.node_id, problem.input_name) for problem in error.problems] == [("20", "lora_1")]


@in_module_loop
async def test_a_file_larger_than_all_room(rig: Rig, storage: RangeServer) -> None:
    with FileServer() as server:
        huge = server.put("/huge.safetensors", declared=20 * 10**12)
        error = await error_of(rig, stacked(storage, "ListStack", lora_1=huge, lora_2="None"))
    assert type(error) is StorageError
    assert "input lora_1, " + huge + ": huge.safetensors is 20.0 TB, more than the 20.0 GB" in str(error)


@in_module_loop
async def test_the_name_that_a_link_had_is_of_no_use_to_others(rig: Rig, storage: RangeServer) -> None:
    lora = f"{storage.url}/loras/tiny-sd3-lora.safetensors"
    await rig.run(stacked(storage, "ListStack", lora_1=lora, lora_2="None"))
    name = rig.ready.nodes["20"].inputs["lora_1"]
    for class_type, inputs in (
        ("ListStack", {"lora_1": name, "lora_2": "None"}),
        ("RowStack", {"lora_1": {"on": True, "lora": name}}),
    ):
        with pytest.raises(WorkflowError, match="give the link itself"):
            await rig.links.find(workflow_of(stacked(storage, class_type, **inputs)))
    with pytest.raises(PromptRefusedError):
        await rig.engine.run(rig.ready.prompt(), deadline=Deadline(60, "x"), observe=lambda _: None)
    assert "by-link" not in json.dumps(await rig.engine.object_info(fresh=True))


@in_module_loop
async def test_the_deadline_ends_the_fetch(rig: Rig, storage: RangeServer) -> None:
    slow = storage.put("/slow.safetensors", safetensors(3, 4_000_000), chunk_delay_s=0.5)
    found = await rig.links.find(workflow_of(stacked(storage, "ListStack", lora_1=slow, lora_2="None")))
    with pytest.raises(DeadlineError, match=r"Making a picture took longer than the 1\.5 s"):
        async with rig.links.bring(found, NO_TOKENS, say=print, deadline=Deadline(1.5, "Making a picture")):
            pytest.fail("it was brought")


@in_module_loop
async def test_two_predictions_at_once(rig: Rig, storage: RangeServer) -> None:
    body = demo_files("loras/tiny-sd3-lora")["loras/tiny-sd3-lora.safetensors"].read_bytes()
    # Another content than in the other tests: a header may end in spaces.
    length = int.from_bytes(body[:8], "little")
    body = (length + 8).to_bytes(8, "little") + body[8 : 8 + length] + b" " * 8 + body[8 + length :]
    lora = storage.put("/twice.safetensors", body, chunk_delay_s=0.05)
    flow = workflow_of(stacked(storage, "ListStack", lora_1=lora, lora_2="None"))
    both = asyncio.Barrier(2)

    async def predict() -> str:
        async with rig.links.bring(await rig.links.find(flow), NO_TOKENS, say=print) as ready:
            await both.wait()
        async with rig.links.bring(await rig.links.find(flow), NO_TOKENS, say=print) as ready:
            name: str = ready.nodes["20"].inputs["lora_1"]
            assert (rig.settings.models_dir / "loras" / name).read_bytes() == body
            return name

    first, second = await asyncio.gather(predict(), predict())
    assert first == second
    fetched = sum(last - start + 1 for start, last in storage.bytes_asked("/twice.safetensors") if last)
    assert fetched == len(body)


@in_module_loop
async def test_a_workflow_without_links_touches_nothing(rig: Rig, tmp_path: Path) -> None:
    settings = replace(rig.settings, data_dir=tmp_path / "data")
    links = ModelLinks(rig.engine, settings)
    flow = workflow_of(example("tiny_sd3", filename_prefix="video/ComfyUI"))
    found = await links.find(flow)
    async with links.bring(found, NO_TOKENS, say=print) as ready:
        assert ready is flow
    assert not settings.data_dir.exists()
