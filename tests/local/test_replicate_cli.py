"""scripts/replicate, one command at a time: the real script, the official clients, stand-ins of the services."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfyui.local.replicate.arguments import parse_arguments
from comfyui.settings import PROJECT_ROOT
from tests.local.api_server import ApiServer, Fault, Request
from tests.local.hub_upload_standin import READER, WRITER, HubRepo, refusal
from tests.local.replicate_standin import GOOD, HARDWARE, PICTURE, problem, reply, throttled
from tests.local.replicate_world import BASE_VERSION, LIMIT_S, World, events, result
from tests.weights.samples import safetensors, sha256
from tests.weights.storage_standin import Answer

WORKFLOW = str(PROJECT_ROOT / "examples" / "workflows" / "txt2img_lora.json")
LINK = "https://huggingface.co/me/models/resolve/main/loras/mimi.safetensors"
CIVITAI_LINK = "https://civitai.com/api/download/models/7"
OTHER_LINK = "https://example.com/a.safetensors"
HF_TOKEN, CIVITAI_TOKEN = "huggingface_read_token", "civitai_api_token"
PREDICTION = r"/v1/predictions"
TRAINING = r"/v1/models/me/base/versions/\w+/trainings"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as running:
        yield running


def sent(world: World, pattern: str) -> dict[str, object]:
    """The one request body that was posted to a path."""
    (request,) = world.replicate.calls("POST", pattern)
    body: dict[str, object] = json.loads(request.body)
    return body


# The four known traps


def test_trap_1_the_name_that_looks_right_is_explained_before_anything_is_paid(world: World) -> None:
    done = world.run("train", "--model", "me/base", "--input", f"hf_lora={LINK}", "--input", f"hf_checkpoints={LINK}")
    assert done.returncode == 1
    assert "There is no input 'hf_lora'; did you mean 'loras'?" in done.stderr
    assert "There is no input 'hf_checkpoints'; did you mean 'checkpoints'?" in done.stderr
    assert "The inputs are: checkpoints, loras, upscale_models" in done.stderr
    assert not world.replicate.runs


def test_trap_2_a_blob_link_is_put_right_and_said(world: World) -> None:
    done = world.run("train", "--model", "me/base", "--lora", LINK.replace("resolve", "blob"))
    assert done.returncode == 0, done.stderr
    blob = LINK.replace("resolve", "blob")
    assert f"{blob} is a web page about the file; fetching {LINK} instead." in done.stderr
    assert sent(world, TRAINING)["input"] == {"loras": LINK, "huggingface_read_token": READER}


def test_trap_3_json_that_was_escaped_twice_is_understood_and_said(world: World) -> None:
    text = Path(WORKFLOW).read_text()
    (world.folder / "twice.json").write_text(json.dumps(text))
    done = world.run("predict", "--model", "me/base", "twice.json", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "escaped once more than it should be (a JSON text that holds JSON)" in done.stderr
    inputs = sent(world, PREDICTION)["input"]
    assert isinstance(inputs, dict)
    assert json.loads(inputs["workflow_json"]) == json.loads(text)


def test_trap_4_nothing_waits_inside_a_request_and_a_cold_start_is_no_failure(world: World) -> None:
    # Longer than any one request: what gives up is Prefer: wait, which World.check looks for in every test.
    world.replicate.prediction_stages = [("starting", "")] * 10 + world.replicate.prediction_stages
    done = world.run("predict", "--model", "me/base", WORKFLOW, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert len(world.replicate.calls("GET", r"/v1/predictions/\w+")) > 10
    assert "`Prefer: wait` is never\n  used: it gives up after 60 s" in world.run("predict", "--help").stdout


# upload


def test_upload_prints_links_with_their_commits_and_sends_nothing_twice(world: World) -> None:
    arguments = ("upload", "--repo", "me/models", "--lora", "mimi.safetensors", "--checkpoint", "my.safetensors")
    done = world.run(*arguments, "--json")
    assert done.returncode == 0, done.stdout
    checkpoint, lora = result(done)["files"]
    assert checkpoint["path"] == "checkpoints/my.safetensors"
    assert lora["sha256"] == sha256(safetensors(2, size=5000))
    commit = world.hub.repos["me/models"].commits[-1][0]
    assert lora["url"] == f"{world.hub.url}/me/models/resolve/{commit}/loras/mimi.safetensors"
    assert world.hub.repos["me/models"].visibility == "private"
    assert world.storage.objects[lora["sha256"]] == safetensors(2, size=5000)
    again = world.run(*arguments)
    assert again.returncode == 0
    assert again.stdout.splitlines()[-1].endswith("/loras/mimi.safetensors")
    assert "is in me/models already, with the same SHA-256" in again.stderr
    assert len(world.storage.calls("PUT", ".*")) == 2


def test_an_upload_that_was_interrupted_goes_on_with_the_missing_file(world: World) -> None:
    arguments = ("upload", "--repo", "me/models", "--checkpoint", "my.safetensors", "--lora", "mimi.safetensors")
    held = world.storage.hold("PUT", f"{sha256(safetensors(2, size=5000))}", drop=True)
    with world.start(*arguments) as process:
        assert held.reached is not None
        assert held.let_go is not None
        assert held.reached.wait(LIMIT_S)
        process.send_signal(signal.SIGINT)
        held.let_go.set()
        out, err = process.communicate(timeout=LIMIT_S)
    world.check(out + err)
    assert process.returncode == 130
    assert world.run(*arguments).returncode == 0
    first = sha256(safetensors(1))
    assert len(world.storage.calls("PUT", f"/repos/{first}")) == 1
    assert len(world.hub.calls("POST", "/api/models/me/models/commit/main")) == 2


def test_a_file_that_is_cut_is_not_uploaded(world: World) -> None:
    (world.folder / "cut.safetensors").write_bytes(safetensors(3)[:-1])
    done = world.run("upload", "--repo", "me/models", "--lora", "mimi.safetensors", "--lora", "cut.safetensors")
    assert done.returncode == 1
    assert f"{world.folder / 'cut.safetensors'} was not uploaded." in done.stderr
    assert not world.hub.seen


def test_bytes_that_the_hub_does_not_have_after_all_are_noticed(world: World) -> None:
    world.storage.mangle = True
    done = world.run("upload", "--repo", "me/models", "--lora", "mimi.safetensors")
    assert done.returncode == 1
    assert "Hugging Face" in done.stderr
    assert len(world.hub.repos["me/models"].commits) == 1


@pytest.mark.parametrize(("token", "said"), [(READER, "(403"), ("hf_wrong", "(401"), ("", "export HF_TOKEN=")])
def test_a_token_that_may_not_upload(world: World, token: str, said: str) -> None:
    done = world.run("upload", "--repo", "me/models", "--lora", "mimi.safetensors", HF_TOKEN=token)
    assert done.returncode == 1
    assert said in done.stderr
    assert "https://huggingface.co/settings/tokens" in done.stderr


def test_a_token_that_the_hub_quotes_is_taken_out_before_its_words_are_cut(world: World) -> None:
    world.hub.faults.append(Fault("POST", "/api/repos/create", refusal(403, f"{'no ' * 163}{WRITER}")))
    done = world.run("upload", "--repo", "me/models", "--lora", "mimi.safetensors")
    assert done.returncode == 1
    assert "no no" in done.stderr
    assert WRITER[:5] not in done.stderr


def test_a_public_repo_gets_nothing_by_accident(world: World) -> None:
    world.hub.repos["me/models"] = HubRepo("public")
    done = world.run("upload", "--repo", "me/models", "--lora", "mimi.safetensors")
    assert done.returncode == 1
    assert "me/models is there already and public, so everybody could read the files" in done.stderr
    assert not world.storage.seen
    assert world.run("upload", "--repo", "me/models", "--lora", "mimi.safetensors", "--public").returncode == 0


def test_two_files_of_one_name(world: World) -> None:
    done = world.run("upload", "--repo", "me/models", "--lora", "mimi.safetensors", "--lora", "./mimi.safetensors")
    assert done.returncode == 1
    assert "Two files would both be loras/mimi.safetensors" in done.stderr
    assert not world.hub.seen


# create


def test_create_makes_a_private_model_on_a_t4(world: World) -> None:
    done = world.run("create", "me/new")
    assert (done.returncode, done.stdout) == (0, "https://replicate.com/me/new\n")
    expected = {"owner": "me", "name": "new", "visibility": "private", "hardware": "gpu-t4"}
    assert sent(world, "/v1/models") == expected
    again = world.run("create", "me/new", "--json")
    assert again.returncode == 0
    assert result(again)["new"] is False
    assert len(world.replicate.calls("POST", "/v1/models")) == 1


def test_a_wrong_sku_is_answered_with_the_right_ones_and_their_prices(world: World) -> None:
    done = world.run("create", "me/new", "--hardware", "gpu-a40-large")
    assert done.returncode == 1
    assert "no hardware 'gpu-a40-large' for your models (- hardware: invalid SKU)" in done.stderr
    assert re.search(r"^  gpu-t4 +Nvidia T4 GPU  \$0\.000225 a second \(as of \d{4}\)$", done.stderr, re.MULTILINE)
    assert all(sku in done.stderr for sku in HARDWARE)


def test_another_refusal_is_passed_on(world: World) -> None:
    world.replicate.faults.append(Fault("POST", "/v1/models$", problem(422, "name: \x1b[31mis reserved")))
    done = world.run("create", "me/new")
    assert done.returncode == 1
    assert "422: name: is reserved." in done.stderr


# train


def test_train_follows_its_log_and_prints_the_version(world: World) -> None:
    done = world.run("train", "--model", "me/base", "--lora", LINK, "--lora", LINK.replace("mimi", "b"), "--vae", LINK)
    assert done.returncode == 0, done.stderr
    (run,) = world.replicate.runs.values()
    assert done.stdout == f"{run.output['version']}\n"
    assert re.search(
        "starting.*processing.*baking 2 files.*50 %.*succeeded.*baking took 13.0 s", done.stderr, re.DOTALL
    )
    assert done.stderr.count("baking 2 files") == 1
    assert "about $0.21 (912 s of run time × $0.000225, gpu-t4, as of" in done.stderr
    body = sent(world, TRAINING)
    assert body["destination"] == "me/base"
    assert body["input"] == {
        "loras": f"{LINK}\n{LINK.replace('mimi', 'b')}",
        "vaes": LINK,
        "huggingface_read_token": READER,
    }


@pytest.mark.parametrize(
    ("arguments", "taken"),
    [
        (["--lora", LINK], {HF_TOKEN}),
        (["--lora", CIVITAI_LINK], {CIVITAI_TOKEN}),
        (["--lora", CIVITAI_LINK, "--vae", "hf://me/models/vae.safetensors"], {HF_TOKEN, CIVITAI_TOKEN}),
        (["--lora", OTHER_LINK], set()),
        (["--lora", OTHER_LINK, "--input", f"existing_lora={LINK}"], {HF_TOKEN}),
    ],
)
def test_a_training_takes_along_the_tokens_of_the_sites_it_is_sent_to_and_no_other(
    world: World, arguments: list[str], taken: set[str]
) -> None:
    done = world.run("train", "--model", "me/base", *arguments, CIVITAI_TOKEN="civitai-SECRET")
    assert done.returncode == 0, done.stderr
    inputs = sent(world, TRAINING)["input"]
    assert isinstance(inputs, dict)
    assert {name for name in inputs if name.endswith("_token")} == taken


def test_lists_among_the_other_inputs_are_judged_as_all_links(world: World) -> None:
    blob = LINK.replace("resolve", "blob")
    done = world.run("train", "--model", "me/base", "--lora", OTHER_LINK, "--input", f"loras={blob}")
    assert done.returncode == 0, done.stderr
    assert sent(world, TRAINING)["input"] == {"loras": f"{OTHER_LINK}\n{LINK}", HF_TOKEN: READER}
    assert "not a link" in world.run("train", "--model", "me/base", "--input", "vaes=not a link").stderr


class TrainServer(ApiServer):
    """A Cog server of somebody's own: it says that all went well, and gives a tar in its answer."""

    def answer(self, request: Request) -> Answer:
        tar = base64.b64encode(b"x" * 5000).decode()
        return reply({"id": "x", "status": "succeeded", "output": f"data:application/x-tar;base64,{tar}"})


