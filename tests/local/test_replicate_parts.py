"""The parts of scripts/replicate that need no service: following, outputs, workflows, prices, state, links."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.errors import DownloadError, RequestError, TrainingInputError
from comfyui.local.replicate.api import Run, Version, model_name, split_name
from comfyui.local.replicate.arguments import Options
from comfyui.local.replicate.failures import RunError, ServiceError
from comfyui.local.replicate.follow import MAX_POLL_S, RunView, follow, need_success, percent_of
from comfyui.local.replicate.outputs import GoneError, output_urls, save_outputs
from comfyui.local.replicate.paid_runs import not_lost
from comfyui.local.replicate.prices import cost_text
from comfyui.local.replicate.runs import MAX_LOCAL_BYTES, as_data_uri
from comfyui.local.replicate.state import ShipState, state_path
from comfyui.local.replicate.training_inputs import judge_links
from comfyui.local.replicate.workflow_inputs import prepare_workflow
from comfyui.settings import Settings
from comfyui.weights.sources import Kind
from tests.weights.file_server import FileServer
from tests.weights.samples import sha256

# Following a run


class Told(RunView):
    """Writes down what it would show."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        super().__init__(as_json=False, err=io.StringIO())

    def _emit(self, line: str, **facts: object) -> None:
        self.lines.append(line)


def followed(*states: tuple[str, str]) -> tuple[list[str], list[float]]:
    """What is shown of a training with these statuses and logs, and how long is waited between them."""
    runs = [Run("training", "t", status, logs=logs) for status, logs in states]
    rest = iter(runs[1:])
    view, waits, now = Told(), [], 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        waits.append(seconds)

    end = follow(runs[0], lambda _id: next(rest), view, first_wait_s=1.0, sleep=sleep, clock=lambda: now)
    assert end is runs[-1]
    return view.lines, waits


def test_each_line_is_shown_once_and_only_when_it_is_whole() -> None:
    lines, _ = followed(
        ("starting", ""), ("processing", "one\ntw"), ("processing", "one\ntwo\n"), ("succeeded", "one\ntwo\nthree")
    )
    assert lines == [
        "training t: starting",
        "training t: processing",
        "  one",
        "  two",
        "training t: succeeded",
        "  three",
    ]


def test_waits_grow_while_nothing_changes_and_begin_again_when_something_does() -> None:
    _, waits = followed(*[("processing", "")] * 12, ("processing", "a\n"), ("processing", "a\n"), ("succeeded", ""))
    assert waits[0] == 1.0
    assert waits[:12] == sorted(waits[:12])
    assert max(waits) == MAX_POLL_S["training"]
    assert waits[12] == 1.0


def test_a_cold_start_is_explained_once_and_only_when_it_is_one() -> None:
    lines, _ = followed(*[("starting", "")] * 20, ("succeeded", ""))
    assert sum("A cold start can take minutes" in line for line in lines) == 1
    lines, _ = followed(("starting", ""), ("starting", ""), ("succeeded", ""))
    assert not any("cold start" in line for line in lines)


@pytest.mark.parametrize(
    ("line", "percent"),
    [
        (" 45%|████▌     | 9/20 Sampler, step 3 of 20", 45),
        ("100%|██████████| 8/8 done", 100),
        ("baking: 600.0 MB (50 %), 90.0 MB/s", 50),
        ("fetched 45% of it", None),
        ("999%|█| 1/1", 100),
        ("", None),
    ],
)
def test_percent(line: str, percent: int | None) -> None:
    assert percent_of(line) == percent


def test_the_official_client_reads_the_same_lines() -> None:
    from replicate.prediction import Prediction

    logs = "x\n 45%|████▌     | 9/20 Sampler\n"
    found = Prediction.Progress.parse(logs)
    assert found is not None
    assert int(found.percentage * 100) == percent_of(logs.splitlines()[-1])


@pytest.mark.parametrize(("status", "said"), [("failed", "failed. No.\nWhy?"), ("canceled", "was canceled.")])
def test_a_run_that_did_not_succeed(status: str, said: str) -> None:
    with pytest.raises(RunError) as caught:
        need_success(Run("prediction", "p", status, error="\x1b[2JNo.\nWhy?"))
    assert said in str(caught.value)
    assert (caught.value.run_id, caught.value.status) == ("p", status)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_draws_progress_over_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "30")
    screen = Terminal()
    view = RunView(as_json=False, err=screen)
    view.log(" 12%|█▏        | 1/8 A node with a long name")
    view.log(" 50%|█████     | 4/8 B")
    view.log("plain")
    shown = screen.getvalue()
    assert shown.count("\n") == 1
    assert all(len(piece) < 30 for piece in shown.split("\r"))
    assert shown.endswith("\r  plain\n")


# Outputs


