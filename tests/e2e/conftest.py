"""The product as its users meet it: Cog's real servers, real ComfyUI, real tars over real HTTP, on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from comfyui.deadline import Deadline
from comfyui.local.cog_server import CogServer
from comfyui.local.file_server import serve_files
from comfyui.settings import PROJECT_ROOT
from tests.parts import SD3, SD15, TEST_MODELS, demo_files

READY_S = 120.0
CALL_S = 120.0


@dataclass
class Served:
    """A Cog server that is ready, and every line it printed."""

    server: CogServer
    lines: list[str] = field(default_factory=list)

    def call(self, **inputs: Any) -> dict[str, Any]:
        return self.server.call(inputs, timeout_s=CALL_S)

    @property
    def data_dir(self) -> Path:
        """Where it keeps its runs and outputs."""
        return Path(psutil.Process(self.server.pid).environ()["DATA_DIR"])

    def error_of(self, **inputs: Any) -> str:
        """The error of a call that must fail."""
        answer = self.call(**inputs)
        assert answer["status"] == "failed", answer
        error: str = answer["error"]
        assert "Traceback" not in error
        return error

    def output_of(self, **inputs: Any) -> Any:
        """The output of a call that must succeed."""
        answer = self.call(**inputs)
        assert answer["status"] == "succeeded", answer
        return answer["output"]


@pytest.fixture(scope="session")
def weight_urls() -> Iterator[dict[str, str]]:
    """URLs of the demo weights, by their place in a models folder."""
    with serve_files(demo_files(*SD15, *SD3)) as urls:
        yield urls


@pytest.fixture(scope="session")
def train_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Cog's train server, as `cog train` and Replicate run it."""
    folder = tmp_path_factory.mktemp("train")
    lines: list[str] = []
    environ = {
        "ALLOW_PRIVATE_URLS": "1",
        "WEIGHTS_OUT": str(folder / "weights.tar"),
        "DATA_DIR": str(folder / "data"),
    }
    with CogServer("train", environ=environ, sink=lines.append) as server:
        server.wait_ready(Deadline(READY_S, "The train server's setup"))
        yield Served(server, lines)


@pytest.fixture(scope="session")
def baked_tar(
    train_server: Served, weight_urls: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A tar of the demo weights, baked by the train server, and that training's answer."""
    answer = train_server.call(
        checkpoints="\n".join(url for path, url in weight_urls.items() if path.startswith("checkpoints/")),
        loras="\n".join(url for path, url in weight_urls.items() if path.startswith("loras/")),
    )
    assert answer["status"] == "succeeded", answer
    # Each training of this server writes to the same WEIGHTS_OUT.
    kept = tmp_path_factory.mktemp("baked") / "weights.tar"
    return Path(answer["output"]["weights"]).rename(kept), answer


@pytest.fixture(scope="session")
def predictor(baked_tar: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Cog's predict server with those weights restored from a URL, as on Replicate."""
    folder = tmp_path_factory.mktemp("predict")
    lines: list[str] = []
    with serve_files({"weights.tar": baked_tar[0]}) as urls:
        environ = {
            "ALLOW_PRIVATE_URLS": "1",
            "COG_WEIGHTS": urls["weights.tar"],
            "MODELS_DIR": str(folder / "models"),
            "DATA_DIR": str(folder / "data"),
        }
        with CogServer("predict", environ=environ, sink=lines.append) as server:
            server.wait_ready(Deadline(READY_S, "The predictor's setup"))
            yield Served(server, lines)


@pytest.fixture(scope="session")
def busy_predictor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Cog's predict server with two predictions in flight, and a ComfyUI that has the custom nodes of the tests."""
    folder = tmp_path_factory.mktemp("busy")
    demo_files(*SD3)
    custom_nodes = {"base_path": str(PROJECT_ROOT / "tests"), "custom_nodes": "custom_nodes"}
    (folder / "paths.yaml").write_text(json.dumps({"tests": custom_nodes}))
    lines: list[str] = []
    environ = {
        "ALLOW_PRIVATE_URLS": "1",
        "MODELS_DIR": str(TEST_MODELS),
        "DATA_DIR": str(folder / "data"),
        "COMFYUI_ARGS": f"--extra-model-paths-config {folder / 'paths.yaml'}",
        "COG_MAX_CONCURRENCY": "2",
    }
    with CogServer("predict", environ=environ, sink=lines.append) as server:
        server.wait_ready(Deadline(READY_S, "The predictor's setup"))
        yield Served(server, lines)
