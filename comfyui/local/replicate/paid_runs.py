"""Runs that cost money stay known: an error on the way to their end says how to go on, and Ctrl-C cancels them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from comfyui.errors import ComfyUIModelError, DownloadError
from comfyui.local.replicate.api import Api, Kind, Run
from comfyui.local.replicate.failures import ServiceError
from comfyui.local.replicate.outputs import GoneError


@contextmanager
def not_lost(run: Run) -> Iterator[None]:
    """Let an error that ends this command, and not the run, say how to go on: another run would cost again."""
    try:
        yield
    except GoneError:
        # Nothing is there any more that could be gone on to.
        raise
    except (ServiceError, DownloadError, OSError) as error:
        error.add_note(f"The run {run.id} is not lost: scripts/replicate status {run.id} --follow goes on.")
        raise


def new_run(api: Api, kind: Kind, before: Collection[str], mine: Callable[[Run], bool]) -> Run | None:
    """The newest of the account's runs that is `mine` and not among the ids `before`; None where there is none."""
    return next((run for run in api.recent(kind) if run.id not in before and mine(run)), None)


def is_of(run: Run, version_id: str | None, workflow: str) -> bool:
    """Whether a prediction is of this version and workflow."""
    return run.version == version_id and run.inputs.get("workflow_json") == workflow


class NewPrediction:
    """A prediction that Ctrl-C cancels, also while its request is under way. Use it as a context manager.

    `say` is told what becomes of it; an error of the cancel is said there, too, and not raised.
    """

    def __init__(self, api: Api, version_id: str, inputs: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self._api = api
        self._version_id = version_id
        self._inputs = inputs
        self._say = say
        self._run: Run | None = None
        self._before: frozenset[str] | None = None

    def __enter__(self) -> Self:
        try:
            self._before = frozenset(run.id for run in self._api.recent("prediction"))
        except ServiceError:
            # It is only for Ctrl-C at one moment: no reason to refuse the prediction.
            self._before = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._cancel()

    def start(self) -> Run:
        """Send the request. Raises ServiceError."""
        self._run = self._api.start_prediction(self._version_id, self._inputs)
        return self._run

    def _cancel(self) -> None:
        run = self._run
        try:
            run = run or self._find()
            if run is None:
                self._say(
                    "No prediction of this command is listed. Should its request have arrived all the same, "
                    "https://replicate.com/predictions shows it."
                )
                return
            self._say(f"Canceling the prediction {run.id}")
            self._api.cancel("prediction", run.id)
        except ComfyUIModelError as error:
            way_out = "Look at https://replicate.com/predictions for what it has started."
            if run is not None:
                way_out = f"The prediction {run.id} may go on; scripts/replicate cancel {run.id} ends it."
            self._say(f"{error} {way_out}")

    def _find(self) -> Run | None:
        """The prediction whose request was answered to nobody, as far as the account's newest runs tell."""
        if self._before is None:
            return None
        workflow = self._inputs["workflow_json"]
        return new_run(self._api, "prediction", self._before, lambda run: is_of(run, self._version_id, workflow))
