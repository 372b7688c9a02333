"""The workflows of .github/ and cog-safe-push.yaml: valid, careful with secrets, and true to what the project has.

GitHub's rules for workflow files are check-jsonschema's copy of their published schema. cog-safe-push is in no package
registry, so its rules are written down here, from its source at commit 2ea3b29 (config.py, main.py, lint.py, schema.py
and utils.py of cog_safe_push/). What the cases expect is proven, on Cog's real servers.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import predict
import train
from comfyui.deadline import Deadline
from comfyui.local.cog_server import CogServer
from comfyui.settings import PROJECT_ROOT
from comfyui.workflow.parse import parse_workflow

WORKFLOWS = sorted((PROJECT_ROOT / ".github" / "workflows").glob("*.yml"))
NAMES = [path.name for path in WORKFLOWS]
SAFE_PUSH = PROJECT_ROOT / "cog-safe-push.yaml"
PINNED = re.compile(r"[\w-]+/[\w-]+@(v\d+(\.\d+)*|[0-9a-f]{40})")
COMMIT = re.compile(r"[\w-]+/[\w-]+@[0-9a-f]{40}")
READY_S = 120.0
CALL_S = 120.0
Job = dict[str, Any]


def read(path: Path) -> dict[Any, Any]:
    value: dict[Any, Any] = yaml.safe_load(path.read_text("utf-8"))
    return value


def events(path: Path) -> dict[str, Any]:
    """What a workflow runs on. YAML 1.1 reads the key `on` as true."""
    value: dict[str, Any] = read(path)[True]
    return value


def jobs() -> Iterator[tuple[str, Job]]:
    for path in WORKFLOWS:
        for name, job in read(path)["jobs"].items():
            yield f"{path.name}: {name}", job


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, job in jobs():
        for step in job.get("steps", []):
            yield name, step


# --- Workflows -------------------------------------------------------------------------------------------------------


def valid(path: Path) -> subprocess.CompletedProcess[str]:
    """Put a workflow to GitHub's schema, then to one that wants a time-out; the first that fails, or the last."""
    for schema in ("vendor.github-workflows", "custom.github-workflows-require-timeout"):
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            break
    return done


