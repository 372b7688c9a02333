"""Which inputs choose a model file, as the real ComfyUI and a pack of custom nodes have them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from comfyui.engine.engine import Engine
from comfyui.engine.model_folders import ModelFolder, ModelFolders, folders_below, marked_inputs
from comfyui.errors import StorageError
from comfyui.settings import Settings
from tests.engine.lora_stacks import engine_arguments
from tests.weights.samples import files_below

pytestmark = pytest.mark.asyncio(loop_scope="module")
PROBE = "by-link-probe"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    """One ComfyUI with the pack, and a models folder in which nothing is."""
    folder = tmp_path_factory.mktemp("folders")
    settings = replace(
        Settings.from_environ({}),
        models_dir=folder / "models",
        data_dir=folder / "data",
        device="cpu",
        engine_args=engine_arguments(folder),
    )
    engine = Engine(settings, sink=lambda _line: None)
    await engine.ready()
    yield engine
    await engine.stop()


@pytest.fixture
def models_dir(engine: Engine) -> Path:
    return engine._settings.models_dir


async def test_every_input_that_chooses_from_a_model_folder_is_known(engine: Engine, models_dir: Path) -> None:
    found = await ModelFolders(engine, models_dir, PROBE).inputs()

    def folder(class_type: str, name: str) -> str | None:
        known = found.folder(class_type, name)
        return known.path if known else None

    expected = {
        ("CheckpointLoaderSimple", "ckpt_name"): "checkpoints",
        ("LoraLoader", "lora_name"): "loras",
        ("VAELoader", "vae_name"): "vae",
        ("UNETLoader", "unet_name"): "diffusion_models",
        ("DualCLIPLoader", "clip_name2"): "text_encoders",
        ("ControlNetLoader", "control_net_name"): "controlnet",
        ("UpscaleModelLoader", "model_name"): "upscale_models",
        ("TrainLoraNode", "existing_lora"): "loras",
        ("ListStack", "lora_1"): "loras",
        ("ListStack", "lora_2"): "loras",
        ("DynamicStack", "mode.lora_name"): "loras",
        ("OtherFolders", "deep"): "pack/deep",
        ("OtherFolders", "gguf"): "unet",
        ("OtherFolders", "both"): "checkpoints",
        ("OtherFolders", "far"): None,
        ("ListStack", "note"): None,
        ("ListStack", "mode"): None,
        ("KSampler", "sampler_name"): None,
        ("CLIPLoader", "type"): None,
        ("LoadImage", "image"): None,
    }
    assert {where: folder(*where) for where in expected} == expected
    assert found.folders["gguf_models"].extensions == {".gguf"}
    assert ".safetensors" in found.folders["loras"].extensions
    assert found.folders["deep_loras"].extensions == frozenset()
    assert not {"diffusers", "classifiers", "custom_nodes", "datasets", "far_loras"} & found.folders.keys()


async def test_no_marker_stays(engine: Engine, models_dir: Path) -> None:
    await ModelFolders(engine, models_dir, PROBE).inputs()
    assert files_below(models_dir) == []
    assert list(models_dir.glob(f"**/{PROBE}*")) == []
    assert PROBE not in json.dumps(await engine.object_info(fresh=True))


async def test_a_cancelled_prediction_leaves_no_marker(engine: Engine, models_dir: Path) -> None:
    marked, loop = asyncio.Event(), asyncio.get_running_loop()

    class Telling(ModelFolders):
        def _mark(self, folders: Sequence[ModelFolder], probe: str) -> dict[str, ModelFolder]:
            markers = super()._mark(folders, probe)
            loop.call_soon_threadsafe(marked.set)
            return markers

    folders = Telling(engine, models_dir, PROBE)
    first = asyncio.ensure_future(folders.inputs())
    await asyncio.wait_for(marked.wait(), 20)
    assert files_below(models_dir)
    second = asyncio.ensure_future(folders.inputs())
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await second).folder("LoraLoader", "lora_name")
    assert files_below(models_dir) == []


async def test_a_models_folder_that_takes_no_files_is_named(engine: Engine, models_dir: Path) -> None:
    in_the_way = models_dir / "pack"
    in_the_way.rename(models_dir / "kept")
    in_the_way.write_bytes(b"")
    try:
        with pytest.raises(StorageError, match=r"The model folder .*/pack/deep takes no files \(Not a directory\)"):
            await ModelFolders(engine, models_dir, PROBE).inputs()
    finally:
        in_the_way.unlink()
        (models_dir / "kept").rename(in_the_way)
    assert files_below(models_dir) == []


async def test_markers_of_killed_processes_are_swept_and_those_of_others_stay(engine: Engine, models_dir: Path) -> None:
    dead = models_dir / "loras" / f"{PROBE}-999999999-{'0' * 32}" / "1.safetensors"
    alive = models_dir / "loras" / f"{PROBE}-{os.getppid()}-{'0' * 32}" / "1.safetensors"
    for marker in (dead, alive):
        marker.parent.mkdir(parents=True)
        marker.touch()
    await ModelFolders(engine, models_dir, PROBE).inputs()
    assert (dead.parent.exists(), alive.exists()) == (False, True)
    alive.unlink()
    alive.parent.rmdir()


async def test_it_is_asked_once_for_each_comfyui(engine: Engine, models_dir: Path) -> None:
    folders = ModelFolders(engine, models_dir, PROBE)
    first, again = await asyncio.gather(folders.inputs(), folders.inputs())
    assert first is again
    assert await folders.inputs() is first
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    restarted = await folders.inputs()
    assert restarted is not first
    assert restarted == first


async def test_folders_are_those_below_the_models_folder() -> None:
    def entry(name: str, *folders: str, extensions: tuple[str, ...] = (".safetensors",)) -> dict[str, object]:
        return {"name": name, "folders": list(folders), "extensions": list(extensions)}

    answer = [
        entry("loras", "/data/output/loras", "/m/loras"),
        entry("diffusion_models", "/m/unet", "/m/diffusion_models"),
        entry("ipadapter", "/m/ip-a", "/m/ip-b", extensions=(".BIN", ".SafeTensors")),
        entry("any", "/m/any", extensions=()),
        entry("elsewhere", "/models/x"),
        entry("all", "/m"),
        entry("diffusers", "/m/diffusers", extensions=("folder",)),
    ]
    assert folders_below(Path("/m"), answer) == [
        ModelFolder("loras", "loras", frozenset({".safetensors"})),
        ModelFolder("diffusion_models", "diffusion_models", frozenset({".safetensors"})),
        ModelFolder("ipadapter", "ip-a", frozenset({".bin", ".safetensors"})),
        ModelFolder("any", "any"),
    ]


async def test_inputs_inside_dynamic_ones() -> None:
    """Shapes of comfy_api/latest/_io.py 0.30.0: DynamicCombo, Autogrow with a prefix and with names."""
    loras = ["COMBO", {"options": ["m.safetensors"]}]
    grow = {"input": {"required": {"one": loras}}}
    info = {
        "Nested": {
            "input": {
                "required": {
                    "mode": [
                        "COMFY_DYNAMICCOMBO_V3",
                        {
                            "options": [
                                {"key": "a", "inputs": {"optional": {"lora": loras}}},
                                {"key": "b", "inputs": {"required": {"inner": ["COMFY_AUTOGROW_V3", {}]}}},
                            ]
                        },
                    ],
                    "rows": ["COMFY_AUTOGROW_V3", {"template": {**grow, "prefix": "lora", "min": 0, "max": 2}}],
                    "named": ["COMFY_AUTOGROW_V3", {"template": {**grow, "names": ["x", "y"], "min": 1}}],
                }
            }
        },
        "Odd": {"input": {"required": {"a": None, "b": [], "c": ["COMBO"], "d": [[1, {"x": 2}], {}]}}},
        "Odder": {"input": {"required": None}},
        "None": None,
    }
    folder = ModelFolder("loras", "loras")
    assert marked_inputs(info, {"m.safetensors": folder}) == {
        "Nested": dict.fromkeys(["mode.lora", "rows.lora0", "rows.lora1", "named.x", "named.y"], folder)
    }