@pytest.mark.parametrize(("link", "taken"), [(LINK, {HF_TOKEN}), (OTHER_LINK, set())])
def test_a_server_of_ones_own_gets_the_tokens_that_it_needs_and_its_tar_is_saved(
    world: World, link: str, taken: set[str]
) -> None:
    with TrainServer() as server:
        done = world.run("train", "--local", server.url, "--lora", link, "--out", "out", CIVITAI_TOKEN="civitai-SECRET")
        (request,) = server.seen
    assert done.returncode == 0, done.stderr
    assert {name for name in json.loads(request.body)["input"] if name.endswith("_token")} == taken
    assert Path(done.stdout.strip()).read_bytes() == b"x" * 5000


def test_a_token_for_a_training_is_not_sent_in_the_clear(world: World) -> None:
    arguments = ("train", "--local", "http://127.0.0.1.example:9", "--lora")
    done = world.run(*arguments, LINK)
    assert done.returncode == 1
    assert f"{HF_TOKEN} was not sent: over http:// everybody on the way could read it." in done.stderr
    assert "was not sent" not in world.run(*arguments, OTHER_LINK).stderr


def test_train_as_json_tells_how_far_it_is(world: World) -> None:
    done = world.run("train", "--model", "me/base", "--lora", LINK, "--json", "--price", "0.001")
    found = events(done)
    assert [event["status"] for event in found if event["event"] == "status"] == ["starting", "processing", "succeeded"]
    assert [event["percent"] for event in found if event["event"] == "progress"] == [50]
    assert "about $0.91 (912 s of run time × $0.001000, gpu-t4, by --price)" in found[-2]["text"]
    assert result(done)["seconds"] == 912.5