@pytest.mark.parametrize(
    ("output", "urls"),
    [
        (None, []),
        ("https://a/1", ["https://a/1"]),
        (["https://a/1", {"url": "https://a/2"}, ["https://a/3"]], ["https://a/1", "https://a/2", "https://a/3"]),
        ({"images": ["https://a/1"], "text": {"url": "https://a/2"}}, ["https://a/1", "https://a/2"]),
        ([None, 3], []),
    ],
)
def test_entries_may_be_strings_or_objects(output: object, urls: list[str]) -> None:
    assert output_urls(output) == urls


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        yield running


def test_names_from_elsewhere_stay_in_the_folder(server: FileServer, settings: Settings, tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    urls = [server.put(path, b"x") for path in ("/a/..%2F..%2Fevil.png", "/a/", "/.hidden", "/a/b.png")]
    saved = save_outputs(urls, out, settings)
    assert [path.relative_to(out).as_posix() for path in saved] == ["evil.png", "output-1", "hidden", "b.png"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b.png", "evil.png", "hidden", "out", "output-1"]


def test_a_file_that_is_cut_gets_no_name(server: FileServer, settings: Settings, tmp_path: Path) -> None:
    url = server.put("/a.png", b"x" * 5000, cut_after=3000)
    with pytest.raises(DownloadError):
        save_outputs([url], tmp_path, settings)
    assert list(tmp_path.iterdir()) == []


def test_private_addresses_are_refused_unless_allowed(
    server: FileServer, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    with pytest.raises(DownloadError):
        save_outputs(server.put("/a.png", b"x"), tmp_path, make_settings(allow_private_urls=False))
    assert server.seen == []


def test_data_uris(settings: Settings, tmp_path: Path) -> None:
    uri = f"data:image/png;base64,{base64.b64encode(b'x').decode()}"
    saved = save_outputs([uri, uri], tmp_path, settings)
    assert [path.name for path in saved] == ["output.png", "output-2.png"]
    with pytest.raises(DownloadError):
        save_outputs("data:image/png;base64,!", tmp_path, settings)


def test_a_file_that_is_too_large_for_a_request_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"x")
    assert as_data_uri(tmp_path / "photo.png") == f"data:image/png;base64,{base64.b64encode(b'x').decode()}"
    with (tmp_path / "large.zip").open("wb") as file:
        file.truncate(MAX_LOCAL_BYTES + 1)
    with pytest.raises(RequestError, match=r"large\.zip has 70000001 bytes, and a server of your own takes up to"):
        as_data_uri(tmp_path / "large.zip")


# Workflows


def prepared(workflow: object, *overrides: str) -> dict[str, dict[str, dict[str, object]]]:
    made: dict[str, dict[str, dict[str, object]]] = json.loads(
        prepare_workflow(json.dumps(workflow), overrides, Path()).text
    )
    return made


NODES = {"3": {"class_type": "K", "inputs": {"seed": 1, "a.b": 2}}, "5.3": {"class_type": "K", "inputs": {"seed": 1}}}


@pytest.mark.parametrize(
    ("override", "node", "name", "value"),
    [
        ("3.seed=5", "3", "seed", 5),
        ("3.seed=five", "3", "seed", "five"),
        ('3.seed="5"', "3", "seed", "5"),
        ('3.seed=["5.3", 0]', "3", "seed", ["5.3", 0]),
        ("3.seed=", "3", "seed", ""),
        ("3.seed=a=b", "3", "seed", "a=b"),
        ("3.a.b=7", "3", "a.b", 7),
        ("5.3.seed=8", "5.3", "seed", 8),
        ('3.seed="@literal"', "3", "seed", "@literal"),
    ],
)
def test_overrides(override: str, node: str, name: str, value: object) -> None:
    assert prepared(NODES, override)[node]["inputs"][name] == value


@given(st.text(max_size=40))
def test_any_override_is_understood_or_explained(text: str) -> None:
    with suppress(RequestError):
        prepared(NODES, text)


def test_a_seed_by_hand_is_noticed() -> None:
    assert prepare_workflow(json.dumps(NODES), ["3.seed=5"], Path()).seeds_set
    assert not prepare_workflow(json.dumps(NODES), ["3.a.b=5"], Path()).seeds_set


# Runs that cost money


@pytest.mark.parametrize(
    ("error", "notes"),
    [
        (OSError(28, "No space left on device"), 1),
        (DownloadError("cut", url=""), 1),
        (ServiceError("gone silent", service="Replicate"), 1),
        (GoneError("gone", url=""), 0),
        (RunError("failed", kind="prediction", run_id="p", status="failed"), 0),
    ],
)
def test_only_an_error_that_leaves_the_run_says_how_to_go_on(error: Exception, notes: int) -> None:
    with pytest.raises(type(error)) as caught, not_lost(Run("prediction", "p", "succeeded")):
        raise error
    assert [*getattr(caught.value, "__notes__", [])] == notes * [
        "The run p is not lost: scripts/replicate status p --follow goes on."
    ]


# Links, names, prices, versions


def test_links_are_judged_as_the_training_sees_them(make_settings: Callable[..., Settings]) -> None:
    mirror = make_settings(hf_endpoint="https://mirror.example")
    page = "https://huggingface.co/me/models/blob/main/a.safetensors#name=b.safetensors"
    links = judge_links({"loras": [f"{page}\nhttps://example.com/c.safetensors"]}, mirror)
    right = page.replace("blob", "resolve")
    assert links.lists == {"loras": f"{right}\nhttps://example.com/c.safetensors"}
    assert len(links.notices) == 1
    assert links.kinds == {Kind.HUGGING_FACE, Kind.OTHER}
    assert judge_links({"loras": ["https://mirror.example/me/a/resolve/main/b.safetensors"]}, mirror).kinds >= {
        Kind.HUGGING_FACE
    }
    with pytest.raises(TrainingInputError):
        judge_links({"loras": ["not a link"]}, mirror)


@pytest.mark.parametrize("text", ["me", "me/", "/a", "me/a/b", "me/a:", "me/a:1/2", "me/../a b", "", "me/a?x"])
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(RequestError):
        split_name(text)


def test_names() -> None:
    assert split_name("me/my-model.2") == ("me", "my-model.2", None)
    assert split_name("me/a:0f") == ("me", "a", "0f")
    assert model_name("me/a") == ("me", "a")
    with pytest.raises(RequestError, match="names a version, and this takes a model: me/a"):
        model_name("me/a:0f")


def test_costs_are_the_formula() -> None:
    assert "about $0.23 (1000 s of run time × $0.000225, gpu-t4, as of" in cost_text([400.0, 600.0], "gpu-t4")
    assert "about $0.0045 (20 s" in cost_text([20.0], "gpu-t4")
    assert "about $1.00 (1000 s of run time × $0.001000, gpu-x, by --price)" in cost_text([1000.0], "gpu-x", 0.001)
    assert "the price of gpu-x is not known here (give it with --price)" in cost_text([1.0], "gpu-x")


def test_a_version_without_a_schema_takes_nothing() -> None:
    assert Version("a", "", "", {}).input_names("training") is None
    schema: dict[str, Any] = {"components": {"schemas": {"TrainingInput": {"properties": {"loras": {}}}}}}
    assert Version("a", "", "", schema).input_names("training") == ["loras"]


# State


def test_a_step_is_known_by_what_went_into_it(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    state = ShipState(path)
    state.begin("train", {"a": 1, "b": ("x",)}, {"id": "t"})
    assert ShipState(path).begun("train", {"b": ["x"], "a": 1}) == {"id": "t"}
    assert ShipState(path).done("train", {"b": ["x"], "a": 1}) is None
    assert ShipState(path).begun("train", {"a": 2}) is None
    state.finish("train", "k", {"v": 1})
    assert ShipState(path).done("train", "k") == {"v": 1}
    state.finish("train", "other", {"v": 2})
    state.forget("train", "k")
    assert ShipState(path).done("train", "k") is None
    assert ShipState(path).done("train", "other") == {"v": 2}
    assert ShipState(path).begun("train", {"a": 1, "b": ("x",)}) == {"id": "t"}


def test_a_state_of_the_format_before_is_read(tmp_path: Path) -> None:
    steps = {"create": {"key": sha256(b'"me/mine"'), "done": True, "facts": {}}}
    spent = [{"kind": "training", "id": "t", "seconds": 10.0}]
    (tmp_path / "s.json").write_text(json.dumps({"version": 1, "steps": steps, "spent": spent}))
    state = ShipState(tmp_path / "s.json")
    assert (state.done("create", "me/mine"), state.done("create", "me/other"), state.seconds) == ({}, None, [10.0])
    state.finish("create", "me/other", {"v": 1})
    again = ShipState(tmp_path / "s.json")
    assert (again.done("create", "me/mine"), again.done("create", "me/other")) == ({}, {"v": 1})


def test_a_run_whose_end_was_seen_does_not_go_on(tmp_path: Path) -> None:
    state = ShipState(tmp_path / "s.json")
    state.begin("train", "a", {"id": "t"})
    state.begin("train", "b", {"id": "u"})
    state.begin("picture", "a", {"before": []})
    assert state.running == ["t", "u"]
    state.spend("training", "t", 1.0)
    assert state.running == ["u"]
    assert state.known == {"t", "u"}


def test_two_models_share_no_state_and_an_older_file_is_found_again(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    first, second = (Options("ship", model=name) for name in ("a-b/c", "a/b-c"))
    assert state_path(first, settings) != state_path(second, settings)
    older = settings.data_dir / "ship" / "a-b-c.json"
    older.parent.mkdir(parents=True)
    ShipState(older).finish("create", "a-b/c", {})
    assert state_path(first, settings) == older
    assert state_path(second, settings) == older.with_name("a@b-c.json")
    ShipState(older.with_name("a-b@c.json")).finish("create", "a-b/c", {})
    assert state_path(first, settings) == older.with_name("a-b@c.json")


def test_a_run_is_counted_once(tmp_path: Path) -> None:
    state = ShipState(tmp_path / "s.json")
    for _ in range(2):
        state.spend("training", "t", 10.0)
    state.spend("prediction", "p", 5.0)
    assert ShipState(tmp_path / "s.json").seconds == [10.0, 5.0]
