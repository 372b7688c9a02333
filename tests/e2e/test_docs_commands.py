"""Every shell block of the pages for users is run as a person types it, page by page, from top to bottom.

A page's blocks run in a copy of the project, in bash. Pictures come from the real Cog server and real ComfyUI, with
demo weights under the names that the pages use. Replicate, Hugging Face and Civitai are stand-ins (tests/local,
tests/weights), and so are `cog` and `docker`: two shell scripts that take a push, since no image can be built here. As
the real cog, the stand-in does not log in with a token for the API (its pkg/provider/replicate/replicate.go).

What cannot run here stands in NOT_HERE, block by block, with the reason. A new block is run unless it is added there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from PIL import Image

from comfyui.deadline import Deadline
from comfyui.local.cog_server import CogServer
from comfyui.settings import PROJECT_ROOT
from tests.documents import Block, user_pages
from tests.e2e.conftest import READY_S
from tests.local.replicate_standin import arguments_of
from tests.local.replicate_world import World
from tests.parts import demo_files, example
from tests.weights.civitai_standin import CivitaiStandin, File, Version
from tests.weights.hugging_face_standin import HuggingFaceStandin, Repo
from tests.weights.samples import safetensors

LIMIT_S = 120
OWN_SERVER = "http://127.0.0.1:5000"
SITE = "https://api.replicate.com"
INTERNET = "it downloads from the internet; tests/e2e/test_scripts.py runs the script with files of its own"
DOCKER = "it needs Docker, and a GPU"
STAYS = "it runs until Ctrl-C; tests/e2e/test_scripts.py starts the script"
SERVICE = "only the service itself can answer; its stand-in speaks what the official client asks, and no more"

NOT_HERE: Mapping[str, Mapping[str, str]] = {
    "README.md": {
        "./scripts/quickstart    # from nothing": "tests/e2e/test_scripts.py runs the first, and the second runs this",
        "./scripts/quickstart --checkpoint https": INTERNET,
    },
    "docs/gpu-box.md": {
        "git clone": INTERNET,
        "scripts/serve": STAYS,
        "./scripts/fetch-comfyui": DOCKER,
        "cog build": DOCKER,
        "ssh": "it needs another machine",
        "git pull": INTERNET,
    },
    "docs/replicate.md": {f"curl -s -X POST {SITE}/v1/deployments": SERVICE},
    "docs/training.md": {
        "./scripts/train-lora": "it trains for minutes; tests/e2e/test_train_lora_script.py trains for less",
        "scripts/replicate train --model me/my-comfyui --images": "it goes on from docs/replicate.md, which is run",
    },
    "examples/webhook_receiver/README.md": {
        f'curl -s -H "Authorization: Bearer $REPLICATE_API_TOKEN" {SITE}': SERVICE,
        "read -rs": "it runs until Ctrl-C; tests/test_webhook_receiver.py starts it",
    },
    "examples/workflows/README.md": {".venv/bin/python -m comfyui.local.demo.weights": STAYS},
}
"""Page → how a block begins → why it is not run."""
BLOCKS = [block for page in user_pages() for block in page.blocks if block.language == "sh"]
DOWNLOADS = ("docs/weights.md", "docs/gpu-box.md")
"""Pages whose `hf://me/models` holds weights already; on the others they are uploaded to it."""
PROJECT = ("comfyui", "examples", "scripts", "cog.yaml", "predict.py", "train.py", "requirements.txt")
COG = """#!/bin/sh
case "$1" in
--version) echo "cog version 0.23.1" ;;
login) if [ "$2" = --token-stdin ] && grep -q '^r8_'; then echo "that is a token for the API" >&2; exit 1; fi ;;
push) echo "$2" >>"$PUSHED" ;;
*) exit 1 ;;
esac
"""


def is_here(block: Block) -> bool:
    return not any(block.first.startswith(first) for first in NOT_HERE.get(block.page, ()))


RUN = [block for block in BLOCKS if is_here(block)]


def test_what_is_not_run_is_in_the_pages_once() -> None:
    named = [(page, first) for page, blocks in NOT_HERE.items() for first in blocks]
    found = [sum(block.page == page and block.first.startswith(first) for block in BLOCKS) for page, first in named]
    assert found == [1] * len(named)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of one's own, with weights under the names of the pages."""
    folder = tmp_path_factory.mktemp("own")
    names = {
        "checkpoints/my": "checkpoints/tiny-sd15",
        "loras/mimi": "loras/tiny-sd15-lora",
        "loras/ink": "loras/tiny-sd15-lora-2",
        "loras/lcm-lora": "loras/tiny-sd15-lora",
        "controlnet/canny": "controlnet/tiny-sd15-control",
    }
    for name, demo in names.items():
        link = folder / "models" / f"{name}.safetensors"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(demo_files(demo)[f"{demo}.safetensors"])
    environ = {"MODELS_DIR": str(folder / "models"), "DATA_DIR": str(folder / "data")}
    with CogServer("predict", environ=environ, sink=lambda _line: None) as running:
        running.wait_ready(Deadline(READY_S, "The predictor's setup"))
        yield running.base_url


