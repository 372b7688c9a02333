"""Stands in for Replicate's HTTP API as the official Python client 1.0.7 asks it, and for nothing else of it.

What it speaks, learned from that client's source (model.py, version.py, training.py, prediction.py, file.py,
hardware.py, account.py) and from https://replicate.com/docs/reference/http:

- GET /v1/account, /v1/hardware; POST /v1/models (422 for an invalid SKU, 409 for a name that is taken); GET
  /v1/models/O/N, …/versions, …/versions/ID; POST …/versions/ID/trainings; GET and POST (cancel) /v1/trainings/ID, the
  same of /v1/predictions; POST /v1/predictions; POST /v1/files (multipart).
- Errors are problem documents: {"title", "detail", "status"}; 401 without the right token, 404 for what is not there.
- A run goes on by one stage each time it is asked about: starting, processing (with a longer log each time), ended. The
  statuses are those of https://replicate.com/docs/topics/predictions/lifecycle, of which the client lacks `aborted`.
- A prediction whose data was removed, as Replicate does after an hour, has neither inputs nor output nor log any more
  (https://replicate.com/docs/topics/predictions/data-retention).

A training with none of the lists ends as a person meets it (`No files were downloaded`), and so does one whose link is
a web page. The words of refusals are ours where Replicate does not document its own.
"""

from __future__ import annotations

import ast
import email.parser
import email.policy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfyui.settings import PROJECT_ROOT
from comfyui.weights.folders import TRAINING_INPUTS
from tests.local.api_server import ApiServer, Request
from tests.weights.storage_standin import Answer, StorageStandin

GOOD = "r8_SECRET_good"
HARDWARE = {
    "cpu": "CPU",
    "gpu-t4": "Nvidia T4 GPU",
    "gpu-l40s": "Nvidia L40S GPU",
    "gpu-a100-large": "Nvidia A100 (80GB) GPU",
}
CREATED = "2026-03-01T10:00:00.000000Z"
PICTURE = b"RIFF\x10\x00\x00\x00WEBPVP8 a picture"


@dataclass
class StandinRun:
    """A training or a prediction: what it will say, stage by stage, and how far it is."""

    id: str
    kind: str
    model: str
    version: str
    inputs: Mapping[str, Any]
    destination: str = ""
    stages: list[tuple[str, str]] = field(default_factory=list)
    at: int = 0
    output: Any = None
    error: str | None = None
    seconds: float = 10.0
    data_removed: bool = False

    @property
    def status(self) -> str:
        return self.stages[self.at][0]


