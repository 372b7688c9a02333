"""Media and workflows by URL: fetched once, named apart, never from inside, and text stays text."""

from __future__ import annotations

import asyncio
import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from comfyui.deadline import Deadline
from comfyui.errors import DeadlineError, DownloadError, InputFileError, StorageError
from comfyui.workflow import fetch
from comfyui.workflow.fetch import fetch_media, fetch_workflow, is_reference, media_name
from comfyui.workflow.node_classes import NodeClasses
from comfyui.workflow.parse import parse_workflow

CLASSES = NodeClasses(
    {
        "LoadImage": {"input": {"required": {"image": [["a.png"], {"image_upload": True}]}}, "output": ["IMAGE"]},
        "LoadVideo": {"input": {"required": {"file": ["COMBO", {"options": [], "video_upload": True}]}}},
        "Text": {"input": {"required": {"text": ["STRING", {}], "image": ["STRING", {}]}}},
    }
)


class _Handler(http.server.BaseHTTPRequestHandler):
    files: ClassVar[dict[str, tuple[int, dict[str, str], bytes]]] = {}
    asked: ClassVar[list[str]] = []
    over: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/never.png":
            self.over.wait()
            return
        status, headers, body = self.files.get(self.path, (404, {}, b""))
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return


@pytest.fixture
def site() -> Iterator[str]:
    _Handler.files, _Handler.asked, _Handler.over = {}, [], threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    _Handler.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