def test_a_training_that_fails_says_why(world: World) -> None:
    world.replicate.training_stages = [("starting", ""), ("failed", "fetching\n")]
    held = world.replicate.hold("GET", r"/v1/trainings/\w+$")
    with world.start("train", "--model", "me/base", "--lora", LINK) as process:
        assert held.reached is not None
        assert held.let_go is not None
        assert held.reached.wait(LIMIT_S)
        next(iter(world.replicate.runs.values())).error = "The link\x1b[2J gave\nnothing."
        held.let_go.set()
        out, err = process.communicate(timeout=LIMIT_S)
    world.check(out + err)
    assert process.returncode == 1
    assert "The training train0000 failed. The link gave\nnothing." in err


def test_a_training_that_names_no_version_is_no_success(world: World) -> None:
    world.replicate.names_no_version = True
    done = world.run("train", "--model", "me/base", "--lora", LINK)
    assert (done.returncode, done.stdout) == (1, "")
    assert "The training train0000 succeeded, and names no version" in done.stderr


def test_images_are_uploaded_for_a_training_that_takes_them(world: World) -> None:
    (world.folder / "images.zip").write_bytes(b"PK zip")
    done = world.run("train", "--model", "me/base", "--images", "images.zip")
    takes_images = "training_images" in (PROJECT_ROOT / "train.py").read_text()
    if not takes_images:
        assert done.returncode == 1
        assert "There is no input 'training_images'" in done.stderr
        assert not world.replicate.files
        return
    assert done.returncode == 0, done.stderr
    inputs = sent(world, TRAINING)["input"]
    assert inputs == {"training_images": f"{world.replicate.url}/v1/files/file0000"}
    assert world.replicate.files == {"file0000": b"PK zip"}


