"""What ComfyUI 0.30.0 answers to bad workflows, and a little of what it says of its nodes.

Taken on 20 November of the test machine's calendar from a running one (`main.py --cpu`, models folder with three
checkpoints, thirteen LoRAs and no ControlNet), by posting WORKFLOW with the change named at each answer. Shortened:
tracebacks, tooltips and the other nodes are left out; what is left is as it came. The envelope is `refused`.
"""

from __future__ import annotations

import copy
from typing import Any

CHECKPOINTS = ["cut.safetensors", "sd_xl_base_1.0.safetensors", "v1-5-pruned-emaonly.safetensors"]
LORAS = ["add_detail.safetensors", *(f"style_{n}.safetensors" for n in (1, 10, 11, 12, 2, 3, 4, 5, 6, 7, 8, 9))]
SAMPLERS = [
    *("euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "exp_heun_2_x0"),
    *("exp_heun_2_x0_sde", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral"),
    *("dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde"),
    *("dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu"),
    *("ddpm", "lcm", "ipndm", "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp"),
    *("res_multistep_ancestral", "res_multistep_ancestral_cfg_pp", "gradient_estimation"),
    *("gradient_estimation_cfg_pp", "er_sde", "seeds_2", "seeds_3", "sa_solver", "sa_solver_pece", "ddim"),
    *("uni_pc", "uni_pc_bh2"),
]

WORKFLOW: dict[str, Any] = {
    "4": {
        "class_type": "CheckpointLoaderSimple",
        "inputs": {"ckpt_name": "sd_xl_base_1.0.safetensors"},
        "_meta": {"title": "Load Checkpoint"},
    },
    "5": {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 512, "height": 512, "batch_size": 1},
        "_meta": {"title": "Canvas"},
    },
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["4", 1]}, "_meta": {"title": "Prompt"}},
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 1,
            "steps": 4,
            "cfg": 7,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1,
            "model": ["4", 0],
            "positive": ["6", 0],
            "negative": ["6", 0],
            "latent_image": ["5", 0],
        },
        "_meta": {"title": "KSampler"},
    },
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}, "_meta": {"title": "Decode"}},
    "9": {
        "class_type": "SaveImage",
        "inputs": {"images": ["8", 0], "filename_prefix": "x"},
        "_meta": {"title": "Save Image"},
    },
}

OBJECT_INFO: dict[str, Any] = {
    "CheckpointLoaderSimple": {
        "input": {"required": {"ckpt_name": [CHECKPOINTS, {}]}},
        "output": ["MODEL", "CLIP", "VAE"],
    },
    "LoraLoaderModelOnly": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "lora_name": [LORAS],
                "strength_model": ["FLOAT", {"default": 1.0, "min": -100.0, "max": 100.0}],
            }
        },
        "output": ["MODEL"],
    },
    "ControlNetLoader": {"input": {"required": {"control_net_name": [[]]}}, "output": ["CONTROL_NET"]},
    "EmptyLatentImage": {
        "input": {
            "required": {
                "width": ["INT", {"default": 512, "min": 16, "max": 16384}],
                "height": ["INT", {"default": 512, "min": 16, "max": 16384}],
                "batch_size": ["INT", {"default": 1, "min": 1, "max": 4096}],
            }
        },
        "output": ["LATENT"],
    },
    "CLIPTextEncode": {
        "input": {"required": {"text": ["STRING", {}], "clip": ["CLIP", {}]}},
        "output": ["CONDITIONING"],
    },
    "KSampler": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "seed": ["INT", {"default": 0, "min": 0, "max": 18446744073709551615}],
                "steps": ["INT", {"default": 20, "min": 1, "max": 10000}],
                "cfg": ["FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0}],
                "sampler_name": [SAMPLERS, {}],
                "denoise": ["FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0}],
            }
        },
        "output": ["LATENT"],
    },
    "VAEDecode": {"input": {"required": {"samples": ["LATENT", {}], "vae": ["VAE", {}]}}, "output": ["IMAGE"]},
    "LoadImage": {"input": {"required": {"image": [[], {}]}}, "output": ["IMAGE", "MASK"]},
    "SaveImage": {
        "input": {"required": {"images": ["IMAGE", {}], "filename_prefix": ["STRING", {"default": "ComfyUI"}]}},
        "output": ["IMAGE"],
    },
    "ImageInvert": {"input": {"required": {"image": ["IMAGE"]}}, "output": ["IMAGE"]},
    "LatentConcat": {"input": {"required": {"dim": ["COMBO", {"options": ["x", "-x", "y"]}]}}, "output": ["LATENT"]},
}


