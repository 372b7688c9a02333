"""From weights on this machine to a picture from one's own API: upload, create, push, train, picture.

    files ──► Hugging Face ──► links ─┐
    model ──► version (pushed) ───────┴─► training ──► version with weights ──► prediction ──► picture

Each step is looked up in the state first, and written there before and after it is done. A training or prediction
whose answer was lost, by a kill between the two, is found again among the account's newest runs instead of being paid
for twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfyui.errors import RequestError
from comfyui.local.paths import typed_path
from comfyui.local.replicate.api import Api, Kind, Run, model_name, split_name
from comfyui.local.replicate.arguments import Options
from comfyui.local.replicate.failures import ServiceError
from comfyui.local.replicate.follow import RunView, need_success, need_version
from comfyui.local.replicate.models import make_model, wait_for_version
from comfyui.local.replicate.outputs import GoneError, need_folder, save_outputs
from comfyui.local.replicate.paid_runs import is_of, new_run
from comfyui.local.replicate.prices import cost_text
from comfyui.local.replicate.push import REGISTRY, checks, need_all, push
from comfyui.local.replicate.runs import Base, find_base, prediction_inputs, stay, training_inputs
from comfyui.local.replicate.ship_workflow import first_workflow
from comfyui.local.replicate.state import ShipState
from comfyui.local.replicate.training_inputs import Links, check_names, judge_links, needed_secrets
from comfyui.local.replicate.upload import Hub, LocalWeight, check_places, prove
from comfyui.local.replicate.workflow_inputs import PreparedWorkflow
from comfyui.settings import PROJECT_ROOT, Settings
from comfyui.weights.folders import TRAINING_INPUTS
from comfyui.weights.judge.verify import Digest
from comfyui.weights.listener import Listener

STEPS = 5


@dataclass(frozen=True)
class Tools:
    """What the steps work with. `secrets` are the training's tokens, by input name."""

    api: Api
    hub: Callable[[], Hub]
    settings: Settings
    listener: Listener
    view: RunView
    state: ShipState
    secrets: Mapping[str, str | None] = field(repr=False)


@dataclass(frozen=True)
class Shipped:
    """What came of it: the version as owner/name:id, the pictures, and what it has cost."""

    version: str
    files: Sequence[Path]
    seconds: float
    cost: str


def ship(options: Options, tools: Tools) -> Shipped:
    """Do every step that is not done yet. Raises ComfyUIModelError; what was done before it stays done."""
    local, links = _sort(options, tools.settings)
    workflow = first_workflow(options, local, links, tools.settings)
    if local and not options.public_repo and not tools.secrets.get("huggingface_read_token"):
        raise RequestError(
            "The training must read the private repo, so it takes a token along: make a second one, which can only "
            "read, at https://huggingface.co/settings/tokens, and give it in HF_READ_TOKEN or with "
            "--hf-read-token-file; or make the repo public with --public-repo."
        )
    need_folder(options.out)
    step = _Steps(tools)
    step("Upload the weights to Hugging Face")
    uploaded = _upload(options, tools, local)
    judged = judge_links(
        {name: [*uploaded.get(name, []), *links.get(name, [])] for name in TRAINING_INPUTS}, tools.settings
    )
    step(f"Create the model {options.model}")
    _create(options, tools)
    step("Find the version to train, or push this project")
    base = _base(options, tools)
    step(f"Train: bake the weights into a version, from {base.reference}")
    version = _train(options, tools, base, judged)
    tools.listener.say(_cost(options, tools.state))
    step(f"A first picture from {version}")
    files = _picture(options, tools, version, workflow)
    return Shipped(version, files, sum(tools.state.seconds), _cost(options, tools.state))


class _Steps:
    """Numbers the steps."""

    def __init__(self, tools: Tools) -> None:
        self._say = tools.listener.say
        self._number = 0

    def __call__(self, title: str) -> None:
        self._number += 1
        self._say(f"[{self._number}/{STEPS}] {title}")


def _cost(options: Options, state: ShipState) -> str:
    return cost_text(state.seconds, options.hardware, options.price)


def _sort(options: Options, settings: Settings) -> tuple[list[LocalWeight], dict[str, list[str]]]:
    """Which of the weights are files of this machine, and which are links. Raises RequestError for what is neither."""
    local: list[LocalWeight] = []
    links: dict[str, list[str]] = {}
    for name, values in options.files.items():
        for value in values:
            path = typed_path(value)
            if path.is_file():
                local.append(LocalWeight(path, TRAINING_INPUTS[name], name))
            elif "://" in value:
                links.setdefault(name, []).append(value)
            else:
                raise RequestError(f"There is no file {path}, and {value!r} is no link either.")
    check_places(local)
    judge_links(links, settings)
    return local, links


def _upload(options: Options, tools: Tools, local: Sequence[LocalWeight]) -> dict[str, list[str]]:
    """The link of each file, by training input."""
    digests = [_digest(weight, options, tools) for weight in local]
    urls: dict[str, list[str]] = {}
    hub: Hub | None = None
    for weight, digest in zip(local, digests, strict=True):
        key = [options.repo, tools.settings.hf_endpoint, digest.sha256]
        step = f"upload {weight.place}"
        done = tools.state.done(step, key)
        if done is None:
            if hub is None:
                hub = tools.hub()
                hub.make(private=not options.public_repo)
            done = {"url": hub.put(weight, digest).url}
            tools.state.finish(step, key, done)
        urls.setdefault(weight.input_name, []).append(done["url"])
    return urls


