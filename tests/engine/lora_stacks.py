"""A pack of custom nodes as people write them: LoRA stacks with lists, with rows, with inputs that come and go."""

from __future__ import annotations

from pathlib import Path

PACK = '''
import os

import folder_paths
import nodes
from comfy_api.latest import ComfyExtension, io

folder_paths.add_model_folder_path("deep_loras", os.path.join(folder_paths.models_dir, "pack", "deep"))
folder_paths.folder_names_and_paths["far_loras"] = (["/nowhere/loras"], {".safetensors"})
folder_paths.folder_names_and_paths["gguf_models"] = ([os.path.join(folder_paths.models_dir, "unet")], {".gguf"})


class AnyInput(dict):
    def __contains__(self, name):
        return True

    def __getitem__(self, name):
        return ("*",)


def apply(model, names):
    for name in names:
        if name != "None":
            model = nodes.LoraLoaderModelOnly().load_lora_model_only(model, name, 1.0)[0]
    return (model,)


class ListStack:
    """Two LoRAs from lists; the name of a third from a text."""

    @classmethod
    def INPUT_TYPES(cls):
        loras = ["None", *folder_paths.get_filename_list("loras")]
        return {
            "required": {"model": ("MODEL",), "lora_1": (loras,), "lora_2": (loras, {"default": "None"})},
            "optional": {"note": ("STRING", {}), "mode": (["fast", "https://example.com/slow.safetensors"],)},
        }

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "run"
    CATEGORY = "pack"

    def run(self, model, lora_1, lora_2, note="", mode="fast"):
        return apply(model, [lora_1, lora_2])


class RowStack:
    """As many rows as the browser sends, none of which is declared."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}, "optional": AnyInput()}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "run"
    CATEGORY = "pack"

    def run(self, model, **rows):
        return apply(model, [row["lora"] for row in rows.values() if row["on"]])


class OtherFolders:
    @classmethod
    def INPUT_TYPES(cls):
        names = folder_paths.get_filename_list
        return {
            "required": {
                "deep": (names("deep_loras"),),
                "far": (names("far_loras"),),
                "gguf": (names("gguf_models"),),
                "both": (names("checkpoints") + names("loras"),),
            }
        }

    RETURN_TYPES = ()
    FUNCTION = "run"
    CATEGORY = "pack"


class DynamicStack(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        loras = folder_paths.get_filename_list("loras")
        return io.Schema(
            node_id="DynamicStack",
            category="pack",
            inputs=[
                io.Model.Input("model"),
                io.DynamicCombo.Input(
                    "mode",
                    options=[
                        io.DynamicCombo.Option("none", []),
                        io.DynamicCombo.Option("one", [io.Combo.Input("lora_name", options=loras)]),
                    ],
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, mode):
        return io.NodeOutput(*apply(model, [mode["lora_name"]] if mode["mode"] == "one" else []))


NODE_CLASS_MAPPINGS = {
    "ListStack": ListStack,
    "RowStack": RowStack,
    "OtherFolders": OtherFolders,
    "DynamicStack": DynamicStack,
}
'''


def engine_arguments(folder: Path) -> tuple[str, ...]:
    """Arguments for ComfyUI to load the pack, which is written below `folder`."""
    pack = folder / "custom_nodes" / "lora_stacks"
    pack.mkdir(parents=True)
    (pack / "__init__.py").write_text(PACK)
    config = folder / "paths.yaml"
    config.write_text(f"tests:\n  custom_nodes: {pack.parent}\n")
    return ("--extra-model-paths-config", str(config))