def changed(**changes: Any) -> dict[str, Any]:
    """WORKFLOW with other inputs: `n3_steps=0` is input steps of node 3; ... takes the input away."""
    workflow = copy.deepcopy(WORKFLOW)
    for key, value in changes.items():
        node_id, name = key.removeprefix("n").split("_", 1)
        workflow[node_id]["inputs"][name] = value
        if value is ...:
            del workflow[node_id]["inputs"][name]
    return workflow


def refused(node_errors: dict[str, tuple[str, list[dict[str, Any]]]], details: str = "") -> dict[str, Any]:
    """The body of a 400 answer with node_errors: by node id, its class and its faults."""
    error = {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation"}
    return {
        "error": {**error, "details": details, "extra_info": {}},
        "node_errors": {
            node_id: {"errors": faults, "dependent_outputs": ["9"], "class_type": class_type}
            for node_id, (class_type, faults) in node_errors.items()
        },
    }


def fault(kind: str, message: str, details: str, **extra_info: Any) -> dict[str, Any]:
    """One entry of node_errors[id].errors."""
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info}


UNKNOWN_CLASS = {
    "error": fault(
        "missing_node_type",
        "Node 'KSampler' not found. The custom node may not be installed.",
        "Node ID '#3'",
        node_id="3",
        class_type="KSamplr",
        node_title="KSampler",
    ),
    "node_errors": {},
}
NO_OUTPUTS = {"error": fault("prompt_no_outputs", "Prompt has no outputs", ""), "node_errors": {}}