class ReplicateStandin(ApiServer):
    """The API; its files of outputs lie on `delivery`, another origin. `models` has version ids, oldest first."""

    def __init__(self, delivery: StorageStandin) -> None:
        super().__init__()
        self.models: dict[str, list[str]] = {}
        self.hardware_of: dict[str, str] = {}
        self.runs: dict[str, StandinRun] = {}
        self.files: dict[str, bytes] = {}
        self.training_seconds = 912.5
        self.training_stages = [
            ("starting", ""),
            ("processing", "baking 2 files, 1.2 GB\n"),
            ("processing", "baking: 600.0 MB (50 %), 90.0 MB/s\n"),
            ("succeeded", "baking took 13.0 s (90.0 MB/s)\n"),
        ]
        self.prediction_stages = [
            ("starting", ""),
            ("processing", " 12%|█▏        | 1/8 Sampler\n"),
            ("processing", " 50%|█████     | 4/8 Sampler, step 9 of 20\n"),
            ("succeeded", "100%|██████████| 8/8 done\n"),
        ]
        self.outputs = [delivery.put("/xezq/abc/out-0.webp", PICTURE)]
        self.as_objects = False
        self.names_no_version = False
        self.pushed: Path | None = None
        """A file to which a stand-in of cog adds a line r8.im/OWNER/NAME for each push; a version of it follows."""
        self._arriving: list[str] = []
        self._delivery = delivery

    def add_model(self, name: str, *versions: str) -> None:
        self.models[name] = list(versions)

    def answer(self, request: Request) -> Answer:
        if request.headers.get("Authorization") != f"Bearer {GOOD}":
            return problem(401, "You did not pass a valid authentication token", "Unauthenticated")
        parts = request.path.removeprefix("/v1/").split("/")
        given = self._json(request)
        match request.method, parts:
            case "GET", ["account"]:
                return reply({"type": "user", "username": "me", "name": "Me", "github_url": None})
            case "GET", ["hardware"]:
                return reply([{"sku": sku, "name": name} for sku, name in HARDWARE.items()])
            case "POST", ["models"]:
                return self._create_model(given)
            case "GET", ["models", owner, name] if f"{owner}/{name}" in self.models:
                return reply(self._model(f"{owner}/{name}"))
            case "GET", ["models", owner, name, "versions"] if f"{owner}/{name}" in self.models:
                listed = [version(one) for one in reversed(self.models[f"{owner}/{name}"])]
                return reply({"previous": None, "next": None, "results": listed})
            case "GET", ["models", owner, name, "versions", wanted] if wanted in self.models.get(f"{owner}/{name}", ()):
                return reply(version(wanted))
            case "POST", ["models", owner, name, "versions", wanted, "trainings"]:
                return self._train(f"{owner}/{name}", wanted, given)
            case "POST", ["predictions"]:
                return self._predict(given)
            case "POST", ["files"]:
                return self._take_file(request)
            case "GET", ["trainings" | "predictions" as kind]:
                newest = [self._run(run) for run in reversed(self.runs.values()) if run.kind == kind[:-1]]
                return reply({"previous": None, "next": None, "results": newest})
            case "GET", ["trainings" | "predictions" as kind, run_id] if self._is(kind, run_id):
                run = self.runs[run_id]
                run.at = min(run.at + 1, len(run.stages) - 1)
                self._end(run)
                return reply(self._run(run))
            case "POST", ["trainings" | "predictions" as kind, run_id, "cancel"] if self._is(kind, run_id):
                run = self.runs[run_id]
                run.stages = [*run.stages[: run.at + 1], ("canceled", "")]
                run.at += 1
                return reply(self._run(run))
        return problem(404, "The requested resource could not be found.", "Not found")

    def _json(self, request: Request) -> Any:
        return json.loads(request.body) if request.headers.get("Content-Type") == "application/json" else {}

    def _is(self, kind: str, run_id: str) -> bool:
        return run_id in self.runs and self.runs[run_id].kind == kind[:-1]

    def _create_model(self, given: Mapping[str, Any]) -> Answer:
        name = f"{given['owner']}/{given['name']}"
        if name in self.models:
            return problem(409, "A model with that name and owner already exists")
        if given["hardware"] not in HARDWARE:
            return problem(422, "- hardware: invalid SKU\n", "Input validation failed")
        assert given["visibility"] in ("private", "public")
        self.add_model(name)
        self.hardware_of[name] = given["hardware"]
        return reply(self._model(name, given["visibility"]), 201)

    def _model(self, name: str, visibility: str = "private") -> dict[str, Any]:
        versions = self.models[name]
        # A version shows up a moment after its push: here, when the model is asked for the second time.
        versions += [hashlib.sha256(image.encode()).hexdigest() for image in self._arriving if image == f"r8.im/{name}"]
        self._arriving = []
        if self.pushed is not None and self.pushed.is_file():
            self._arriving = self.pushed.read_text().splitlines()
            self.pushed.unlink()
        return {
            "url": f"https://replicate.com/{name}",
            **dict(zip(("owner", "name"), name.split("/"), strict=True)),
            **dict.fromkeys(("description", "github_url", "paper_url", "license_url", "cover_image_url")),
            "visibility": visibility,
            "run_count": 0,
            "default_example": None,
            "latest_version": version(versions[-1]) if versions else None,
        }

    def _train(self, name: str, wanted: str, given: Mapping[str, Any]) -> Answer:
        if wanted not in self.models.get(name, ()):
            return problem(
                404, "The specified version does not exist (or perhaps you don't have permission to use it?)"
            )
        if given["destination"] not in self.models:
            return problem(404, "The specified training destination does not exist")
        shown = {key: value for key, value in given["input"].items() if "token" not in key}
        run = self._new("training", name, wanted, shown, self.training_stages)
        run.destination, run.seconds = given["destination"], self.training_seconds
        links = "\n".join(given["input"].get(key, "") for key in TRAINING_INPUTS)
        if not links.strip() and "training_images" not in given["input"]:
            run.error = "No files were downloaded"
        elif "/blob/" in links:
            run.error = "What was downloaded is a web page"
        return reply(self._run(run), 201)

    def _predict(self, given: Mapping[str, Any]) -> Answer:
        owner = next((name for name, ids in self.models.items() if given["version"] in ids), None)
        if owner is None:
            return problem(
                422, "The specified version does not exist (or perhaps you don't have permission to use it?)"
            )
        run = self._new("prediction", owner, given["version"], given["input"], self.prediction_stages)
        if not isinstance(json.loads(given["input"]["workflow_json"]), dict):
            run.error = "workflow_json is not valid"
        return reply(self._run(run), 201)

    def _new(
        self, kind: str, model: str, version_id: str, inputs: Mapping[str, Any], stages: list[tuple[str, str]]
    ) -> StandinRun:
        run = StandinRun(f"{kind[:5]}{len(self.runs):04}", kind, model, version_id, inputs, stages=list(stages))
        self.runs[run.id] = run
        return run

    def _end(self, run: StandinRun) -> None:
        if run.status == "succeeded" and run.error:
            run.stages[run.at] = ("failed", run.stages[run.at][1])
        if run.status != "succeeded" or run.output is not None:
            return
        if run.kind == "prediction":
            run.output = [{"url": url} for url in self.outputs] if self.as_objects else self.outputs
            return
        if self.names_no_version:
            run.output = {"weights": f"{self._delivery.url}/weights.tar"}
            return
        made = hashlib.sha256(run.id.encode()).hexdigest()
        self.models[run.destination].append(made)
        run.output = {"version": f"{run.destination}:{made}", "weights": f"{self._delivery.url}/weights.tar"}

    def _run(self, run: StandinRun) -> dict[str, Any]:
        ended = run.status in ("succeeded", "failed", "canceled", "aborted")
        kept = not run.data_removed
        return {
            "id": run.id,
            "model": run.model,
            "version": run.version,
            "status": run.status,
            "input": dict(run.inputs) if kept else {},
            "output": run.output if kept else None,
            "logs": "".join(log for _, log in run.stages[: run.at + 1]) if kept else None,
            "data_removed": run.data_removed,
            "error": run.error if run.status == "failed" else None,
            "metrics": {"predict_time": run.seconds} if ended else {},
            "created_at": CREATED,
            "started_at": CREATED if run.at else None,
            "completed_at": "2026-03-01T10:15:12.500000Z" if ended else None,
            "source": "api",
            "urls": {
                "get": f"{self.url}/v1/{run.kind}s/{run.id}",
                "cancel": f"{self.url}/v1/{run.kind}s/{run.id}/cancel",
            },
        }

    def _take_file(self, request: Request) -> Answer:
        head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + request.body)
        (part,) = [
            part for part in message.iter_parts() if part.get_param("name", header="content-disposition") == "content"
        ]
        body = part.get_payload(decode=True)
        assert isinstance(body, bytes)
        file_id = f"file{len(self.files):04}"
        self.files[file_id] = body
        return reply(
            {
                "id": file_id,
                "name": part.get_filename() or "",
                "content_type": part.get_content_type(),
                "size": len(body),
                "etag": file_id,
                "checksums": {"sha256": hashlib.sha256(body).hexdigest()},
                "metadata": {},
                "created_at": CREATED,
                "expires_at": CREATED,
                "urls": {"get": f"{self.url}/v1/files/{file_id}"},
            },
            201,
        )


