"""Replicate through its official client, in values of our own: what a run is, what a version takes, what hardware is.

Here is all that knows the client's classes. Every method raises ServiceError.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from replicate.client import Client
from replicate.prediction import Prediction
from replicate.training import Training
from replicate.version import Version as ClientVersion
from replicate.version import Versions

from comfyui.errors import RequestError
from comfyui.local.replicate.environ import Service
from comfyui.local.replicate.failures import ServiceError
from comfyui.local.replicate.transport import PatientTransport

MAX_UPLOAD_BYTES = 100 * 1024**2
"""The largest file that Replicate's files API takes (https://replicate.com/docs/topics/predictions/input-files)."""
_NAME = re.compile(r"(?P<owner>[\w-]+)/(?P<name>[\w-][\w.-]*)(?::(?P<version>[0-9A-Za-z]+))?", re.ASCII)
_RUN_ID = re.compile(r"[\w-]+", re.ASCII)
ENDED = frozenset({"succeeded", "failed", "canceled"})

Kind = Literal["training", "prediction"]


@dataclass(frozen=True)
class Run:
    """A training or a prediction as it was when it was last asked about. `seconds` is its run time, once known."""

    kind: Kind
    id: str
    status: str
    version: str = ""
    logs: str = ""
    error: str = ""
    output: Any = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def ended(self) -> bool:
        """Whether it will not change any more."""
        return self.status in ENDED

    @property
    def trained_version(self) -> str | None:
        """The version that a training made, as owner/name:id; None while there is none."""
        version = self.output.get("version") if isinstance(self.output, Mapping) else None
        return version if isinstance(version, str) and _NAME.fullmatch(version) else None


@dataclass(frozen=True)
class Version:
    """A version of a model, and its OpenAPI schema, which says what it takes."""

    id: str
    created_at: str
    cog_version: str
    schema: Mapping[str, Any] = field(repr=False)

    def input_names(self, kind: Kind) -> list[str] | None:
        """The inputs of its trainings or predictions; None where it has no such thing."""
        schema: Any = self.schema
        for key in ("components", "schemas", "TrainingInput" if kind == "training" else "Input", "properties"):
            schema = schema.get(key) if isinstance(schema, Mapping) else None
        return list(schema) if isinstance(schema, Mapping) else None


@dataclass(frozen=True)
class Model:
    """A model as far as it matters here. The API does not tell its hardware."""

    owner: str
    name: str
    visibility: str
    url: str
    latest_version: str | None