class Reader:
    """Somebody at a terminal, in the project's folder, with all that a page speaks of."""

    def __init__(self, page: str, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.server = OWN_SERVER
        self._copy_project()
        self.world = stack.enter_context(World(folder))
        self.world.replicate.pushed = folder / "pushed"
        self.environ = {
            **self.world.environ,
            "PATH": f"{self._tools()}{os.pathsep}{os.environ['PATH']}",
            "PUSHED": str(folder / "pushed"),
            "CURL_HOME": str(folder),
        }
        # A refusal is a failure here, where curl -s would only print it.
        (folder / ".curlrc").write_text("fail-with-body\n")
        if page in DOWNLOADS:
            self._sites(stack)
        self._files()

    def _copy_project(self) -> None:
        for name in PROJECT:
            source = PROJECT_ROOT / name
            if source.is_dir():
                shutil.copytree(source, self.folder / name)
            else:
                shutil.copy2(source, self.folder / name)
        (self.folder / "weights_manifest.json").write_text('{"version": 1, "weights": []}')
        (self.folder / "models").mkdir()
        (self.folder / ".venv" / "bin").mkdir(parents=True)
        (self.folder / ".venv" / "bin" / "python").symlink_to(sys.executable)
        # Small pictures, where a command leaves size and steps to this file.
        (self.folder / "generate.toml").write_text('size = "64x64"\nsteps = 2\n')

    def _tools(self) -> Path:
        tools = self.folder / "tools"
        tools.mkdir()
        for name, text in {"cog": COG, "docker": "#!/bin/sh\necho 28.0.1\n"}.items():
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        (self.folder / "home" / ".docker").mkdir()
        (self.folder / "home" / ".docker" / "config.json").write_text('{"auths": {"r8.im": {}}}')
        return tools

    def _sites(self, stack: ExitStack) -> None:
        hub = stack.enter_context(HuggingFaceStandin(self.world.delivery))
        hub.repos["me/models"] = Repo({"checkpoints/my.safetensors": safetensors(1), "a.safetensors": safetensors(2)})
        civitai = stack.enter_context(CivitaiStandin(self.world.delivery))
        civitai.versions[5678] = Version(1234, [File(1, "some_style.safetensors", safetensors(3), primary=True)])
        self.environ |= {"HF_ENDPOINT": hub.url, "CIVITAI_ENDPOINT": civitai.url}
        del self.environ["HF_TOKEN"]

    def _files(self) -> None:
        photo = Image.new("RGB", (64, 64), (40, 60, 160))
        photo.save(self.folder / "photo.png")
        Image.new("L", photo.size, 255).save(self.folder / "mask.png")
        photo.putalpha(128)
        photo.save(self.folder / "hole.png")
        with zipfile.ZipFile(self.folder / "photos.zip", "w") as photos:
            photos.write(self.folder / "photo.png", "photo.png")
        workflow = example(
            "txt2img_lora", ckpt_name="my.safetensors", lora_name="mimi.safetensors", width=64, height=64
        )
        (self.folder / "workflow_api.json").write_text(json.dumps(workflow))

    def types(self, block: Block) -> subprocess.CompletedProcess[str]:
        """Run a block in bash, with the places that it names exchanged for those that are here."""
        if '"visibility"' in block.text:
            # Nobody makes the model both with the script and by hand.
            self.world.replicate.models.pop("me/my-comfyui", None)
        text = block.text.replace(SITE, self.world.replicate.url).replace(OWN_SERVER, self.server)
        text = re.sub(r"\b(VERSION|TRAINING|PREDICTION)\b", lambda found: self._id(found[1]), text)
        text = text.replace("/srv/", f"{self.folder}/srv/")
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env={**self.environ, "COG_SERVER_URL": self.server},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def _id(self, what: str) -> str:
        replicate = self.world.replicate
        if what == "VERSION":
            # Where the page pushes in a sentence only, there is none yet.
            return (replicate.models.get("me/my-comfyui") or self._push())[-1]
        return next(run.id for run in reversed(replicate.runs.values()) if run.kind == what.lower())

    def _push(self) -> list[str]:
        self.world.replicate.add_model("me/my-comfyui", "a" * 64)
        return self.world.replicate.models["me/my-comfyui"]

    @property
    def pictures(self) -> int:
        return sum(1 for path in (self.folder / "outputs").glob("*") if path.is_file())


@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in RUN))
def test_the_shell_blocks_of_a_page(page: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    blocks = [block for block in RUN if block.page == page]
    text = "".join(block.text for block in blocks)
    with ExitStack() as stack:
        reader = Reader(page, tmp_path, stack)
        if OWN_SERVER in text or "scripts/generate" in text:
            reader.server = request.getfixturevalue("server")
        for block in blocks:
            done = reader.types(block)
            assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
            reader.world.check(done.stdout + done.stderr)
        assert reader.pictures >= len(re.findall(r"scripts/(?:generate|replicate (?:predict|ship)) ", text))
        sent = {name for run in reader.world.replicate.runs.values() for name in run.inputs}
        assert sent <= {*arguments_of("predict.py", "run"), *arguments_of("train.py", "train")}