def version(version_id: str) -> dict[str, Any]:
    """A version that was made of this project, with the inputs that its train.py and predict.py have."""
    schemas: dict[str, Any] = {
        "Input": {"properties": {name: {} for name in arguments_of("predict.py", "run")}},
        "TrainingInput": {"properties": {name: {} for name in arguments_of("train.py", "train")}},
    }
    return {
        "id": version_id,
        "created_at": CREATED,
        "cog_version": "0.23.1",
        "openapi_schema": {"components": {"schemas": schemas}},
    }


def arguments_of(file: str, function: str) -> list[str]:
    """The arguments of a function in a file of this project, as `cog build` reads them: from its text."""
    tree = ast.parse((PROJECT_ROOT / file).read_text("utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    found = next(node for node in functions if node.name == function)
    return [argument.arg for argument in found.args.args if argument.arg != "self"]


def reply(document: Any, status: int = 200) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, json.dumps(document).encode())


def problem(status: int, detail: str, title: str = "") -> Answer:
    document = {"title": title, "detail": detail, "status": status}
    return Answer(status, {"Content-Type": "application/problem+json"}, json.dumps(document).encode())


def throttled(seconds: int) -> Answer:
    """429 as the API gives it: the wait in the body, too."""
    body = {
        "detail": f"Request was throttled. Your rate limit resets in ~{seconds}s.",
        "status": 429,
        "retry_after": seconds,
    }
    return Answer(429, {"Retry-After": str(seconds), "Content-Type": "application/json"}, json.dumps(body).encode())
