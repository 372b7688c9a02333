"""`scripts/replicate ship`: from local files to a picture; stopped at every step, it goes on and repeats nothing."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.api_server import ApiServer, Fault
from tests.local.hub_upload_standin import READER
from tests.local.replicate_standin import PICTURE, problem
from tests.local.replicate_world import LIMIT_S, World, result
from tests.weights.samples import safetensors, sha256

SHIP = ("ship", "--model", "me/mine", "--base", "me/base", "--out", "out")
FILES = ("--checkpoint", "my.safetensors", "--lora", "mimi.safetensors")
LORA_OBJECT = sha256(safetensors(2, size=5000))
TRAIN = r"/v1/models/me/base/versions/\w+/trainings"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as running:
        yield running


def assert_all_was_done_once(world: World) -> None:
    assert len(world.storage.calls("PUT", "/repos/.*")) == 2
    assert len(world.hub.calls("POST", "/api/models/me/mine/commit/main")) == 2
    assert len(world.replicate.calls("POST", "/v1/models")) == 1
    assert [run.kind for run in world.replicate.runs.values()] == ["training", "prediction"]


def test_from_local_files_to_a_picture(world: World) -> None:
    done = world.run(*SHIP, *FILES, "--prompt", "1girl, cat ears, smile", "--seed", "7", "--json")
    assert done.returncode == 0, done.stdout
    shipped = result(done)
    assert_all_was_done_once(world)
    training, prediction = world.replicate.runs.values()
    assert shipped["version"] == training.output["version"]
    assert shipped["files"] == [str(world.out / "out-0.webp")]
    assert (world.out / "out-0.webp").read_bytes() == PICTURE
    assert "about $0.21 (922 s of run time × $0.000225, gpu-t4" in shipped["cost"]
    assert world.replicate.hardware_of == {"me/mine": "gpu-t4"}
    assert world.hub.repos["me/mine"].visibility == "private"
    (request,) = world.replicate.calls("POST", TRAIN)
    inputs = json.loads(request.body)["input"]
    commits = [oid for oid, _ in world.hub.repos["me/mine"].commits[1:]]
    assert inputs["checkpoints"] == f"{world.hub.url}/me/mine/resolve/{commits[0]}/checkpoints/my.safetensors"
    assert inputs["loras"] == f"{world.hub.url}/me/mine/resolve/{commits[1]}/loras/mimi.safetensors"
    assert inputs["huggingface_read_token"] == READER
    workflow = json.loads(prediction.inputs["workflow_json"])
    values = {name: value for node in workflow.values() for name, value in node["inputs"].items()}
    assert (values["ckpt_name"], values["lora_name"], values["seed"]) == ("my.safetensors", "mimi.safetensors", 7)
    assert "1girl, cat ears, smile" in [node["inputs"].get("text") for node in workflow.values()]


def test_a_second_time_does_nothing_and_another_prompt_makes_a_picture_alone(world: World) -> None:
    assert world.run(*SHIP, *FILES).returncode == 0
    again = world.run(*SHIP, *FILES)
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, str(world.out / "out-0.webp"))
    assert_all_was_done_once(world)
    other = world.run(*SHIP, *FILES, "--prompt", "a blue fox")
    assert other.stdout.splitlines()[-1] == str(world.out / "out-0-2.webp")
    assert [run.kind for run in world.replicate.runs.values()] == ["training", "prediction", "prediction"]
    (world.folder / "mimi.safetensors").write_bytes(safetensors(9))
    assert world.run(*SHIP, *FILES).returncode == 0
    assert len(world.storage.calls("PUT", "/repos/.*")) == 3
    assert [run.kind for run in world.replicate.runs.values()].count("training") == 2


Place = tuple[str, str, str, bool]
PLACES: list[Place] = [
    ("storage", "PUT", LORA_OBJECT, False),
    ("hub", "POST", "/commit/main$", False),
    ("replicate", "POST", "/v1/models$", False),
    ("replicate", "POST", "/v1/models$", True),
    ("replicate", "POST", "/trainings$", False),
    ("replicate", "POST", "/trainings$", True),
    ("replicate", "GET", r"/v1/trainings/\w+$", True),
    ("replicate", "POST", "/v1/predictions$", False),
    ("replicate", "POST", "/v1/predictions$", True),
    ("replicate", "GET", r"/v1/predictions/\w+$", True),
]
"""Where a ship is stopped: before (False) or after (True) the service has done what it was asked for."""


@pytest.mark.parametrize(("service", "method", "pattern", "done_first"), PLACES)
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_anywhere_it_goes_on_and_repeats_nothing(
    world: World, service: str, method: str, pattern: str, done_first: bool, signal_number: signal.Signals
) -> None:
    server: ApiServer = getattr(world, service)
    held = server.hold(method, pattern, done_first=done_first, drop=True)
    assert held.reached is not None
    assert held.let_go is not None
    with world.start(*SHIP, *FILES) as process:
        assert held.reached.wait(LIMIT_S)
        process.send_signal(signal_number)
        if signal_number == signal.SIGKILL:
            process.wait(LIMIT_S)
        held.let_go.set()
        out, err = process.communicate(timeout=LIMIT_S)
    world.check(out + err)
    if signal_number == signal.SIGINT:
        assert process.returncode == 130
        state = world.folder / "data" / "ship" / "me@mine.json"
        assert f"What is done stays in {state}; the same command goes on from there." in err
        if pattern.endswith("+$"):
            assert re.search(r"The run \w+ goes on at Replicate; scripts/replicate cancel \w+ ends it\.", err)
    calls = len(server.calls(method, f".*{pattern}"))
    done = world.run(*SHIP, *FILES)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(world.out / "out-0.webp")
    assert [run.kind for run in world.replicate.runs.values()] == ["training", "prediction"]
    if done_first and method == "POST":
        assert len(server.calls(method, f".*{pattern}")) == calls


def test_a_training_that_failed_is_paid_for_and_tried_anew(world: World) -> None:
    stages = world.replicate.training_stages
    world.replicate.training_stages = [("starting", ""), ("failed", "")]
    done = world.run(*SHIP, *FILES)
    assert done.returncode == 1
    assert "The training train0000 failed." in done.stderr
    assert "about $0.21 (912 s" in done.stderr
    world.replicate.training_stages = stages
    done = world.run(*SHIP, *FILES)
    assert done.returncode == 0, done.stderr
    assert "about $0.41 (1835 s" in done.stderr
    assert [run.kind for run in world.replicate.runs.values()] == ["training", "training", "prediction"]


def test_a_refused_model_stops_before_the_training_and_goes_on_with_another_hardware(world: World) -> None:
    done = world.run(*SHIP, *FILES, "--hardware", "gpu-a40-large")
    assert done.returncode == 1
    assert "gpu-t4" in done.stderr
    assert not world.replicate.runs
    assert world.run(*SHIP, *FILES, "--hardware", "gpu-l40s").returncode == 0
    assert world.replicate.hardware_of == {"me/mine": "gpu-l40s"}
    assert len(world.storage.calls("PUT", "/repos/.*")) == 2


def test_an_output_that_went_away_meanwhile_is_made_again(world: World) -> None:
    files = dict(world.delivery.files)
    world.delivery.files.clear()
    assert world.run(*SHIP, *FILES).returncode == 1
    world.delivery.files.update(files)
    assert world.run(*SHIP, *FILES).returncode == 0
    assert [run.kind for run in world.replicate.runs.values()] == ["training", "prediction", "prediction"]


def test_a_prediction_whose_data_was_removed_meanwhile_is_made_again(world: World) -> None:
    held = world.replicate.hold("GET", r"/v1/predictions/\w+$", done_first=True, drop=True)
    assert held.reached is not None
    assert held.let_go is not None
    with world.start(*SHIP, *FILES) as process:
        assert held.reached.wait(LIMIT_S)
        process.kill()
        process.wait(LIMIT_S)
        held.let_go.set()
    list(world.replicate.runs.values())[-1].data_removed = True
    done = world.run(*SHIP, *FILES)
    assert done.returncode == 1
    assert "There is no file in the output." in done.stderr
    done = world.run(*SHIP, *FILES)
    assert done.stdout.splitlines()[-1] == str(world.out / "out-0.webp")
    assert [run.kind for run in world.replicate.runs.values()] == ["training", "prediction", "prediction"]


def test_a_version_to_train_that_was_deleted_meanwhile_is_looked_for_anew(world: World) -> None:
    world.replicate.faults.append(Fault("POST", "/trainings$", problem(500, "oops")))
    assert world.run(*SHIP, *FILES).returncode == 1
    world.replicate.add_model("me/base", "c" * 64)
    done = world.run(*SHIP, *FILES)
    assert done.returncode == 0, done.stderr
    assert f"me/base:{'b' * 64} is not there any more" in done.stderr
    assert world.replicate.calls("POST", f"/v1/models/me/base/versions/{'c' * 64}/trainings")


def test_a_trained_version_that_was_deleted_meanwhile_is_trained_anew(world: World) -> None:
    assert world.run(*SHIP, *FILES).returncode == 0
    (deleted,) = world.replicate.models["me/mine"]
    world.replicate.models["me/mine"] = []
    done = world.run(*SHIP, *FILES)
    assert done.returncode == 0, done.stderr
    assert f"me/mine:{deleted} is not there any more, so it is trained anew" in done.stderr
    assert done.stdout.splitlines()[-1] == str(world.out / "out-0-2.webp")
    kinds = [run.kind for run in world.replicate.runs.values()]
    assert kinds == ["training", "prediction", "training", "prediction"]
    again = world.run(*SHIP, *FILES)
    assert (again.returncode, len(world.replicate.runs)) == (0, 4)


def test_a_picture_of_another_file_is_not_taken_for_a_lost_one(world: World) -> None:
    workflow = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "p"}},
    }
    (world.folder / "w.json").write_text(json.dumps(workflow))
    photo = world.folder / "photo.png"
    photo.write_bytes(b"photo")
    ship = (*SHIP, "--checkpoint", "my.safetensors", "--workflow", "w.json", "--set", "1.image=@photo.png")
    os.utime(photo, (1, 1))
    world.replicate.faults.append(Fault("POST", "/v1/predictions$", problem(500, "oops")))
    assert world.run(*ship).returncode == 1
    os.utime(photo, (2, 2))
    assert world.run(*ship).returncode == 0
    os.utime(photo, (1, 1))
    assert world.run(*ship).returncode == 0
    assert [run.kind for run in world.replicate.runs.values()] == ["training", "prediction", "prediction"]


def test_a_lora_whose_name_is_not_known_is_not_left_out_of_the_picture(world: World) -> None:
    named = "https://civitai.com/models/1234#name=mimi.safetensors"
    done = world.run(*SHIP, "--checkpoint", "my.safetensors", "--lora", named)
    assert done.returncode == 0, done.stderr
    assert '"lora_name": "mimi.safetensors"' in list(world.replicate.runs.values())[-1].inputs["workflow_json"]


def test_a_private_repo_needs_a_token_that_only_reads(world: World) -> None:
    done = world.run(*SHIP, *FILES, HF_READ_TOKEN="")
    assert done.returncode == 1
    assert "HF_READ_TOKEN or with --hf-read-token-file; or make the repo public with --public-repo" in done.stderr
    assert not world.hub.seen
    assert world.run(*SHIP, *FILES, "--public-repo", HF_READ_TOKEN="").returncode == 0
    assert world.hub.repos["me/mine"].visibility == "public"


def test_links_are_taken_as_they_are_and_a_repo_may_be_named(world: World) -> None:
    link = "https://huggingface.co/you/models/blob/main/loras/style.safetensors"
    done = world.run(*SHIP, "--checkpoint", "my.safetensors", "--lora", link, "--repo", "me/weights")
    assert done.returncode == 0, done.stderr
    (request,) = world.replicate.calls("POST", TRAIN)
    assert json.loads(request.body)["input"]["loras"] == link.replace("blob", "resolve")
    assert list(world.hub.repos) == ["me/weights"]
    assert '"lora_name": "style.safetensors"' in list(world.replicate.runs.values())[-1].inputs["workflow_json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--lora", "mimi.safetensors"), "Give one with --checkpoint, or a workflow of your own with --workflow FILE."),
        (("--checkpoint", "nowhere.safetensors"), "There is no file"),
        (("--checkpoint", "my.safetensors", "--lora", "https://civitai.com/models/1234"), "(#name=my.safetensors), or"),
        (("--checkpoint", "my.safetensors", "--workflow", "nowhere.json"), "There is no file"),
        (("--checkpoint", "my.safetensors", "--lora", "https://huggingface.co/me"), "names no file on Hugging Face"),
        (("--checkpoint", "my.safetensors", "--checkpoint", "./my.safetensors"), "Two files would both be"),
    ],
)
def test_what_cannot_end_well_is_not_begun(world: World, arguments: tuple[str, ...], said: str) -> None:
    done = world.run(*SHIP, *arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert not world.hub.seen
    assert not world.replicate.seen


def test_two_at_once_would_pay_twice(world: World) -> None:
    held = world.replicate.hold("POST", "/trainings$")
    assert held.reached is not None
    assert held.let_go is not None
    with world.start(*SHIP, *FILES) as process:
        assert held.reached.wait(LIMIT_S)
        done = world.run(*SHIP, *FILES)
        assert done.returncode == 1
        assert "Another process is shipping with" in done.stderr
        held.let_go.set()
        out, err = process.communicate(timeout=LIMIT_S)
    world.check(out + err)
    assert process.returncode == 0


def test_a_training_that_was_left_for_another_is_gone_on_with_later(world: World) -> None:
    held = world.replicate.hold("GET", r"/v1/trainings/\w+$")
    assert held.reached is not None
    assert held.let_go is not None
    with world.start(*SHIP, *FILES) as process:
        assert held.reached.wait(LIMIT_S)
        process.send_signal(signal.SIGINT)
        held.let_go.set()
        out, err = process.communicate(timeout=LIMIT_S)
    world.check(out + err)
    assert process.returncode == 130
    world.replicate.faults.append(Fault("POST", "/v1/predictions$", problem(500, "oops")))
    other = world.run(*SHIP, "--checkpoint", "my.safetensors")
    assert other.returncode == 1
    assert "The run train0000 goes on at Replicate; scripts/replicate cancel train0000 ends it." in other.stderr
    assert "The run train0001" not in other.stderr
    done = world.run(*SHIP, *FILES)
    assert done.returncode == 0, done.stderr
    assert "going on with the training train0000" in done.stderr
    assert [run.kind for run in world.replicate.runs.values()].count("training") == 2
    # 912.5 s for each training, 10 s for the picture.
    assert "(1835 s of run time" in done.stderr


def test_a_state_that_is_none(world: World) -> None:
    (world.folder / "s.json").write_text("{")
    done = world.run(*SHIP, *FILES, "--state", "s.json")
    assert done.returncode == 1
    assert "cannot be read as the state of a ship" in done.stderr
    for text in ('{"version": 3}', '{"version": 2}', '{"version": 1, "steps": [], "spent": []}', "[]"):
        (world.folder / "s.json").write_text(text)
        assert "is not the state of a ship, format 2" in world.run(*SHIP, *FILES, "--state", "s.json").stderr


def test_a_link_with_a_secret_is_not_written_down(world: World) -> None:
    link = "https://example.com/style.safetensors?token=LINKSECRET#name=style.safetensors"
    assert world.run(*SHIP, "--checkpoint", "my.safetensors", "--lora", link).returncode == 0
    assert "LINKSECRET" not in (world.folder / "data" / "ship" / "me@mine.json").read_text()


def test_a_training_from_before_is_not_taken_for_a_lost_one(world: World) -> None:
    one = ("--checkpoint", "my.safetensors")
    assert world.run(*SHIP, *one).returncode == 0
    (world.folder / "data" / "ship" / "me@mine.json").unlink()
    world.replicate.faults.append(Fault("POST", "/trainings$", problem(500, "oops")))
    assert world.run(*SHIP, *one).returncode == 1
    assert world.run(*SHIP, *one).returncode == 0
    first, *_, second = [run for run in world.replicate.runs.values() if run.kind == "training"]
    assert (first.id != second.id, first.inputs) == (True, second.inputs)


def test_a_training_that_the_account_no_longer_has_is_started_anew(world: World) -> None:
    world.replicate.faults.append(Fault("GET", r"/v1/trainings/\w+$", problem(401, "revoked")))
    assert world.run(*SHIP, *FILES).returncode == 1
    world.replicate.runs.clear()
    assert world.run(*SHIP, *FILES).returncode == 0
    assert [run.kind for run in world.replicate.runs.values()] == ["training", "prediction"]
