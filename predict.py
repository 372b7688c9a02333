"""Cog inputs → comfyui → files. Thin: everything that can go wrong is handled, and tested, in comfyui/."""

from pathlib import Path as FilePath
from typing import Optional, Union

from cog import BaseRunner, Input, Path, Secret

from comfyui.cog_inputs import explain_unknown_inputs
from comfyui.engine.engine import Engine
from comfyui.engine.server import engine_log_line
from comfyui.prediction import PredictionRequest, predict
from comfyui.settings import Settings
from comfyui.startup import start_beside
from comfyui.weights.listener import PlainLines
from comfyui.weights.restore.image_weights import prepare_weights
from comfyui.workflow.model_links import ModelLinks, tokens_of


def say(line: str) -> None:
    """A line for the log of the setup or the prediction that calls it."""
    print(line, flush=True)


def _text(secret: Optional[Secret]) -> Optional[str]:
    return secret.get_secret_value() if secret else None


class Predictor(BaseRunner):
    """ComfyUI behind Cog: weights are restored and verified while ComfyUI starts, then workflows run."""

    async def setup(self, weights: Optional[Union[Path, str]] = None) -> None:  # type: ignore[override]
        """Start ComfyUI and restore the weights (a URL or a path, from COG_WEIGHTS) at the same time."""
        self.settings = Settings.from_environ()
        self.engine = Engine(self.settings, sink=lambda line: say(engine_log_line(line)))
        self.links = ModelLinks(self.engine, self.settings)
        location = str(weights) if weights else None
        await start_beside(self.engine, lambda stop: prepare_weights(location, self.settings, PlainLines(say), stop))

    async def healthcheck(self) -> bool:
        """Whether ComfyUI is fit for a prediction; one that has died or hangs is being started again."""
        return await self.engine.healthy()

    @explain_unknown_inputs
    async def run(
        self,
        workflow_json: str = Input(
            description="Your ComfyUI workflow: its JSON text, or a URL of it. Workflow → Export (API) in ComfyUI writes it; a workflow as ComfyUI saves it works too.",
            default="",
        ),
        input_file: Optional[Path] = Input(
            description="An image, video or sound for the workflow, or a zip or tar of them. A single file is there as input.png (or its own ending) and under its own name; an archive keeps its folders.",
            default=None,
        ),
        return_temp_files: bool = Input(
            description="Give back temporary files too, such as previews and preprocessed ControlNet images.",
            default=False,
        ),
        output_format: str = Input(
            description="Format of still images. Animations, videos and other files stay as the workflow made them.",
            choices=["webp", "jpg", "png"],
            default="webp",
        ),
        output_quality: int = Input(
            description="Quality of webp and jpg images, from 0 to 100; 100 is best. Not used for png.",
            ge=0,
            le=100,
            default=95,
        ),
        embed_workflow: bool = Input(
            description="Keep the workflow inside images, videos and sounds, as ComfyUI does, so that they can be dropped into it again. Turn it off to give them to others without it.",
            default=True,
        ),
        randomise_seeds: bool = Input(
            description="Put a new random number into every seed of the workflow; the log says which. Turn it off to make the same picture again.",
            default=True,
        ),
        force_reset_cache: bool = Input(
            description="Unload all models and forget all cached results before the workflow runs.",
            default=False,
        ),
        timeout: int = Input(
            description="Stop the workflow after this many seconds; 0 is no limit.",
            ge=0,
            default=1800,
        ),
        stall_timeout: int = Input(
            description="Stop the workflow when ComfyUI gives no sign of life for this many seconds; 0 is no limit.",
            ge=0,
            default=600,
        ),
        huggingface_token: Optional[Secret] = Input(
            description="Read token of Hugging Face, for links to private or gated weights in the workflow. Sent to Hugging Face only, never logged.",
            default=None,
        ),
        civitai_token: Optional[Secret] = Input(
            description="API token of Civitai, for links to weights in the workflow that need a login. Sent to Civitai only, never logged.",
            default=None,
        ),
    ) -> list[Path]:
        """Run one workflow and give back the files it made, in the order of its nodes."""
        request = PredictionRequest(
            workflow_json=workflow_json or "",
            # Without Docker a local path arrives as a plain string.
            input_file=FilePath(input_file) if input_file else None,
            return_temp_files=return_temp_files,
            output_format=output_format,
            output_quality=output_quality,
            embed_workflow=embed_workflow,
            randomise_seeds=randomise_seeds,
            force_reset_cache=force_reset_cache,
            timeout=timeout,
            stall_timeout=stall_timeout,
            tokens=tokens_of(_text(huggingface_token), _text(civitai_token)),
        )
        prediction = await predict(self.engine, self.settings, self.links, request, say)
        for name, value in prediction.metrics.items():
            self.record_metric(name, value)
        return [Path(file) for file in prediction.files]