def test_there_must_be_something_to_train_with_and_a_version_to_train(world: World) -> None:
    assert "nothing to train with" in world.run("train", "--model", "me/base").stderr
    assert "There is no model me/nowhere" in world.run("train", "--model", "me/nowhere", "--lora", LINK).stderr
    world.replicate.add_model("me/empty")
    done = world.run("train", "--model", "me/empty", "--lora", LINK)
    assert "has no version yet. Push this project to it: scripts/replicate push me/empty" in done.stderr


def test_ctrl_c_leaves_a_training_running_and_status_goes_on(world: World) -> None:
    held = world.replicate.hold("GET", r"/v1/trainings/\w+$")
    with world.start("train", "--model", "me/base", "--lora", LINK) as process:
        assert held.reached is not None
        assert held.let_go is not None
        assert held.reached.wait(LIMIT_S)
        process.send_signal(signal.SIGINT)
        held.let_go.set()
        out, err = process.communicate(timeout=LIMIT_S)
    world.check(out + err)
    assert process.returncode == 130
    assert "scripts/replicate status train0000 --follow goes on" in err
    assert not world.replicate.calls("POST", ".*/cancel")
    done = world.run("status", "train0000", "--follow")
    assert done.returncode == 0
    assert world.replicate.runs["train0000"].output["version"] in done.stdout


