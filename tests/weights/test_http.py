"""Requests to URLs from outside: who gets the token, which connections are used again, and from how many threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from comfyui.errors import DownloadError
from comfyui.settings import Settings
from comfyui.url_policy import origin
from comfyui.weights.http import opener as http
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.sources import NO_TOKENS, Tokens, understand
from tests.weights.storage_standin import Answer, Standin, StorageStandin

BODY = bytes(range(256)) * 40


class Hops(Standin):
    """Sends on to wherever `to` says, by path."""

    def __init__(self) -> None:
        super().__init__()
        self.to: dict[str, str] = {}

    def answer(self, method: str, target: str, headers: Mapping[str, str]) -> Answer:
        path = target.partition("?")[0]
        return Answer(302, {"Location": self.to[path]}, b"moved") if path in self.to else Answer(200, {}, BODY)


@pytest.fixture(scope="module")
def hops() -> Iterator[tuple[Hops, Hops]]:
    with Hops() as home, Hops() as other:
        yield home, other


def test_a_redirect_keeps_its_connection(hops: tuple[Hops, Hops], make_settings: Callable[..., Settings]) -> None:
    home, other = hops
    settings = make_settings(hf_endpoint=home.url)
    home.to = {"/me/repo/resolve/main/a.pt": other.url + "/final"}
    source = understand("hf://me/repo/a.pt", settings, Tokens(huggingface="hf_SECRET"))
    before = home.connections, other.connections
    with HttpOpener(settings) as opener:
        for start in range(0, 1000, 100):
            with opener.open(source, source.url, {"Range": f"bytes={start}-{start + 99}"}) as opened:
                assert opened.url == other.url + "/final"
                assert opened.response.raw.read() == BODY
                assert "SECRET" not in repr(opened)
    assert (home.connections - before[0], other.connections - before[1]) == (1, 1)
    assert other.seen[-1].headers["Range"] == "bytes=900-999"


def test_one_opener_in_many_threads(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    with StorageStandin() as storage, HttpOpener(settings) as opener:
        source = understand(storage.put("/a.pt", BODY), settings, NO_TOKENS)

        def read(number: int) -> bytes:
            with opener.open(source, source.url, {"Range": f"bytes={number}-{number + 9}"}) as opened:
                return bytes(opened.response.raw.read())

        with ThreadPoolExecutor(8) as pool:
            pieces = list(pool.map(read, range(200)))
        assert pieces == [BODY[number : number + 10] for number in range(200)]
        assert storage.connections <= 8


def test_an_opener_can_be_used_after_it_was_closed(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    with StorageStandin() as storage, HttpOpener(settings) as opener:
        source = understand(storage.put("/a.pt", BODY), settings, NO_TOKENS)
        for _ in range(2):
            opener.open(source, source.url).close()
            opener.close()


def test_the_peer_is_checked_once_for_each_connection(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []
    monkeypatch.setattr("comfyui.url_policy.check_address", lambda address, *, shown: None)
    monkeypatch.setattr(http, "check_address", lambda address, *, shown: checked.append(address))
    settings = make_settings(allow_private_urls=False)
    with StorageStandin() as storage, HttpOpener(settings) as opener:
        source = understand(storage.put("/a.pt", BODY), settings, NO_TOKENS)
        # More than Python's stack is deep: a check that wrapped itself each time would end here.
        for _ in range(1200):
            with opener.open(source, source.url, {"Range": "bytes=0-0"}) as opened:
                opened.response.raw.read()
    assert checked == ["127.0.0.1"]


@pytest.mark.parametrize(("stall", "words"), [(False, "could not be reached"), (True, r"sent nothing for 0\.1 s")])
def test_failures_are_told_apart(make_settings: Callable[..., Settings], stall: bool, words: str) -> None:
    from tests.weights.file_server import FileServer

    settings = make_settings()
    with FileServer() as server, HttpOpener(settings, read_timeout_s=0.1) as opener:
        url = server.put("/a.pt", BODY, stall_s=1.0)
        source = understand(url if stall else "http://127.0.0.1:1/a.pt?sig=SECRET", settings, NO_TOKENS)
        with pytest.raises(DownloadError, match=words) as caught:  # noqa: PT012 (opening works, reading stalls)
            opened = opener.open(source, source.url)
            try:
                opened.response.raw.read()
            except http.REQUEST_FAILURES as e:
                raise opener.failure(e, source) from http.root_cause(e)
            finally:
                opened.close()
        assert isinstance(caught.value.__cause__, (OSError, *http.REQUEST_FAILURES))
        assert "SECRET" not in str(caught.value) + str(caught.value.__cause__)


@given(chain=st.lists(st.sampled_from(["home", "other", "localhost"]), max_size=6))
@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_token_ever_reaches_another_origin(
    hops: tuple[Hops, Hops], make_settings: Callable[..., Settings], chain: list[str]
) -> None:
    home, other = hops
    places = {"home": home.url, "other": other.url, "localhost": home.url.replace("127.0.0.1", "localhost")}
    settings = make_settings(hf_endpoint=home.url, civitai_endpoint=home.url + "/c")
    start = "/me/repo/resolve/main/a.pt"
    paths = [start, *(f"/{number}" for number in range(len(chain)))]
    urls = [home.url + start, *(places[name] + path for name, path in zip(chain, paths[1:], strict=True))]
    home.to = other.to = dict(zip(paths, urls[1:], strict=False))
    home.seen.clear()
    other.seen.clear()
    source = understand(home.url + start, settings, Tokens(huggingface="hf_SECRET"))
    with HttpOpener(settings) as opener:
        opener.open(source, source.url).close()
    assert other.tokens_seen <= {None}
    away = False
    for seen in home.seen:
        away = away or seen.headers["Host"].startswith("localhost") or _left_before(seen.target, paths, urls, home.url)
        assert seen.headers.get("Authorization") == (None if away else "Bearer hf_SECRET")


def _left_before(target: str, paths: list[str], urls: list[str], home: str) -> bool:
    return any(origin(url) != origin(home) for url in urls[: paths.index(target) + 1])