class Api:
    """Replicate's API with a person's token; `say` is told when it has to wait. Use it as a context manager."""

    def __init__(self, token: str, service: Service, say: Callable[[str], None]) -> None:
        self.poll_interval_s = service.poll_interval_s
        self._transport = PatientTransport(service.base_url, say, first_wait_s=service.poll_interval_s)
        self._client = Client(api_token=token, base_url=service.base_url, transport=self._transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._transport.close()

    def account(self) -> str:
        """The name of the account that the token is of."""
        with _understood():
            return str(self._client.accounts.current().username)

    def hardware(self) -> list[tuple[str, str]]:
        """What a model may run on: SKU and name."""
        with _understood():
            return [(found.sku, found.name) for found in self._client.hardware.list()]

    def create_model(self, owner: str, name: str, *, visibility: Literal["public", "private"], hardware: str) -> Model:
        """Make a model that has no versions yet."""
        with _understood():
            return _model(self._client.models.create(owner, name, visibility=visibility, hardware=hardware))

    def model(self, owner: str, name: str) -> Model | None:
        """A model, None where this token sees none of that name."""
        try:
            with _understood():
                return _model(self._client.models.get(owner, name))
        except ServiceError as error:
            if error.status == 404:
                return None
            raise

    def versions(self, owner: str, name: str) -> list[Version]:
        """The versions of a model, newest first."""
        with _understood():
            return [_version(found) for found in self._versions(owner, name).list()]

    def version(self, owner: str, name: str, version_id: str) -> Version:
        """One version of a model."""
        with _understood():
            return _version(self._versions(owner, name).get(version_id))

    def _versions(self, owner: str, name: str) -> Any:
        return Versions(self._client, (owner, name))

    def start_training(self, base: str, inputs: Mapping[str, Any], destination: str) -> Run:
        """Start a training of the version `base` (owner/name:id) that becomes a version of `destination`."""
        with _understood("training"):
            return _run(self._client.trainings.create(version=base, input=dict(inputs), destination=destination))

    def start_prediction(self, version_id: str, inputs: Mapping[str, Any]) -> Run:
        """Start a prediction and come back at once: nobody waits in this request, so nothing can give up in it."""
        with _understood("prediction"):
            return _run(self._client.predictions.create(version=version_id, input=dict(inputs)))

    def get(self, kind: Kind, run_id: str) -> Run:
        """A run as it is now."""
        with _understood():
            return _run(self._of(kind).get(run_id))

    def recent(self, kind: Kind) -> list[Run]:
        """The newest runs of the account, newest first: the API's first page."""
        with _understood():
            return [_run(found) for found in self._of(kind).list()]

    def cancel(self, kind: Kind, run_id: str) -> Run:
        """Ask for the end of a run; one that has ended stays as it is."""
        with _understood():
            return _run(self._of(kind).cancel(run_id))

    def find(self, run_id: str) -> Run:
        """A run of either kind, for an id does not tell. Raises ServiceError with status 404 where there is none."""
        try:
            return self.get("training", run_id)
        except ServiceError as error:
            if error.status != 404:
                raise
        return self.get("prediction", run_id)

    def upload(self, path: Path) -> str:
        """Put a file where this account's runs can read it; returns the URL for an input.

        Raises RequestError for a file that is larger than Replicate takes.
        """
        size = path.stat().st_size
        if size > MAX_UPLOAD_BYTES:
            raise RequestError(
                f"{path} has {size} bytes, and Replicate takes files of up to {MAX_UPLOAD_BYTES}. Put it where it has "
                "a link, for example on Hugging Face, and give the link instead."
            )
        with _understood():
            return str(self._client.files.create(path).urls["get"])

    def _of(self, kind: Kind) -> Any:
        return self._client.trainings if kind == "training" else self._client.predictions


@contextmanager
def _understood(started: Kind | None = None) -> Iterator[None]:
    """Makes a ServiceError of the many things the client raises where an answer is not what it knows.

    `started` is what the request would start, for money: it may have done so all the same.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # pydantic's and json's errors are ValueErrors. Their text quotes the answer, of any length.
        way_out = "Try again later; if it stays so, the client is too old for the API."
        if started is not None:
            page = f"https://replicate.com/{started}s"
            way_out = f"The {started} may run all the same: look at {page} before you start another."
        raise ServiceError(
            f"Replicate gave an answer that its official client does not understand ({type(error).__name__}). "
            f"{way_out}",
            service="Replicate",
        ) from error


def _model(found: Any) -> Model:
    latest = found.latest_version.id if found.latest_version else None
    return Model(found.owner, found.name, found.visibility, found.url, latest)


def _version(found: ClientVersion) -> Version:
    return Version(found.id, found.created_at.isoformat(), found.cog_version, found.openapi_schema)


def _run(found: Training | Prediction) -> Run:
    version = found.version.id if isinstance(found.version, ClientVersion) else found.version
    if not _RUN_ID.fullmatch(found.id):
        raise ValueError("an id with other characters than letters and digits")
    return Run(
        kind="training" if isinstance(found, Training) else "prediction",
        id=found.id,
        status=found.status,
        version=version,
        logs=found.logs or "",
        error=str(found.error or ""),
        output=found.output,
        inputs=found.input or {},
        seconds=_seconds(found),
    )


def _seconds(found: Training | Prediction) -> float | None:
    """The run time that is billed: what the API measured, or the time between its two stamps."""
    measured = (getattr(found, "metrics", None) or {}).get("predict_time")
    if isinstance(measured, int | float) and math.isfinite(measured):
        return float(measured)
    if not found.started_at or not found.completed_at:
        return None
    return (_time(found.completed_at) - _time(found.started_at)).total_seconds()


def _time(stamp: str) -> datetime:
    return datetime.fromisoformat(stamp)


def split_name(text: str) -> tuple[str, str, str | None]:
    """Owner, name and version id of owner/name or owner/name:id. Raises RequestError for anything else."""
    found = _NAME.fullmatch(text)
    if found is None:
        raise RequestError(
            f"{text!r} does not name a model; write owner/name, or owner/name:id for one of its versions."
        )
    return found["owner"], found["name"], found["version"]


def model_name(text: str) -> tuple[str, str]:
    """Owner and name of owner/name. Raises RequestError for anything else, a version among it."""
    owner, name, version = split_name(text)
    if version is not None:
        raise RequestError(f"{text!r} names a version, and this takes a model: {owner}/{name}.")
    return owner, name


def check_run_id(run_id: str) -> str:
    """The id of a run, which becomes part of URLs and of commands that people copy. Raises RequestError."""
    if not _RUN_ID.fullmatch(run_id):
        raise RequestError(f"{run_id!r} is not the id of a training or prediction; it has letters and digits alone.")
    return run_id