# predict


def test_predict_sends_what_was_changed_and_saves_what_was_made(world: World) -> None:
    overrides = ("6.seed=5", "3.text=a red fox, 4k", "--set", "2.lora_name=mimi.safetensors")
    done = world.run(
        "predict", "--model", "me/base", WORKFLOW, *overrides, "--out", "out", "--input", "output_format=png"
    )
    assert done.returncode == 0, done.stderr
    body = sent(world, PREDICTION)
    assert body["version"] == BASE_VERSION
    assert isinstance(body["input"], dict)
    workflow = json.loads(body["input"].pop("workflow_json"))
    assert body["input"] == {"output_format": "png", "randomise_seeds": False}
    assert (workflow["6"]["inputs"]["seed"], workflow["3"]["inputs"]["text"]) == (5, "a red fox, 4k")
    assert workflow["2"]["inputs"]["lora_name"] == "mimi.safetensors"
    assert done.stdout == f"{world.out / 'out-0.webp'}\n"
    assert (world.out / "out-0.webp").read_bytes() == PICTURE
    assert "A seed is set by hand, so randomise_seeds is false." in done.stderr
    assert " 50%|█████     | 4/8 Sampler, step 9 of 20" in done.stderr


def test_outputs_may_be_objects_and_overwrite_nothing(world: World) -> None:
    world.replicate.as_objects = True
    world.replicate.outputs.append(world.delivery.put("/xezq/def/..%2Fout-0.webp", b"second"))
    world.out.mkdir()
    (world.out / "out-0.webp").write_bytes(b"mine")
    done = world.run("predict", "--model", f"me/base:{BASE_VERSION}", WORKFLOW, "--out", "out", "--json")
    assert done.returncode == 0, done.stdout
    assert result(done)["files"] == [str(world.out / "out-0-2.webp"), str(world.out / "out-0-3.webp")]
    found = [(world.out / name).read_bytes() for name in ("out-0.webp", "out-0-2.webp", "out-0-3.webp")]
    assert found == [b"mine", PICTURE, b"second"]
    assert len(list(world.out.iterdir())) == 3


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("66.seed=5", "The workflow has no node '66'"),
        ("sampler.seed=5", "did you mean 6.seed of 'Sampler' (KSampler)?"),
        ("6.sead=5", "Node 6 'Sampler' (KSampler) has no input 'sead'; did you mean 6.seed?"),
        ("seed=5", "'seed' does not name an input; write NODE.INPUT=VALUE, as in 3.seed=5."),
        ("6.seed", "'6.seed' is not NAME=VALUE."),
        ("3.text=@nowhere.txt", "there is no file"),
    ],
)
def test_an_override_that_has_no_place_is_explained(world: World, override: str, said: str) -> None:
    done = world.run("predict", "--model", "me/base", WORKFLOW, override)
    assert done.returncode == 1
    assert said in done.stderr
    assert not world.replicate.seen