def test_there_are_workflows_for_tests_and_pushes() -> None:
    assert NAMES == ["ci.yml", "push.yml", "safe-push.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_a_workflow_is_what_github_takes_and_every_job_ends(path: Path) -> None:
    done = valid(path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("old", "new"), [("runs-on:", "run-on:"), ("timeout-minutes:", "# ")])
def test_a_workflow_with_a_mistake_is_found(tmp_path: Path, old: str, new: str) -> None:
    broken = tmp_path / "push.yml"
    broken.write_text((WORKFLOWS[0].parent / "push.yml").read_text("utf-8").replace(old, new), "utf-8")
    assert valid(broken).returncode == 1


def test_no_workflow_may_do_more_than_read() -> None:
    assert [read(path)["permissions"] for path in WORKFLOWS] == [{"contents": "read"}] * len(WORKFLOWS)
    assert [name for name, job in jobs() if "permissions" in job] == []
    assert {"pull_request_target", "workflow_run"}.isdisjoint(event for path in WORKFLOWS for event in events(path))


def test_actions_are_pinned_and_keep_no_token() -> None:
    used = [step for _, step in steps() if "uses" in step]
    assert [step["uses"] for step in used if not PINNED.fullmatch(step["uses"])] == []
    checkouts = [step for step in used if step["uses"].startswith("actions/checkout@")]
    assert len(checkouts) == len(WORKFLOWS)
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_an_action_that_gets_a_token_is_one_that_cannot_change() -> None:
    trusted = [step["uses"] for _, step in steps() if "uses" in step and "secrets." in str(step)]
    assert len(trusted) == 2
    assert [name for name in trusted if not COMMIT.fullmatch(name)] == []


def test_cog_logs_in_with_the_token_that_it_takes() -> None:
    """One for the API (r8_…) it refuses: pkg/provider/replicate/replicate.go of cog, checkTokenFormat."""
    logins = [step["with"]["token"] for _, step in steps() if step.get("uses", "").startswith("replicate/setup-cog@")]
    assert logins == ["${{ secrets.REPLICATE_CLI_AUTH_TOKEN }}"] * 2
    handed_on = dict(jobs())["ci.yml: push"]["secrets"]
    assert handed_on == {"REPLICATE_CLI_AUTH_TOKEN": logins[0]}
    assert list(events(WORKFLOWS[1])["workflow_call"]["secrets"]) == list(handed_on)


def test_nothing_from_outside_is_put_into_a_shell_line_as_text() -> None:
    assert [step["run"] for _, step in steps() if "${{" in step.get("run", "")] == []


def test_the_token_of_a_model_is_never_near_a_pull_request() -> None:
    with_secrets = [name for name, job in jobs() if "secrets." in str(job)]
    assert with_secrets == ["ci.yml: push", "push.yml: push", "safe-push.yml: safe-push"]
    push = dict(jobs())["ci.yml: push"]
    assert "github.event_name == 'push'" in push["if"]
    assert push["needs"] == "scripts"
    assert events(WORKFLOWS[0])["push"] == {"branches": ["main"]}


def test_shell_lines_are_shell_and_name_scripts_that_are_there() -> None:
    named = set()
    for _, step in steps():
        lines = step.get("run", "")
        done = subprocess.run(["bash", "-n"], input=lines, capture_output=True, text=True, timeout=10, check=False)
        assert done.stderr == ""
        named |= {word for word in shlex.split(lines) if word.startswith("./scripts/")}
    assert "./scripts/fetch-comfyui" in named
    tested = dict(jobs())["ci.yml: scripts"]["strategy"]["matrix"]["script"]
    assert tested == ["check", "test"]
    named = {name.replace("$SCRIPT", script) for name in named for script in tested}
    assert [name for name in named if not (PROJECT_ROOT / name).is_file()] == []


def test_versions_are_those_of_cog_yaml() -> None:
    build = read(PROJECT_ROOT / "cog.yaml")["build"]
    given = [step.get("with", {}) for _, step in steps()]
    assert {options["python-version"] for options in given if "python-version" in options} == {build["python_version"]}
    assert {options["cog-version"] for options in given if "cog-version" in options} == {f"v{build['sdk_version']}"}


# --- cog-safe-push.yaml ----------------------------------------------------------------------------------------------


Scalar = bool | int | float | str | list[int] | list[str] | list[float]


class _Known(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Case(_Known):
    """A prediction or a training, and what must come of it; without any expectation, it must succeed."""

    inputs: dict[str, Scalar]
    exact_string: str | None = None
    match_url: str | None = None
    match_prompt: str | None = None
    jq_query: str | None = None
    error_contains: str | None = None

    @model_validator(mode="after")
    def _one_expectation(self) -> Case:
        if len(self.model_dump(exclude={"inputs"}, exclude_none=True)) > 1:
            raise ValueError("one expectation for each case")
        return self


class Fuzz(_Known):
    """Inputs that the tool makes up; `duration` is of older versions."""

    fixed_inputs: dict[str, Scalar] = {}
    disabled_inputs: list[str] = []
    iterations: int = 10
    duration: int | None = None
    prompt: str | None = None


class Predict(_Known):
    """`predict_timeout` is in seconds."""

    compare_outputs: bool = True
    predict_timeout: int = 300
    test_cases: list[Case] = []
    fuzz: Fuzz | None = None


class Train(_Known):
    """`train_timeout` is in seconds."""

    destination: str | None = None
    destination_hardware: str = "cpu"
    train_timeout: int = 300
    test_cases: list[Case] = []
    fuzz: Fuzz | None = None


class Deployment(_Known):
    """What follows a push."""

    owner: str | None = None
    name: str | None = None
    hardware: str | None = None


class SafePush(_Known):
    """The file; the form of `model` is asked for when the tool begins to work."""

    model: str = Field(pattern=r"^[a-z0-9_-]+/[a-z0-9-.]+$")
    test_model: str | None = None
    test_hardware: str = "cpu"
    predict: Predict | None = None
    train: Train | None = None
    deployment: Deployment | None = None
    dockerfile: str | None = None
    parallel: int = 4
    fast_push: bool = False
    use_cog_base_image: bool = True
    ignore_schema_compatibility: bool = False
    official_model: str | None = None


CONFIG = SafePush.model_validate(read(SAFE_PUSH))
assert CONFIG.predict is not None
assert CONFIG.train is not None
PREDICT_CASES, TRAIN_CASES = CONFIG.predict.test_cases, CONFIG.train.test_cases


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("test_cases:", "tests:"),
        ("inputs:", "input:"),
        ("error_contains:", "error_match:"),
        ("compare_outputs: false", "compare_outputs: sometimes"),
        ("model: your-name/your-model", "model: your-model"),
        ("      error_contains: nobody", "      match_prompt: a fox\n      error_contains: nobody"),
    ],
)
def test_a_mistake_in_the_configuration_is_found(old: str, new: str) -> None:
    text = SAFE_PUSH.read_text("utf-8")
    assert old in text
    with pytest.raises(ValidationError):
        SafePush.model_validate(yaml.safe_load(text.replace(old, new)))