CHECKPOINT_NOT_THERE = fault(
    "value_not_in_list",
    "Value not in list",
    f"ckpt_name: 'sd_xl_base_1.0.safetensor' not in {CHECKPOINTS}",
    input_name="ckpt_name",
    input_config=[CHECKPOINTS, {}],
    received_value="sd_xl_base_1.0.safetensor",
)
LORA_NOT_THERE = fault(
    "value_not_in_list",
    "Value not in list",
    f"lora_name: 'add_detial.safetensors' not in {LORAS}",
    input_name="lora_name",
    input_config=[LORAS, {}],
    received_value="add_detial.safetensors",
)
CONTROLNET_NOT_THERE = fault(
    "value_not_in_list",
    "Value not in list",
    "control_net_name: 'a.safetensors' not in []",
    input_name="control_net_name",
    input_config=[[], {}],
    received_value="a.safetensors",
)
SAMPLER_NOT_THERE = fault(
    "value_not_in_list",
    "Value not in list",
    "sampler_name: 'eulr' not in (list of length 44)",
    input_name="sampler_name",
    input_config=None,
    received_value="eulr",
)
TOO_WIDE = fault(
    "value_bigger_than_max",
    "Value 20000 bigger than max of 16384",
    "width",
    input_name="width",
    input_config=["INT", {"default": 512, "min": 16, "max": 16384}],
    received_value=20000,
)
TOO_FEW_STEPS = fault(
    "value_smaller_than_min",
    "Value 0 smaller than min of 1",
    "steps",
    input_name="steps",
    input_config=["INT", {"default": 20, "min": 1, "max": 10000}],
    received_value=0,
)
TOO_MUCH_CFG = fault(
    "value_bigger_than_max",
    "Value 1000.0 bigger than max of 100.0",
    "cfg",
    input_name="cfg",
    input_config=["FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0}],
    received_value=1000.0,
)
STEPS_NO_NUMBER = fault(
    "invalid_input_type",
    "Failed to convert an input value to a INT value",
    "steps, many, invalid literal for int() with base 10: 'many'",
    input_name="steps",
    input_config=["INT", {"default": 20, "min": 1, "max": 10000}],
    received_value="many",
    exception_message="invalid literal for int() with base 10: 'many'",
)
TEXT_MISSING = fault("required_input_missing", "Required input is missing", "text", input_name="text")
IMAGES_FROM_MODEL = fault(
    "return_type_mismatch",
    "Return type mismatch between linked nodes",
    "images, received_type(MODEL) mismatch input_type(IMAGE)",
    input_name="images",
    input_config=["IMAGE", {}],
    received_type="MODEL",
    linked_node=["4", 0],
)
LINK_OF_ONE = fault(
    "bad_linked_input",
    "Bad linked input, must be a length-2 list of [node_id, slot_index]",
    "images",
    input_name="images",
    input_config=["IMAGE", {}],
    received_value=["8"],
)
IMAGE_NOT_THERE = fault(
    "custom_validation_failed",
    "Custom validation failed for node",
    "image - Invalid image file: cat.png",
    input_name="image",
)
DANGLING_INNER = fault(
    "exception_during_inner_validation",
    "Exception when validating inner node",
    "'77'",
    input_name="samples",
    input_config=["LATENT", {}],
    exception_message="'77'",
    exception_type="KeyError",
    linked_node=["3", 0],
)
CYCLE = fault(
    "dependency_cycle",
    "Dependency cycle detected",
    "1 (ImageInvert) -> 2 (ImageInvert) -> 1 (ImageInvert)",
    node_id="1",
    cycle_nodes=["1", "2"],
)


def raised(details: str, exception_type: str) -> dict[str, Any]:
    """The fault of an output node at which ComfyUI's own validation raised."""
    return fault(
        "exception_during_validation", "Exception when validating node", details, exception_type=exception_type
    )


PROMPT_ID = "3a79cea8-efa6-4a3b-954b-3606e49ccd5e"
CUT_CHECKPOINT_FAILED: dict[str, Any] = {
    "prompt_id": PROMPT_ID,
    "node_id": "4",
    "node_type": "CheckpointLoaderSimple",
    "executed": [],
    "exception_message": "Error while deserializing header: incomplete metadata, file not fully covered\n",
    "exception_type": "safetensors._safetensors_rust.SafetensorError",
    "traceback": ['  File "/src/ComfyUI/comfy/utils.py", line 149, in load_torch_file\n    raise e\n'],
    "timestamp": 1795158748636,
}
"""The `execution_error` of a checkpoint that was cut."""
OUT_OF_MEMORY: dict[str, Any] = {
    **CUT_CHECKPOINT_FAILED,
    "node_id": "3",
    "node_type": "KSampler",
    "exception_message": "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 7.79 GiB of "
    "which 5.00 GiB is free.\nThis error means you ran out of memory on your GPU.\n\nTIPS: If the workflow worked "
    "before you might have accidentally set the batch_size to a large number.",
    "exception_type": "torch.OutOfMemoryError",
}
"""The one of a node that raised torch.OutOfMemoryError with CUDA's words (the machine has no GPU)."""
FAILED_HISTORY: dict[str, Any] = {
    "outputs": {},
    "status": {
        "status_str": "error",
        "completed": False,
        "messages": [
            ["execution_start", {"prompt_id": PROMPT_ID, "timestamp": 1795158748633}],
            ["execution_cached", {"nodes": [], "prompt_id": PROMPT_ID, "timestamp": 1795158748634}],
            ["execution_error", CUT_CHECKPOINT_FAILED],
        ],
    },
    "meta": {},
}
SUCCESS_HISTORY: dict[str, Any] = {
    "outputs": {
        "21": {"images": [{"filename": "ComfyUI_temp_aosnt_00001_.png", "subfolder": "", "type": "temp"}]},
        "22": {
            "images": [
                {"filename": "pic_00001_.png", "subfolder": "sub", "type": "output"},
                {"filename": "pic_00002_.png", "subfolder": "sub", "type": "output"},
            ]
        },
        "23": {
            "images": [{"filename": "anim_00001_.webp", "subfolder": "", "type": "output"}],
            "animated": [True],
        },
    },
    "status": {
        "status_str": "success",
        "completed": True,
        "messages": [
            ["execution_start", {"prompt_id": PROMPT_ID, "timestamp": 1795158748739}],
            ["execution_success", {"prompt_id": PROMPT_ID, "timestamp": 1795158748746}],
        ],
    },
    "meta": {},
}