def put(path: str, body: bytes, status: int = 200, **headers: str) -> None:
    _Handler.files[path] = (status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def image(value: Any) -> dict[str, Any]:
    return {"class_type": "LoadImage", "inputs": {"image": value}}


async def run(
    workflow: dict[str, Any], folder: Path, *, allow_private: bool = True, deadline: Deadline | None = None
) -> dict[str, Any]:
    done = await fetch_media(
        parse_workflow(json.dumps(workflow)),
        CLASSES,
        folder,
        allow_private=allow_private,
        say=lambda _line: None,
        deadline=deadline,
    )
    return {node.id: dict(node.inputs) for node in done.nodes.values()}


async def test_the_same_url_in_two_nodes_is_fetched_once_and_both_get_the_file(site: str, tmp_path: Path) -> None:
    put("/cat.png", b"cat")
    inputs = await run({"1": image(f"{site}/cat.png"), "2": image(f"{site}/cat.png")}, tmp_path)
    assert inputs["1"] == inputs["2"]
    assert (tmp_path / inputs["1"]["image"]).read_bytes() == b"cat"
    assert _Handler.asked == ["/cat.png"]


async def test_two_urls_with_one_basename_are_two_files(site: str, tmp_path: Path) -> None:
    put("/a/cat.png", b"one")
    put("/b/cat.png", b"two")
    inputs = await run({"1": image(f"{site}/a/cat.png"), "2": image(f"{site}/b/cat.png")}, tmp_path)
    assert (tmp_path / inputs["1"]["image"]).read_bytes() == b"one"
    assert (tmp_path / inputs["2"]["image"]).read_bytes() == b"two"


async def test_a_long_signed_query_is_in_no_name_and_no_line(site: str, tmp_path: Path) -> None:
    query = "?X-Amz-Signature=" + "s3cret" * 300
    put(f"/cat.png{query}", b"cat")
    said: list[str] = []
    workflow = parse_workflow(json.dumps({"1": image(f"{site}/cat.png{query}")}))
    await fetch_media(workflow, CLASSES, tmp_path, allow_private=True, say=said.append)
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("cat-")
    assert len(file.name) < 80
    assert "s3cret" not in "".join(said)
    put(f"/cat.png{query}", b"", status=403)
    with pytest.raises(DownloadError, match="answered 403") as error:
        await run({"1": image(f"{site}/cat.png{query}")}, tmp_path)
    assert "s3cret" not in str(error.value)


async def test_a_text_that_begins_with_a_url_stays_text(site: str, tmp_path: Path) -> None:
    inputs = {"text": f"{site}/cat.png is my favourite picture", "image": f"{site}/cat.png", "other": f"{site}/x"}
    assert await run({"1": {"class_type": "Text", "inputs": inputs}}, tmp_path) == {"1": inputs}
    assert _Handler.asked == []


async def test_a_node_of_an_unknown_class_is_left_alone(site: str, tmp_path: Path) -> None:
    inputs = {"image": f"{site}/cat.png"}
    assert await run({"1": {"class_type": "Nope", "inputs": inputs}}, tmp_path) == {"1": inputs}


async def test_a_data_uri_becomes_a_file_with_the_right_ending(tmp_path: Path) -> None:
    uri = "data:image/png;base64," + base64.b64encode(b"cat").decode()
    inputs = await run({"1": image(uri)}, tmp_path)
    assert inputs["1"]["image"].endswith(".png")
    assert (tmp_path / inputs["1"]["image"]).read_bytes() == b"cat"


async def test_the_servers_name_and_type_are_used_where_the_url_has_none(site: str, tmp_path: Path) -> None:
    put("/get", b"film", Content_Type="video/mp4")
    put("/named", b"film", Content_Disposition="attachment; filename*=UTF-8''my%20film.webm")
    node = {"class_type": "LoadVideo", "inputs": {"file": f"{site}/get"}}
    assert (await run({"1": node}, tmp_path))["1"]["file"].endswith(".mp4")
    node = {"class_type": "LoadVideo", "inputs": {"file": f"{site}/named"}}
    name = (await run({"1": node}, tmp_path))["1"]["file"]
    assert name.startswith("my_film-")
    assert name.endswith(".webm")


async def test_redirects_are_followed_a_few_times(site: str, tmp_path: Path) -> None:
    put("/old.png", b"", status=302, Location="/new.png")
    put("/new.png", b"cat")
    put("/loop.png", b"", status=302, Location="/loop.png")
    assert await run({"1": image(f"{site}/old.png")}, tmp_path)
    with pytest.raises(DownloadError, match="redirected more than"):
        await run({"1": image(f"{site}/loop.png")}, tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1", "0.0.0.0"])
async def test_addresses_inside_are_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="not a public internet address"):
        await run({"1": image(f"http://{host}/latest/meta-data.png")}, tmp_path, allow_private=False)
    assert list(tmp_path.iterdir()) == []


async def test_a_name_that_is_looked_up_again_is_checked_again(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: what the policy saw was public, what the connection would reach is not."""
    monkeypatch.setattr(fetch, "check_url", lambda url, allow_private: None)
    put("/cat.png", b"cat")
    port = site.rsplit(":", 1)[1]
    with pytest.raises(DownloadError, match="not a public internet address"):
        await run({"1": image(f"http://localhost:{port}/cat.png")}, tmp_path, allow_private=False)
    assert _Handler.asked == []


async def test_a_web_page_is_no_picture_and_nothing_is_left(site: str, tmp_path: Path) -> None:
    put("/cat.png", b"<html>", Content_Type="text/html; charset=utf-8")
    with pytest.raises(InputFileError, match=r"Node 1 'LoadImage', input image: .*/cat\.png is a web page"):
        await run({"1": image(f"{site}/cat.png")}, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("length", "body"),
    [("1048577", b""), ("", b"x" * (1024**2 + 1))],
    ids=["as its server says", "as it turns out"],
)
async def test_a_file_that_is_too_large_is_refused(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: str, body: bytes
) -> None:
    monkeypatch.setattr(fetch, "MAX_FILE_BYTES", 1024**2)
    put("/cat.png", body, Content_Length=length)
    with pytest.raises(DownloadError, match="larger than the 1 MiB"):
        await run({"1": image(f"{site}/cat.png")}, tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_a_file_for_which_the_disk_has_no_room_is_refused_before_it_comes(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "MAX_FILE_BYTES", 1 << 62)
    put("/cat.png", b"", Content_Length=str(1 << 61))
    with pytest.raises(StorageError, match=r"no room on the disk for .*/cat\.png: "):
        await run({"1": image(f"{site}/cat.png")}, tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_a_server_that_says_nothing_is_left_at_the_deadline(site: str, tmp_path: Path) -> None:
    with pytest.raises(DeadlineError, match=r"Fetching took longer than the 0\.2 s"):
        await run({"1": image(f"{site}/never.png")}, tmp_path, deadline=Deadline(0.2, "Fetching"))
    assert list(tmp_path.iterdir()) == []


async def test_after_one_that_fails_none_goes_on(site: str, tmp_path: Path) -> None:
    nodes = {str(number): image(f"{site}/{name}.png") for number, name in enumerate(("never", "missing"))}
    with pytest.raises(DownloadError, match="answered 404"):
        await run(nodes, tmp_path)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert list(tmp_path.iterdir()) == []


async def test_a_web_page_is_no_workflow(site: str) -> None:
    put("/w.json", b"\n<!DOCTYPE html>", Content_Type="text/html")
    with pytest.raises(InputFileError, match=r"workflow_json: .*/w\.json is a web page"):
        await fetch_workflow(f"{site}/w.json", allow_private=True)


async def test_a_cut_body_is_an_error(site: str, tmp_path: Path) -> None:
    put("/cat.png", b"half", Content_Length="100")
    with pytest.raises(DownloadError, match="could not be fetched: ClientPayloadError"):
        await run({"1": image(f"{site}/cat.png")}, tmp_path)


async def test_a_full_disk_is_not_the_links_fault(site: str, tmp_path: Path) -> None:
    """/dev/full gives every write the error of a full disk."""
    put("/a.png", b"0" * 100_000)
    part = tmp_path / f".{fetch._digest(f'{site}/a.png')}.part"
    part.symlink_to("/dev/full")
    workflow = parse_workflow(json.dumps({"1": {"class_type": "LoadImage", "inputs": {"image": f"{site}/a.png"}}}))
    with pytest.raises(OSError, match="No space left on device"):
        await fetch_media(workflow, CLASSES, tmp_path, allow_private=True, say=print)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["data:image/png;base64,%%%", "data:image/png;base64"])
async def test_a_broken_data_uri_names_its_node(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="Node 1 'LoadImage', input image: the data: URI"):
        await run({"1": image(uri)}, tmp_path)


async def test_a_workflow_by_url_or_data_uri(site: str) -> None:
    put("/w.json", b'\xef\xbb\xbf{"1": 2}')
    assert await fetch_workflow(f"{site}/w.json", allow_private=True) == '{"1": 2}'
    assert await fetch_workflow("data:application/json,%7B%22a%22%3A1%7D", allow_private=True) == '{"a":1}'
    with pytest.raises(InputFileError, match="not text"):
        await fetch_workflow("data:;base64,/w==", allow_private=True)


def test_what_is_a_reference() -> None:
    assert is_reference("https://example.com/a.png")
    assert is_reference("DATA:image/png;base64,")
    assert not is_reference("a.png")
    assert not is_reference("see https://example.com")
    assert not is_reference(5)


@pytest.mark.parametrize(
    ("url", "given"),
    [
        ("https://e.com/../../etc/passwd", ""),
        ("https://e.com/%2e%2e%2fa.png", "..\\..\\b.png"),
        ("https://e.com/", "/"),
    ],
)
def test_a_name_never_leads_out_of_the_folder(url: str, given: str) -> None:
    name = media_name(url, given, "image/png")
    assert "/" not in name
    assert "\\" not in name
    assert not name.startswith(".")