def test_files_of_overrides_travel_in_one_zip_under_names_of_their_own(world: World) -> None:
    for folder, body in (("a", b"first"), ("b", b"second")):
        (world.folder / folder).mkdir()
        (world.folder / folder / "photo.png").write_bytes(body)
    workflow = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "y.png"}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "p"}},
    }
    (world.folder / "w.json").write_text(json.dumps(workflow))
    done = world.run(
        "predict", "--model", "me/base", "w.json", "1.image=@a/photo.png", "2.image=@b/photo.png", "--out", "out"
    )
    assert done.returncode == 0, done.stderr
    inputs = sent(world, PREDICTION)["input"]
    assert isinstance(inputs, dict)
    assert inputs["input_file"] == f"{world.replicate.url}/v1/files/file0000"
    sent_workflow = json.loads(inputs["workflow_json"])
    names = [sent_workflow[node]["inputs"]["image"] for node in ("1", "2")]
    with zipfile.ZipFile(io.BytesIO(world.replicate.files["file0000"])) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {names[0]: b"first", names[1]: b"second"}
    done = world.run("predict", "--model", "me/base", "w.json", "--input-file", "a/photo.png", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert world.replicate.files["file0001"] == b"first"


def test_a_workflow_in_ui_format_goes_as_it_is_and_has_no_names(world: World) -> None:
    ui = {"nodes": [{"id": 1, "type": "SaveImage"}], "links": [], "version": 0.4}
    (world.folder / "ui.json").write_text(json.dumps(ui))
    assert world.run("predict", "--model", "me/base", "ui.json", "--out", "out").returncode == 0
    inputs = sent(world, PREDICTION)["input"]
    assert isinstance(inputs, dict)
    assert json.loads(inputs["workflow_json"]) == ui
    done = world.run("predict", "--model", "me/base", "ui.json", "1.seed=5")
    assert "scripts/workflow convert FILE" in done.stderr


def test_an_input_that_a_prediction_does_not_have_is_named(world: World) -> None:
    (world.folder / "photo.png").write_bytes(b"x")
    arguments = ("--input", "output_fromat=png", "--input-file", "photo.png")
    done = world.run("predict", "--model", "me/base", WORKFLOW, *arguments)
    assert "There is no input 'output_fromat'; did you mean 'output_format'?" in done.stderr
    assert not world.replicate.files


def test_ctrl_c_cancels_a_prediction(world: World) -> None:
    held = world.replicate.hold("GET", r"/v1/predictions/\w+$")
    with world.start("predict", "--model", "me/base", WORKFLOW, "--json") as process:
        assert held.reached is not None
        assert held.let_go is not None
        assert held.reached.wait(LIMIT_S)
        process.send_signal(signal.SIGINT)
        held.let_go.set()
        out, err = process.communicate(timeout=LIMIT_S)
    world.check(out + err)
    assert process.returncode == 130
    assert json.loads(out.splitlines()[-1])["error"] == "Interrupted"
    (run,) = world.replicate.runs.values()
    assert run.status == "canceled"


def interrupted_at(held: Fault, world: World, *arguments: str) -> str:
    """Press Ctrl-C while the server holds an answer back, until the command has ended; returns what it said."""
    with world.start(*arguments) as process:
        assert held.reached is not None
        assert held.let_go is not None
        assert held.reached.wait(LIMIT_S)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=LIMIT_S)
        held.let_go.set()
    world.check(out + err)
    assert process.returncode == 130
    return err


def test_ctrl_c_while_a_prediction_is_asked_for_finds_and_cancels_it(world: World) -> None:
    assert world.run("predict", "--model", "me/base", WORKFLOW, "--out", "out").returncode == 0
    held = world.replicate.hold("POST", f"{PREDICTION}$", done_first=True)
    err = interrupted_at(held, world, "predict", "--model", "me/base", WORKFLOW)
    assert "Canceling the prediction predi0001" in err
    assert [run.status for run in world.replicate.runs.values()] == ["succeeded", "canceled"]


@pytest.mark.parametrize("held_at", [f"{PREDICTION}$", rf"{PREDICTION}/\w+$"])
def test_a_cancel_that_is_refused_is_said_and_changes_no_exit_code(world: World, held_at: str) -> None:
    method = "POST" if held_at.endswith("s$") else "GET"
    held = world.replicate.hold(method, held_at, done_first=True)
    world.replicate.faults.append(Fault("POST", "/cancel$", problem(500, "oops")))
    err = interrupted_at(held, world, "predict", "--model", "me/base", WORKFLOW)
    assert "The prediction predi0000 may go on; scripts/replicate cancel predi0000 ends it." in err


def test_ctrl_c_before_a_prediction_arrived_says_where_to_look(world: World) -> None:
    # The same, but another command's.
    assert world.run("predict", "--model", "me/base", WORKFLOW, "--no-wait").returncode == 0
    held = world.replicate.hold("POST", f"{PREDICTION}$", drop=True)
    err = interrupted_at(held, world, "predict", "--model", "me/base", WORKFLOW)
    assert "No prediction of this command is listed." in err
    (other,) = world.replicate.runs.values()
    assert other.status == "starting"


NOT_LOST = "The run {0} is not lost: scripts/replicate status {0} --follow goes on."


