"""The order of each command of scripts/replicate and what it says; what the words mean is done elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from comfyui.errors import RequestError
from comfyui.local.paths import typed_path
from comfyui.local.predictions_http import Answer, Endpoint, PredictionsClient
from comfyui.local.replicate.api import Api, Run, check_run_id, model_name
from comfyui.local.replicate.follow import need_success, need_version
from comfyui.local.replicate.models import make_model, wait_for_version
from comfyui.local.replicate.outputs import need_folder, output_urls, save_outputs
from comfyui.local.replicate.paid_runs import NewPrediction, not_lost
from comfyui.local.replicate.push import REGISTRY, checks, need_all, push
from comfyui.local.replicate.runs import (
    as_data_uri,
    find_base,
    need_file,
    prediction_inputs,
    read_workflow,
    stay,
    training_inputs,
)
from comfyui.local.replicate.session import Session
from comfyui.local.replicate.ship import Tools, ship
from comfyui.local.replicate.state import ShipState, only_one, state_path
from comfyui.local.replicate.training_inputs import check_names, judge_links, needed_secrets, sort_inputs
from comfyui.local.replicate.upload import LocalWeight, upload_all
from comfyui.local.replicate.workflow_inputs import read_values
from comfyui.local.terminal import printable_line
from comfyui.local.tokens import read_token
from comfyui.settings import PROJECT_ROOT
from comfyui.weights.folders import TRAINING_INPUTS

LOCAL_WAIT_S = 600.0
"""How long a server of one's own may be busy or still starting."""


def upload_command(session: Session) -> None:
    """`upload`: files to Hugging Face."""
    options, console = session.options, session.console
    weights = [
        LocalWeight(need_file(typed_path(file)), TRAINING_INPUTS[name], name)
        for name, files in options.files.items()
        for file in files
    ]
    uploaded = upload_all(
        weights,
        session.hub(options.repo),
        console.listener,
        private=not options.public,
        allow_pickle=options.allow_pickle,
    )
    files = [
        {"path": one.place, "url": one.url, "size": one.digest.size, "sha256": one.digest.sha256} for one in uploaded
    ]
    console.result([one.url for one in uploaded], {"repo": options.repo, "files": files})


def create_command(session: Session) -> None:
    """`create`: a model."""
    options = session.options
    model, new = make_model(session.api(), model_name(options.model), public=options.public, hardware=options.hardware)
    if not new:
        session.say(f"It is there already, {model.visibility}; nothing was changed. Its settings: {model.url}/settings")
    facts = {"model": f"{model.owner}/{model.name}", "url": model.url, "visibility": model.visibility, "new": new}
    session.console.result([model.url], facts)


def push_command(session: Session) -> None:
    """`push`: checks, then cog push."""
    options = session.options
    owner, name = model_name(options.model)
    found = list(checks(session.settings))
    need_all(found, session.say)
    facts: dict[str, Any] = {"checks": [vars(check) for check in found]}
    api = session.api() if read_token(options.token_file, "REPLICATE_API_TOKEN") else None
    model = api.model(owner, name) if api is not None else None
    if api is not None and model is None:
        raise RequestError(
            f"There is no model {owner}/{name} that this token can see. Make it first: scripts/replicate create "
            f"{owner}/{name}."
        )
    if options.check:
        session.console.result(["A push has all it needs."], facts)
        return
    image = f"{REGISTRY}/{owner}/{name}"
    push(image, options.more, PROJECT_ROOT)
    if api is None or model is None:
        session.console.result([image], {**facts, "image": image})
        return
    version = f"{owner}/{name}:{wait_for_version(api, (owner, name), model.latest_version)}"
    session.console.result([version], {**facts, "image": image, "version": version})


def train_command(session: Session) -> None:
    """`train`: a new version with weights in it."""
    options = session.options
    files, more = sort_inputs(options.files, read_values(options.input))
    more |= {"allow_pickle": True} if options.allow_pickle else {}
    links = judge_links(files, session.settings)
    for notice in links.notices:
        session.say(notice)
    secrets = needed_secrets(session.training_secrets(), links, more.get("existing_lora"), session.settings)
    if options.local:
        endpoint = Endpoint(options.local)
        for name in (name for name, token in secrets.items() if token is not None):
            endpoint.check_secret(name)
        # What it takes, the server itself says.
        _train_local(session, training_inputs(links, _with_images(session, more, as_data_uri), secrets))
        return
    api = session.api()
    owner, name = model_name(options.model)
    base = find_base(api, options.base or options.model)
    # By name first: nothing is uploaded for a training that cannot begin.
    wanted = training_inputs(links, _with_images(session, more, str), secrets)
    check_names(list(wanted), base.version.input_names("training"), f"Trainings of {base.reference}")
    inputs = training_inputs(links, _with_images(session, more, api.upload), secrets)
    run = api.start_training(base.reference, inputs, f"{owner}/{name}")
    if options.no_wait:
        session.console.result([run.id], {"id": run.id, "base": base.reference})
        return
    session.say(f"Ctrl-C leaves the training running; scripts/replicate status {run.id} --follow goes on.")
    _follow_training(session, api, run)


def _follow_training(session: Session, api: Api, run: Run) -> None:
    """Stay until a training has ended, and say what it has made and cost."""
    with not_lost(run):
        run = stay(api, run, session.view)
    session.say(session.cost(run))
    version = need_version(run)
    session.console.result([version], {"id": run.id, "version": version, "seconds": run.seconds})


def _with_images(session: Session, more: Mapping[str, Any], upload: Callable[[Path], str]) -> dict[str, Any]:
    images = session.options.images
    return {**more} if images is None else {**more, "training_images": upload(need_file(images))}