def test_no_case_needs_the_judgement_that_the_tool_buys_elsewhere() -> None:
    """Comparing outputs, fuzzing and match_prompt ask a language model, with a key and money of their own."""
    assert CONFIG.predict is not None
    assert CONFIG.train is not None
    assert (CONFIG.predict.compare_outputs, CONFIG.predict.fuzz, CONFIG.train.fuzz) == (False, None, None)
    assert [case for case in [*PREDICT_CASES, *TRAIN_CASES] if case.match_prompt or case.match_url] == []


def test_the_workflow_calls_the_tool_with_a_cog_yaml_that_it_understands(tmp_path: Path) -> None:
    """It looks for `predict:` and `train:` in cog.yaml, and knows nothing of Cog's newer `run:`."""
    (tmp_path / "cog-safe-push").write_text('#!/bin/sh\necho "$@" >called\n')
    (tmp_path / "cog-safe-push").chmod(0o755)
    shutil.copy(PROJECT_ROOT / "cog.yaml", tmp_path)
    step = dict(jobs())["safe-push.yml: safe-push"]["steps"][-1]
    environ = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "MODEL": "me/my-model"}
    subprocess.run(["bash", "-e", "-c", step["run"]], cwd=tmp_path, env=environ, timeout=10, check=True)
    assert (tmp_path / "called").read_text() == "-v me/my-model\n"
    before, after = read(PROJECT_ROOT / "cog.yaml"), read(tmp_path / "cog.yaml")
    assert after == {("predict" if key == "run" else key): value for key, value in before.items()}
    assert (after["predict"], after["train"]) == ("predict.py:Predictor", "train.py:train")


@pytest.mark.parametrize("name", ["predict.py", "train.py"])
def test_the_tools_linter_has_nothing_to_say(name: str) -> None:
    command = [sys.executable, "-m", "ruff", "check", name, "--ignore=E402"]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("name", "function"), [("predict.py", "run"), ("train.py", "train")])
def test_every_input_has_the_description_that_the_tool_asks_for(name: str, function: str) -> None:
    """In the text, where Cog reads it: one literal, that of a call of Input."""
    tree = ast.parse((PROJECT_ROOT / name).read_text("utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef) and node.name == function]
    inputs = [argument.arg for argument in found[0].args.args if argument.arg != "self"]
    given = [
        {one.arg: one.value for one in call.keywords} for call in found[0].args.defaults if isinstance(call, ast.Call)
    ]
    described = [one for one in given if isinstance(text := one.get("description"), ast.Constant) and text.value]
    assert len(inputs) == len(described) > 0


def test_cases_use_inputs_that_there_are() -> None:
    for function, cases in ((predict.Predictor.run, PREDICT_CASES), (train.train, TRAIN_CASES)):
        names = set(inspect.signature(function).parameters) - {"self"}
        assert [name for case in cases for name in case.inputs if name not in names] == []


def test_there_is_a_success_and_a_failure_and_every_workflow_that_succeeds_can_be_read() -> None:
    good = [case for case in PREDICT_CASES if case.error_contains is None]
    assert 0 < len(good) < len(PREDICT_CASES)
    assert [len(parse_workflow(str(case.inputs["workflow_json"])).nodes) for case in good] == [2, 3]


@pytest.fixture(scope="module", params=["predict", "train"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CogServer]:
    """Cog's server without any weights, as the test model has none."""
    folder = tmp_path_factory.mktemp(request.param)
    environ = {"MODELS_DIR": str(folder / "models"), "DATA_DIR": str(folder / "data"), "ALLOW_PRIVATE_URLS": "0"}
    with CogServer(request.param, environ=environ, sink=lambda line: None) as server:
        server.wait_ready(Deadline(READY_S, "The server's setup"))
        yield server


def test_every_case_comes_out_as_it_says(served: CogServer) -> None:
    cases = PREDICT_CASES if served.mode == "predict" else TRAIN_CASES
    for case in cases:
        answer = served.call(case.inputs, timeout_s=CALL_S)
        if case.error_contains is None:
            assert answer["status"] == "succeeded", answer
            assert answer["output"]
        else:
            assert answer["status"] == "failed", answer
            assert case.error_contains in answer["error"]