def _digest(weight: LocalWeight, options: Options, tools: Tools) -> Digest:
    """Size and SHA-256 of a file, which is read only when it was written since."""
    stat = weight.path.stat()
    step, key = f"read {weight.path}", [stat.st_size, stat.st_mtime_ns]
    done = tools.state.done(step, key)
    if done is None:
        done = {"sha256": prove(weight, tools.listener, allow_pickle=options.allow_pickle).sha256}
        tools.state.finish(step, key, done)
    return Digest(stat.st_size, done["sha256"])


def _create(options: Options, tools: Tools) -> None:
    if tools.state.done("create", options.model) is None:
        name = model_name(options.model)
        model, new = make_model(tools.api, name, public=options.public, hardware=options.hardware)
        tools.listener.say(f"{model.url} is made" if new else f"{model.url} is there already")
        tools.state.finish("create", options.model, {})


def _base(options: Options, tools: Tools) -> Base:
    """The version to train; for a model of one's own that has none yet, this project is pushed first."""
    wanted = options.base or options.model
    done = tools.state.done("base", wanted)
    if done is not None:
        if base := _found(tools.api, done["reference"]):
            return base
        tools.listener.say(f"{done['reference']} is not there any more")
    owner, name, version = split_name(wanted)
    model = tools.api.model(owner, name)
    if not options.base and version is None and model is not None and model.latest_version is None:
        tools.listener.say(f"{wanted} has no version yet, so this project is pushed. (--base OWNER/NAME does without.)")
        need_all(list(checks(tools.settings)), tools.listener.say)
        push(f"{REGISTRY}/{wanted}", (), PROJECT_ROOT)
        wait_for_version(tools.api, (owner, name), None)
    base = find_base(tools.api, wanted)
    tools.state.finish("base", wanted, {"reference": base.reference})
    return base


def _found(api: Api, reference: str) -> Base | None:
    """The version owner/name:id, None where it was deleted."""
    try:
        return find_base(api, reference)
    except ServiceError as error:
        if error.status != 404:
            raise
        return None


def _train(options: Options, tools: Tools, base: Base, links: Links) -> str:
    """The version with the weights in it, as owner/name:id."""
    for notice in links.notices:
        tools.listener.say(notice)
    more: dict[str, Any] = {"allow_pickle": True} if options.allow_pickle else {}
    inputs = training_inputs(links, more, needed_secrets(tools.secrets, links, None, tools.settings))
    check_names(list(inputs), base.version.input_names("training"), f"Trainings of {base.reference}")
    shown = {**links.lists, **more}
    key = {"base": base.reference, "destination": options.model, "inputs": shown}
    done = tools.state.done("train", key)
    if done is not None and _found(tools.api, done["version"]) is None:
        tools.listener.say(f"{done['version']} is not there any more, so it is trained anew")
        tools.state.forget("train", key)
        done = None
    if done is None:

        def mine(run: Run) -> bool:
            same = all(run.inputs.get(name) == value for name, value in shown.items())
            return same and run.version == base.version.id

        def start() -> Run:
            return tools.api.start_training(base.reference, inputs, options.model)

        run = _run_once(tools, "train", key, "training", start, mine)
        done = {"id": run.id, "version": need_version(run)}
        tools.state.finish("train", key, done)
    return str(done["version"])


def _picture(options: Options, tools: Tools, version: str, workflow: PreparedWorkflow) -> list[Path]:
    files_sent = [(name, str(path), path.stat().st_mtime_ns) for name, path in workflow.files.items()]
    key = {"version": version, "workflow": workflow.text, "files": files_sent}
    done = tools.state.done("picture", key)
    if done is not None and all(Path(file).is_file() for file in done["files"]):
        return [Path(file) for file in done["files"]]
    _, _, version_id = split_name(version)

    def start() -> Run:
        inputs, notices = prediction_inputs(workflow, {"randomise_seeds": False}, "", tools.api.upload)
        for notice in notices:
            tools.listener.say(notice)
        return tools.api.start_prediction(version_id or "", inputs)

    run = _run_once(tools, "picture", key, "prediction", start, lambda run: is_of(run, version_id, workflow.text))
    try:
        files = save_outputs(run.output, options.out, tools.settings)
    except GoneError:
        tools.state.forget("picture", key)
        raise
    tools.state.finish("picture", key, {"id": run.id, "files": [str(file) for file in files]})
    return files


def _run_once(
    tools: Tools, step: str, key: object, kind: Kind, start: Callable[[], Run], mine: Callable[[Run], bool]
) -> Run:
    """The run of this step once it has succeeded: the one begun before if there is one, else a new one.

    Raises RunError when it ends otherwise; the next time there will be a new one.
    """
    run = _begun(tools, step, key, kind, mine)
    if run is None:
        tools.state.begin(step, key, {"before": [other.id for other in tools.api.recent(kind)]})
        run = start()
    tools.state.begin(step, key, {"id": run.id})
    run = stay(tools.api, run, tools.view)
    tools.state.spend(kind, run.id, run.seconds or 0.0)
    if run.status != "succeeded":
        tools.state.forget(step, key)
    return need_success(run)


def _begun(tools: Tools, step: str, key: object, kind: Kind, mine: Callable[[Run], bool]) -> Run | None:
    """The run that an earlier process began for this step, None where there is none."""
    facts = tools.state.begun(step, key)
    if facts is None:
        return None
    if "id" in facts:
        try:
            run = tools.api.get(kind, facts["id"])
        except ServiceError as error:
            if error.status != 404:
                raise
            return None
        tools.listener.say(f"going on with the {kind} {run.id}")
        return run
    found = new_run(tools.api, kind, {*facts["before"], *tools.state.known}, mine)
    if found is not None:
        tools.listener.say(f"found the {kind} {found.id}, which an interrupted run of this command has started")
    return found