def _train_local(session: Session, inputs: Mapping[str, Any]) -> None:
    need_folder(session.options.out)
    answer = _ask_local(session, inputs)
    weights = output_urls(answer.succeeded())
    saved = [str(path) for url in weights for path in _save(session, url)]
    session.console.result(saved, {"files": saved, "metrics": dict(answer.metrics)})


def _save(session: Session, place: str) -> list[Path]:
    # A train server that shares our disk answers with a path. A data: URI is no path that a system could look up.
    if not place.startswith("data:") and "://" not in place and Path(place).is_file():
        return [Path(place)]
    return save_outputs(place, session.options.out, session.settings)


def predict_command(session: Session) -> None:
    """`predict`: a workflow's files."""
    options = session.options
    workflow = read_workflow(options.workflow or Path(), [*options.overrides, *options.set])
    more = read_values(options.input)
    if options.local:
        inputs, notices = prediction_inputs(workflow, more, options.input_file, as_data_uri)
        for notice in notices:
            session.say(notice)
        need_folder(options.out)
        answer = _ask_local(session, inputs)
        files = save_outputs(answer.succeeded(), options.out, session.settings)
        session.console.result([str(file) for file in files], {"id": answer.id, "files": [str(file) for file in files]})
        return
    api = session.api()
    base = find_base(api, options.model)
    # By name first: nothing is uploaded for a prediction that cannot begin.
    wanted = ["workflow_json", *more, *(["input_file"] if workflow.files or options.input_file else [])]
    check_names(wanted, base.version.input_names("prediction"), f"Predictions of {base.reference}")
    if not options.no_wait:
        need_folder(options.out)
    inputs, notices = prediction_inputs(workflow, more, options.input_file, api.upload)
    for notice in notices:
        session.say(notice)
    with NewPrediction(api, base.version.id, inputs, session.say) as prediction:
        run = prediction.start()
        if options.no_wait:
            session.console.result([run.id], {"id": run.id, "version": base.reference})
            return
        with not_lost(run):
            run = stay(api, run, session.view)
    _deliver(session, run)


def _deliver(session: Session, run: Run) -> None:
    """Save the files of a prediction that has ended."""
    session.say(session.cost(run))
    need_success(run)
    with not_lost(run):
        files = [str(file) for file in save_outputs(run.output, session.options.out, session.settings)]
    session.console.result(files, {"id": run.id, "files": files, "seconds": run.seconds})


def _ask_local(session: Session, inputs: Mapping[str, Any]) -> Answer:
    with PredictionsClient(Endpoint(session.options.local)) as client:
        answer = client.predict(inputs, say=session.say, on_log=session.view.log, wait_s=LOCAL_WAIT_S)
    session.view.close()
    return answer


def status_command(session: Session) -> None:
    """`status`: a run as it is, or until it has ended."""
    api = session.api()
    run = api.find(check_run_id(session.options.run_id))
    if session.options.follow:
        if run.kind == "training":
            _follow_training(session, api, run)
            return
        need_folder(session.options.out)
        with not_lost(run):
            run = stay(api, run, session.view)
        _deliver(session, run)
        return
    facts: dict[str, Any] = {
        "id": run.id,
        "kind": run.kind,
        "status": run.status,
        "seconds": run.seconds,
        "error": run.error,
    }
    facts |= {"version": run.trained_version} if run.kind == "training" else {"output": output_urls(run.output)}
    lines = [f"{run.kind} {run.id}: {run.status}", *run.error.splitlines(), *filter(None, [run.trained_version])]
    if run.kind == "prediction":
        lines += output_urls(run.output)
    session.console.result([*map(printable_line, lines), *([session.cost(run)] if run.seconds else [])], facts)


def cancel_command(session: Session) -> None:
    """`cancel`: the end of a run."""
    api = session.api()
    run = api.find(check_run_id(session.options.run_id))
    if run.ended:
        session.say("It has ended already; there is nothing to cancel.")
    else:
        run = api.cancel(run.kind, run.id)
    line = f"{run.kind} {run.id}: {run.status}"
    session.console.result([line], {"id": run.id, "kind": run.kind, "status": run.status})


def versions_command(session: Session) -> None:
    """`versions`: what a model has."""
    owner, name = model_name(session.options.model)
    found = session.api().versions(owner, name)
    if not found:
        session.say(f"{owner}/{name} has no version yet; push this project: scripts/replicate push {owner}/{name}.")
    lines = [f"{version.id}  {version.created_at[:19]}  cog {version.cog_version}" for version in found]
    listed = [{"id": one.id, "created_at": one.created_at, "cog_version": one.cog_version} for one in found]
    session.console.result(lines, {"model": f"{owner}/{name}", "versions": listed})


def ship_command(session: Session) -> None:
    """`ship`: all of it."""
    options = session.options
    _, name = model_name(options.model)
    path = state_path(options, session.settings)
    api = session.api()
    with only_one(path):
        tools = Tools(
            api=api,
            hub=lambda: session.hub(options.repo or f"/{name}"),
            settings=session.settings,
            listener=session.console.listener,
            view=session.view,
            state=ShipState(path),
            secrets=session.training_secrets(),
        )
        shipped = ship(options, tools)
    session.say(shipped.cost)
    files = [str(file) for file in shipped.files]
    facts = {"version": shipped.version, "files": files, "seconds": shipped.seconds, "cost": shipped.cost}
    session.console.result([shipped.version, *files], facts)


COMMANDS: Mapping[str, Callable[[Session], None]] = {
    "ship": ship_command,
    "upload": upload_command,
    "create": create_command,
    "push": push_command,
    "train": train_command,
    "predict": predict_command,
    "status": status_command,
    "cancel": cancel_command,
    "versions": versions_command,
}
