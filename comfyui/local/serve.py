"""Keep the model's HTTP API running on this machine: Cog's predict server, as it runs on Replicate."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from comfyui.deadline import Deadline
from comfyui.errors import ComfyUIModelError, EngineError
from comfyui.local.cog_server import CogServer
from comfyui.local.paths import typed_url_or_path
from comfyui.local.quickstart import EXAMPLES, SETUP_TIMEOUT_S, predictor_environ
from comfyui.settings import Settings
from comfyui.workflow.parse import parse_workflow

WATCH_S = 0.5
_API = "The API is Cog's: GET /health-check, POST /predictions, POST /predictions/ID/cancel. Stop with Ctrl-C."


@dataclass(frozen=True)
class Options:
    """What the command line said."""

    host: str
    port: int
    weights: str | None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 stopped by Ctrl-C, 1 failed with a reason, 2 wrong usage."""
    options = parse_arguments(arguments)
    try:
        serve(options, Settings.from_environ())
    except (ComfyUIModelError, OSError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; everything that was started has ended.", file=sys.stderr)
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> Options:
    """Read the command line; argparse itself explains what is wrong with it and exits with 2."""
    parser = argparse.ArgumentParser(
        prog="scripts/serve",
        description="Serve the model's HTTP API on this machine until Ctrl-C. Without --weights it serves what the "
        "last scripts/quickstart baked; if there was none, what lies in models/.",
    )
    parser.add_argument(
        "--weights", metavar="URL", type=typed_url_or_path, help="tar that a training made: a URL or a path"
    )
    parser.add_argument("--port", type=int, default=5000, help="port to listen on (default 5000)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1; 0.0.0.0 lets other machines in)"
    )
    given = parser.parse_args(arguments)
    return Options(given.host, given.port, given.weights)


def serve(options: Options, settings: Settings) -> None:
    """Start the server, say how to use it, and stay until it ends or the person stops it.

    Raises EngineError when its setup fails or it ends by itself.
    """
    weights = options.weights or newest_bake(settings)
    print(f"Weights: {weights or 'none baked; only what lies in ' + str(settings.models_dir)}", flush=True)
    environ = predictor_environ(weights, settings) if weights else {}
    with CogServer("predict", environ=environ, sink=_print_line, host=options.host, port=options.port) as server:
        server.wait_ready(Deadline(SETUP_TIMEOUT_S, "The predictor's setup"))
        print(how_to_call(server.base_url, settings), flush=True)
        while (returncode := server.returncode()) is None:
            time.sleep(WATCH_S)
        raise EngineError(f"The server ended by itself with exit code {returncode}; its last lines above say why.")


def newest_bake(settings: Settings) -> str | None:
    """The path of the tar that was baked last on this machine, None if there is none."""
    tars = sorted((settings.data_dir / "bakes").glob("*/weights.tar"), key=lambda tar: tar.stat().st_mtime)
    return str(tars[-1]) if tars else None


def how_to_call(base_url: str, settings: Settings) -> str:
    """Words and a curl line for the person who has just started the server. Writes the request that it posts.

    Where that cannot be written, the words say so: the server runs all the same.
    """
    request = settings.data_dir / "serve" / "request.json"
    workflow = parse_workflow((EXAMPLES / "txt2img_lora.json").read_text("utf-8"))
    # A workflow travels as text inside the request's JSON; json.dumps twice does the escaping right.
    inputs = {"workflow_json": json.dumps(workflow.prompt()), "output_format": "png"}
    try:
        request.parent.mkdir(parents=True, exist_ok=True)
        request.write_text(json.dumps({"input": inputs}), "utf-8")
    except OSError as error:
        return (
            f"\nReady at {base_url}. An example of a request is not there, since {request} cannot be written: "
            f"{error.strerror}.\n{_API}"
        )
    decode = 'import base64,json,sys; print(open("picture.png","wb").write(base64.b64decode(json.load(sys.stdin)'
    return (
        f"\nReady at {base_url}. Make a picture from another terminal:\n\n"
        f"curl -s {base_url}/predictions -H 'Content-Type: application/json' -d @{request} \\\n"
        f'  | python3 -c \'{decode}["output"][0].split(",")[1])), "bytes in picture.png")\'\n\n'
        f"{_API}"
    )


def _print_line(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
