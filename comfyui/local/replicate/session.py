"""What every command of scripts/replicate works with: options, settings, where words go, and services with tokens."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass

from comfyui.local.replicate.api import Api, Run
from comfyui.local.replicate.arguments import Options
from comfyui.local.replicate.environ import Service
from comfyui.local.replicate.follow import RunView
from comfyui.local.replicate.prices import cost_text
from comfyui.local.replicate.upload import TOKENS_PAGE, Hub, quiet_unless_drawable
from comfyui.local.terminal import Console
from comfyui.local.tokens import need_token, read_token
from comfyui.settings import Settings


@dataclass(frozen=True)
class Session:
    """One command; `stack` closes what it opens."""

    options: Options
    settings: Settings
    service: Service
    console: Console
    stack: ExitStack
    view: RunView

    @classmethod
    def begin(
        cls, options: Options, settings: Settings, service: Service, console: Console, stack: ExitStack
    ) -> Session:
        """A session that shows runs as its options ask for."""
        return cls(options, settings, service, console, stack, RunView(as_json=options.json))

    def say(self, line: str) -> None:
        """A sentence for people."""
        self.view.close()
        self.console.listener.say(line)

    def api(self) -> Api:
        """Replicate, with the person's token. Raises RequestError without one."""
        page = "https://replicate.com/account/api-tokens"
        token = need_token(self.options.token_file, "REPLICATE_API_TOKEN", "--token-file", page)
        return self.stack.enter_context(Api(token, self.service, self.say))

    def hub(self, repo: str) -> Hub:
        """A repo on Hugging Face; "/name" is one of the token's owner. Raises RequestError without a token."""
        token = need_token(self.options.hf_token_file, "HF_TOKEN", "--hf-token-file", TOKENS_PAGE)
        quiet_unless_drawable(sys.stderr, as_json=self.options.json)
        return Hub(repo, token, self.settings, self.say)

    def training_secrets(self) -> dict[str, str | None]:
        """The tokens that a training takes along, by input name."""
        return {
            "huggingface_read_token": read_token(self.options.hf_read_token_file, "HF_READ_TOKEN"),
            "civitai_api_token": read_token(self.options.civitai_token_file, "CIVITAI_TOKEN"),
        }

    def cost(self, run: Run) -> str:
        """A sentence on what a run has cost."""
        return cost_text([run.seconds or 0.0], self.options.hardware, self.options.price)
