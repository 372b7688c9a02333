"""What a real server answers when it is asked for a file: names, lengths, refusals, redirects, and where secrets go."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from comfyui.errors import DownloadError
from comfyui.settings import Settings
from comfyui.url_policy import check_address
from comfyui.weights.http import opener as http
from comfyui.weights.http.answers import check_answer, declared_size, file_name
from comfyui.weights.http.opener import MAX_REDIRECTS, READ_TIMEOUT_S, HttpOpener
from comfyui.weights.sources import NO_TOKENS, Source, Tokens, plain, understand
from tests.weights.file_server import FileServer
from tests.weights.samples import safetensors

FILE = safetensors(3, 300_000)


def fetch(source: Source, settings: Settings, read_timeout_s: float = READ_TIMEOUT_S) -> tuple[str, int | None, bytes]:
    """The name, length and bytes of a file, if its server gives it."""
    with HttpOpener(settings, read_timeout_s=read_timeout_s) as opener, opener.open(source, source.url) as opened:
        check_answer(opened.response, source)
        name, size = file_name(opened.response, source), declared_size(opened.response, source)
        return name, size, opener.read(opened, 2 * len(FILE), source)


def test_a_file(server: FileServer, settings: Settings) -> None:
    url = server.put("/x/a%20b.safetensors", FILE)
    assert fetch(plain(url), settings) == ("a b.safetensors", len(FILE), FILE)
    assert server.seen[0].headers["Accept-Encoding"] == "identity"


def test_a_file_of_unknown_length(server: FileServer, settings: Settings) -> None:
    assert fetch(plain(server.put("/a", FILE, chunked=True)), settings)[1:] == (None, FILE)
    assert fetch(plain(server.put("/b", FILE, no_length=True)), settings)[1:] == (None, FILE)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ('attachment; filename="m.safetensors"', "m.safetensors"),
        ("attachment; filename=m.safetensors", "m.safetensors"),
        ("inline; filename=\"x.pt\"; filename*=UTF-8''na%C3%AFve.safetensors", "naïve.safetensors"),
        ("inline; filename*=UTF-8''%e3%81%82.safetensors; filename=\"x.pt\"", "あ.safetensors"),
        ("attachment; filename=あ.safetensors".encode().decode("latin-1"), "あ.safetensors"),
        ('attachment; filename="../../etc/m.safetensors"', "m.safetensors"),
        ('attachment; filename="C:\\\\m.safetensors"', "m.safetensors"),
        ('attachment; filename=""', "url.safetensors"),
        ("attachment", "url.safetensors"),
        ("attachment; filename*=idna''a%ff", "url.safetensors"),
        ("attachment; filename*=no-such-charset''m.safetensors", "m.safetensors"),
    ],
)
def test_names(server: FileServer, settings: Settings, header: str, name: str) -> None:
    url = server.put("/url.safetensors", FILE, headers={"Content-Disposition": header})
    assert fetch(plain(url), settings)[0] == name


def test_a_silent_server(server: FileServer, settings: Settings) -> None:
    source = plain(server.put("/a.safetensors", FILE, stall_s=1.0))
    with pytest.raises(DownloadError, match=r"sent nothing for 0\.1 s"):
        fetch(source, settings, read_timeout_s=0.1)


# For a length such as "1, 2" urllib3 raises and forgets the socket, which is collected here and now.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("length", "word"), [("1, 2", "header that cannot be read"), ("many", "is no length")])
def test_an_odd_length(server: FileServer, settings: Settings, length: str, word: str) -> None:
    with pytest.raises(DownloadError, match=word):
        fetch(plain(server.put("/a.safetensors", FILE, declared=length)), settings)
    gc.collect()


def test_a_compressed_answer(server: FileServer, settings: Settings) -> None:
    with pytest.raises(DownloadError, match="Content-Encoding gzip"):
        fetch(plain(server.put("/a.safetensors", FILE, headers={"Content-Encoding": "gzip"})), settings)


def endpoints(make_settings: Callable[..., Settings], server: FileServer) -> Settings:
    return make_settings(hf_endpoint=server.url + "/hf", civitai_endpoint="http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("status", "token", "words"),
    [
        (401, None, "No Hugging Face token was given.*huggingface_read_token"),
        (403, None, "huggingface_read_token.*terms at http.*/hf/me/repo "),
        (403, "hf_SECRET", "accept its terms there"),
        (401, "hf_SECRET", "has no access"),
        (404, "hf_SECRET", "not found.*Open the link"),
        (429, None, "429.*Wait and try again .the server says in 30 s"),
        (503, None, "503.*Try again later"),
        (418, None, "418"),
    ],
)
def test_refusals_of_hugging_face(
    server: FileServer, make_settings: Callable[..., Settings], status: int, token: str | None, words: str
) -> None:
    settings = endpoints(make_settings, server)
    url = server.put("/hf/me/repo/resolve/main/a.safetensors", b"{}", status=status, headers={"Retry-After": "30"})
    with pytest.raises(DownloadError, match=words) as caught:
        fetch(understand(url, settings, Tokens(huggingface=token)), settings)
    assert (caught.value.status, caught.value.url) == (status, url)
    assert "SECRET" not in str(caught.value)
    assert server.seen[0].headers.get("Authorization") == (f"Bearer {token}" if token else None)


@pytest.mark.parametrize(("token", "words"), [(None, "give civitai_api_token"), ("cv_SECRET", "has no access")])
@pytest.mark.parametrize("status", [401, 403, 200])
def test_refusals_of_civitai(
    server: FileServer, make_settings: Callable[..., Settings], token: str | None, words: str, status: int
) -> None:
    settings = make_settings(civitai_endpoint=server.url)
    page = {"Content-Type": "text/html; charset=utf-8"}
    url = server.put("/api/download/models/1", b"<html>", status=status, headers=page)
    with pytest.raises(DownloadError, match=words):
        fetch(understand(url, settings, Tokens(civitai=token)), settings)


@pytest.mark.parametrize(
    ("status", "words"), [(401, "not public"), (404, "not found"), (200, "web page"), (206, "206")]
)
def test_refusals_of_other_servers(server: FileServer, settings: Settings, status: int, words: str) -> None:
    url = server.put("/a.safetensors", b"<html>", status=status, headers={"Content-Type": "text/html"})
    with pytest.raises(DownloadError, match=words) as caught:
        fetch(plain(url), settings)
    assert caught.value.status == status


def test_redirects_are_followed(server: FileServer, other_server: FileServer, settings: Settings) -> None:
    other_server.put("/deep/b.safetensors", FILE)
    server.put("/two", status=307, headers={"Location": other_server.url + "/deep/b.safetensors?sig=1#x"})
    url = server.put("/a.safetensors", status=302, headers={"Location": "two"})
    assert fetch(plain(url), settings) == ("a.safetensors", len(FILE), FILE)
    assert other_server.seen[0].target == "/deep/b.safetensors?sig=1"


def test_a_token_stays_at_home(
    server: FileServer, other_server: FileServer, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings(hf_endpoint=server.url)
    server.put("/final.safetensors", FILE)
    other_server.put("/cdn", status=302, headers={"Location": server.url + "/final.safetensors"})
    server.put("/away", status=302, headers={"Location": other_server.url + "/cdn"})
    url = server.put("/me/repo/resolve/main/a.safetensors", status=302, headers={"Location": "/away"})
    fetch(understand(url, settings, Tokens(huggingface="hf_SECRET")), settings)
    assert [seen.headers.get("Authorization") for seen in server.seen] == ["Bearer hf_SECRET", "Bearer hf_SECRET", None]
    assert "SECRET" not in str(other_server.seen)


def test_another_name_of_the_same_machine_is_another_host(
    server: FileServer, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings(hf_endpoint=server.url)
    server.put("/final", FILE)
    elsewhere = server.url.replace("127.0.0.1", "localhost") + "/final"
    url = server.put("/me/repo/resolve/main/a.safetensors", status=302, headers={"Location": elsewhere})
    fetch(understand(url, settings, Tokens(huggingface="hf_SECRET")), settings)
    assert [seen.headers.get("Authorization") for seen in server.seen] == ["Bearer hf_SECRET", None]


def test_redirects_end(server: FileServer, settings: Settings) -> None:
    url = server.put("/a", status=302, headers={"Location": "/a"})
    with pytest.raises(DownloadError, match="more than 10 times"):
        fetch(plain(url), settings)
    assert len(server.seen) == MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    ("location", "word"),
    [
        ("file:///etc/passwd", "only http"),
        ("gopher://x/", "only http"),
        ("http://[", "not a URL"),
    ],
)
def test_redirects_to_what_is_no_link(server: FileServer, settings: Settings, location: str, word: str) -> None:
    url = server.put("/a", status=302, headers={"Location": location})
    with pytest.raises(DownloadError, match=word):
        fetch(plain(url), settings)


def test_a_redirect_without_a_place(server: FileServer, settings: Settings) -> None:
    with pytest.raises(DownloadError, match="302"):
        fetch(plain(server.put("/a", status=302)), settings)


def test_a_private_address_gets_no_request(server: FileServer, make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(allow_private_urls=False)
    with pytest.raises(DownloadError, match="not a public"):
        fetch(plain(server.put("/a", FILE)), settings)
    assert server.seen == []


def test_each_redirect_is_put_to_the_policy(
    server: FileServer, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first hop has to be a loopback server here, so its address is let through by hand.
    url = server.put("/a", status=302, headers={"Location": "http://169.254.169.254/latest"})
    port = server.url.rpartition(":")[2]
    monkeypatch.setattr("comfyui.url_policy.check_address", _except_loopback)
    monkeypatch.setattr(http, "check_address", _except_loopback)
    with pytest.raises(DownloadError, match=r"169\.254\.169\.254"):
        fetch(plain(url), make_settings(allow_private_urls=False))
    assert len(server.seen) == 1, port


def _except_loopback(address: str, *, shown: str) -> None:
    if address != "127.0.0.1":
        check_address(address, shown=shown)


def test_a_host_that_changes_its_address_after_the_check(
    server: FileServer, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with DNS rebinding: the look-up saw nothing wrong, the connection ends up inside.
    monkeypatch.setattr("comfyui.url_policy.check_address", lambda address, *, shown: None)
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1, which is not a public"):
        fetch(plain(server.put("/a", FILE)), make_settings(allow_private_urls=False))
    assert server.seen == []


def test_netrc_is_not_read(
    server: FileServer, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password SECRET\n")
    monkeypatch.setenv("NETRC", str(netrc))
    fetch(plain(server.put("/a", FILE)), settings)
    assert "Authorization" not in server.seen[0].headers


def test_a_password_in_a_link_is_sent_home_only(
    server: FileServer, other_server: FileServer, settings: Settings
) -> None:
    other_server.put("/b", FILE)
    server.put("/a", status=302, headers={"Location": other_server.url.replace("//", "//u:p@") + "/b"})
    fetch(plain(server.url.replace("//", "//me:pw@") + "/a"), settings)
    assert server.seen[0].headers["Authorization"].startswith("Basic ")
    assert "Authorization" not in other_server.seen[0].headers


@pytest.mark.parametrize("path", ["/a.safetensors", "/moved"])
def test_a_secret_in_a_query_is_in_no_traceback(server: FileServer, settings: Settings, path: str) -> None:
    dead = "http://127.0.0.1:1/a.safetensors?token=SECRET"
    url = dead if path == "/a.safetensors" else server.put(path, status=302, headers={"Location": dead})
    with pytest.raises(DownloadError, match="could not be reached") as caught:
        fetch(understand(url, settings, NO_TOKENS), settings)
    assert caught.value.__cause__ is not None
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))
    assert "redirected to http://127.0.0.1:1/a.safetensors" in str(caught.value) or path != "/moved"


def test_a_server_that_speaks_no_tls(server: FileServer, settings: Settings) -> None:
    with pytest.raises(DownloadError, match=r"certificate|reached"):
        fetch(plain(server.put("/a", FILE).replace("http:", "https:")), settings)