@pytest.mark.parametrize(
    ("run_id", "arguments"),
    [
        ("predi0000", ("predict", "--model", "me/base", WORKFLOW, "--out", "out")),
        ("train0000", ("train", "--model", "me/base", "--lora", LINK)),
    ],
)
def test_a_run_that_is_lost_sight_of_is_not_started_again(
    world: World, run_id: str, arguments: tuple[str, ...]
) -> None:
    # The first is the look of `status`, at a run of the other kind.
    polled = rf"/v1/(training|prediction)s/{run_id}$"
    world.replicate.faults.append(Fault("GET", polled, problem(401, "revoked")))
    done = world.run(*arguments)
    assert done.returncode == 1
    assert NOT_LOST.format(run_id) in done.stderr
    status = ("status", run_id, "--follow", "--out", "out")
    asked_first = [Fault("GET", polled, problem(404, "no"))] if run_id.startswith("predi") else []
    found = Fault("GET", polled, done_first=True)
    world.replicate.faults += [*asked_first, found, Fault("GET", polled, problem(401, "revoked"))]
    again = world.run(*status, "--json")
    assert NOT_LOST.format(run_id) in events(again)[-1]["message"]
    assert world.run(*status).returncode == 0
    assert list(world.replicate.runs) == [run_id]


def test_outputs_that_cannot_be_saved_are_fetched_by_the_id_of_their_run(world: World) -> None:
    faulty = world.replicate.outputs
    world.replicate.outputs = ["http://127.0.0.1:9/out.webp"]
    done = world.run("predict", "--model", "me/base", WORKFLOW, "--out", "out")
    assert done.returncode == 1
    assert NOT_LOST.format("predi0000") in done.stderr
    world.replicate.runs["predi0000"].output = faulty
    assert world.run("status", "predi0000", "--follow", "--out", "out").returncode == 0


@pytest.mark.parametrize("out", ["taken", "taken/below"])
def test_a_folder_that_takes_no_files_is_refused_before_a_run_is_paid_for(world: World, out: str) -> None:
    (world.folder / "taken").write_bytes(b"a file")
    done = world.run("predict", "--model", "me/base", WORKFLOW, "--out", out)
    assert done.returncode == 1
    assert f"No file can be written into {world.folder / out}: " in done.stderr
    assert "Name another folder with --out." in done.stderr
    assert not world.replicate.runs


def test_a_prediction_that_nobody_waits_for_is_looked_at_later(world: World) -> None:
    done = world.run("predict", "--model", "me/base", WORKFLOW, "--no-wait")
    run_id = done.stdout.strip()
    assert run_id in world.replicate.runs
    assert "processing" in world.run("status", run_id).stdout
    followed = world.run("status", run_id, "--follow", "--out", "out")
    assert followed.stdout == f"{world.out / 'out-0.webp'}\n"
    assert world.delivery.url in world.run("status", run_id).stdout


def test_an_output_that_is_gone_says_so(world: World) -> None:
    world.delivery.files.clear()
    done = world.run("predict", "--model", "me/base", WORKFLOW, "--out", "out")
    assert done.returncode == 1
    assert "the server answered 404. Replicate keeps outputs for about an hour" in done.stderr
    assert list(world.out.iterdir()) == []


def test_a_prediction_whose_data_was_removed_meanwhile_says_so(world: World) -> None:
    run_id = world.run("predict", "--model", "me/base", WORKFLOW, "--no-wait").stdout.strip()
    assert world.run("status", run_id, "--follow", "--out", "out").returncode == 0
    world.replicate.runs[run_id].data_removed = True
    done = world.run("status", run_id, "--follow", "--out", "out")
    assert (done.returncode, done.stdout) == (1, "")
    assert "There is no file in the output. Replicate keeps outputs for about an hour" in done.stderr


# cancel, versions, status


def test_cancel_ends_a_run_of_either_kind(world: World) -> None:
    training = world.run("train", "--model", "me/base", "--lora", LINK, "--no-wait").stdout.strip()
    prediction = world.run("predict", "--model", "me/base", WORKFLOW, "--no-wait").stdout.strip()
    assert world.run("cancel", training).stdout == f"training {training}: canceled\n"
    assert result(world.run("cancel", prediction, "--json"))["status"] == "canceled"
    again = world.run("cancel", training)
    assert (again.returncode, "nothing to cancel" in again.stderr) == (0, True)
    done = world.run("cancel", "nowhere")
    assert (done.returncode, "404" in done.stderr) == (1, True)
    done = world.run("cancel", "../models/me/base")
    assert "is not the id of a training or prediction" in done.stderr


def test_versions_newest_first(world: World) -> None:
    world.replicate.add_model("me/two", "1" * 64, "2" * 64)
    lines = world.run("versions", "me/two").stdout.splitlines()
    assert [line[:3] for line in lines] == ["222", "111"]
    world.replicate.add_model("me/none")
    done = world.run("versions", "me/none")
    assert (done.returncode, done.stdout) == (0, "")
    assert "has no version yet" in done.stderr


# What may go wrong with any of them


def test_a_wrong_token_and_none(world: World) -> None:
    done = world.run("versions", "me/base", REPLICATE_API_TOKEN="r8_wrong")
    assert done.returncode == 1
    assert "401: You did not pass a valid authentication token. Make a token at" in done.stderr
    assert "r8_wrong" not in done.stderr
    done = world.run("versions", "me/base", REPLICATE_API_TOKEN="")
    assert "export REPLICATE_API_TOKEN=… or use --token-file FILE" in done.stderr


def test_a_token_from_a_file(world: World) -> None:
    (world.folder / "token").write_text(f"{GOOD}\n")
    assert world.run("versions", "me/base", "--token-file", "token", REPLICATE_API_TOKEN="").returncode == 0
    (world.folder / "token").write_bytes(b"\xff" + GOOD.encode())
    done = world.run("versions", "me/base", "--token-file", "token", REPLICATE_API_TOKEN="")
    assert f"The token in the file {world.folder / 'token'} cannot be read" in done.stderr
    (world.folder / "token").write_text(f"{GOOD} {WRITER}")
    assert "has a space" in world.run("versions", "me/base", "--token-file", "token").stderr


def test_a_throttled_prediction_waits_as_long_as_it_is_told(world: World) -> None:
    world.replicate.faults.append(Fault("POST", PREDICTION, throttled(1)))
    done = world.run("predict", "--model", "me/base", WORKFLOW, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "Replicate answers 429; trying again in 1 s" in done.stderr
    assert len(world.replicate.runs) == 1


def test_polling_survives_a_bad_network(world: World) -> None:
    run = r"/v1/predictions/\w+$"
    world.replicate.faults += [
        Fault("GET", run, problem(500, "oops"), times=2),
        Fault("GET", run, drop=True, times=2),
        Fault("GET", run, problem(503, "down")),
    ]
    done = world.run("predict", "--model", "me/base", WORKFLOW, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "Replicate answers 500; trying again in" in done.stderr
    assert "No answer from Replicate" in done.stderr


def test_a_post_whose_answer_is_lost_is_not_sent_again(world: World) -> None:
    world.replicate.faults.append(Fault("POST", PREDICTION, drop=True, done_first=True))
    done = world.run("predict", "--model", "me/base", WORKFLOW)
    assert done.returncode == 1
    assert "It may have arrived all the same: look at https://replicate.com/predictions" in done.stderr
    assert len(world.replicate.runs) == 1


def test_nobody_there(world: World) -> None:
    done = world.run("versions", "me/base", REPLICATE_BASE_URL="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "Replicate did not answer GET /v1/models/me/base/versions: ConnectError." in done.stderr


def test_a_poll_interval_that_is_none(world: World) -> None:
    done = world.run("versions", "me/base", REPLICATE_POLL_INTERVAL="soon")
    assert "REPLICATE_POLL_INTERVAL is 'soon'; set it to a number of seconds above 0." in done.stderr


def test_a_token_is_not_sent_in_the_clear(world: World) -> None:
    done = world.run("versions", "me/base", REPLICATE_BASE_URL="http://replicate.example")
    assert done.returncode == 1
    assert "a token is only sent over https" in done.stderr


# usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "COMMAND"),
        (("shipp",), "shipp"),
        (("upload", "--repo", "me/x"), "name at least one file"),
        (("upload", "--lora", "x"), "--repo"),
        (("ship", "--lora", "x"), "--model"),
        (("train", "--lora", "x"), "--local URL"),
        (("predict", "w.json"), "--local URL"),
        (("status",), "ID"),
    ],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["", "ship", "upload", "create", "push", "train", "predict", "status", "cancel", "versions"]
)
def test_help_teaches_with_an_example_and_the_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments([*filter(None, [command]), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "130  stopped by Ctrl-C" in text
    if command:
        assert re.search(r"^examples?:\n  scripts/replicate ", text, re.MULTILINE)
    if command in ("", "ship", "upload", "train"):
        assert "There is no flag for a token itself" in text
