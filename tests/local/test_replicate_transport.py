"""The way of the official client's requests: real HTTP to a stand-in, with the waits written down instead of waited."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from replicate.client import Client

from comfyui.errors import RequestError
from comfyui.local.replicate.api import Api
from comfyui.local.replicate.environ import Service
from comfyui.local.replicate.failures import ServiceError
from comfyui.local.replicate.transport import MAX_WAIT_S, TRIES, PatientTransport, proxy_for
from tests.local.api_server import ApiServer, Fault, Request
from tests.local.replicate_standin import GOOD, ReplicateStandin, problem, reply, throttled
from tests.weights.storage_standin import Answer, StorageStandin


@pytest.fixture
def service() -> Iterator[ReplicateStandin]:
    with StorageStandin() as delivery, ReplicateStandin(delivery) as running:
        running.add_model("me/base", "b" * 64)
        yield running


class Patience:
    """A client over the transport; `waits` are the seconds that it would have waited, `said` what it told."""

    def __init__(self, base_url: str, token: str = GOOD) -> None:
        self.waits: list[float] = []
        self.said: list[str] = []
        self.transport = PatientTransport(base_url, self.said.append, first_wait_s=0.5, sleep=self.waits.append)
        self.client = Client(api_token=token, base_url=base_url, transport=self.transport)

    def close(self) -> None:
        self.transport.close()


@pytest.fixture
def patience(service: ReplicateStandin) -> Iterator[Patience]:
    made = Patience(service.url)
    yield made
    made.close()


@pytest.fixture
def api(service: ReplicateStandin) -> Iterator[Api]:
    with Api(GOOD, Service(service.url), lambda _line: None) as made:
        yield made


GET = "/v1/account"


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_get_is_tried_again_by_us_alone(service: ReplicateStandin, patience: Patience, status: int) -> None:
    service.faults.append(Fault("GET", GET, problem(status, "down"), times=3))
    assert patience.client.accounts.current().username == "me"
    assert patience.waits == [0.5, 1.0, 2.0]
    assert patience.said[0] == f"Replicate answers {status}; trying again in 0.5 s"


def test_it_gives_up_some_time(service: ReplicateStandin, patience: Patience) -> None:
    service.faults.append(Fault("GET", GET, problem(503, "down"), times=1000))
    with pytest.raises(
        ServiceError, match=r"refused GET /v1/account with 503: down\. That is Replicate's own"
    ) as caught:
        patience.client.accounts.current()
    assert caught.value.status == 503
    # The client has ten tries of its own for 503, which would multiply these.
    assert len(service.seen) == TRIES
    assert max(patience.waits) == MAX_WAIT_S


def test_lost_connections(service: ReplicateStandin, patience: Patience) -> None:
    service.faults.append(Fault("GET", GET, drop=True, times=2))
    assert patience.client.accounts.current().username == "me"
    assert patience.waits == [0.5, 1.0]
    service.faults.append(Fault("GET", GET, drop=True, times=1000))
    with pytest.raises(ServiceError, match="did not answer GET /v1/account after the request was sent: Remote"):
        patience.client.accounts.current()


def test_an_answer_that_is_cut_is_asked_for_again(service: ReplicateStandin, patience: Patience) -> None:
    service.faults.append(Fault("GET", GET, Answer(200, {"Content-Length": "1000", "Connection": "close"}, b"{")))
    service.faults.append(Fault("GET", GET, drop=True))
    assert patience.client.accounts.current().username == "me"


@pytest.mark.parametrize("fault", [problem(500, "oops"), problem(503, "down"), None])
def test_a_post_that_may_have_been_done_is_sent_once(
    service: ReplicateStandin, patience: Patience, fault: Answer | None
) -> None:
    service.faults.append(Fault("POST", "/v1/predictions", fault, drop=fault is None, done_first=True, times=9))
    with pytest.raises(ServiceError):
        patience.client.predictions.create(version="b" * 64, input={"workflow_json": "{}"})
    assert len(service.runs) == 1
    assert patience.waits == []


TRAINING_PATH = f"/v1/models/me/base/versions/{'b' * 64}/trainings"


@pytest.mark.parametrize("fault", [problem(500, "oops"), None])
@pytest.mark.parametrize(
    ("path", "said"),
    [
        (TRAINING_PATH, "all the same: look at https://replicate.com/trainings before you start another."),
        ("/v1/predictions", "all the same: look at https://replicate.com/predictions before you start another."),
        ("/v1/trainings/x/cancel", "It may have arrived all the same."),
    ],
)
def test_a_post_in_doubt_names_the_page_that_shows_it(
    service: ReplicateStandin, patience: Patience, fault: Answer | None, path: str, said: str
) -> None:
    service.faults.append(Fault("POST", path, fault, drop=fault is None))
    with pytest.raises(ServiceError) as caught:
        patience.transport.handle_request(
            httpx.Request("POST", f"{service.url}{path}", headers={"Authorization": f"Bearer {GOOD}"})
        )
    assert str(caught.value).endswith(said)


@pytest.mark.parametrize("fault", [problem(503, "down"), throttled(86400), None])
def test_no_refusal_tells_to_run_a_command_again_which_may_cost(
    service: ReplicateStandin, patience: Patience, fault: Answer | None
) -> None:
    service.faults.append(Fault("GET", GET, fault, drop=fault is None, times=1000))
    with pytest.raises(ServiceError, match="try again") as caught:
        patience.client.accounts.current()
    assert "same command" not in str(caught.value)


def test_a_throttled_post_waits_what_the_header_or_the_body_says(service: ReplicateStandin, patience: Patience) -> None:
    body_only = Answer(429, {}, throttled(7).body)
    service.faults += [Fault("POST", "/v1/predictions", throttled(12)), Fault("POST", "/v1/predictions", body_only)]
    patience.client.predictions.create(version="b" * 64, input={"workflow_json": "{}"})
    assert patience.waits == [12.0, 7.0]
    assert len(service.runs) == 1


def test_nobody_waits_for_days(service: ReplicateStandin, patience: Patience) -> None:
    service.faults.append(Fault("GET", GET, throttled(86400)))
    with pytest.raises(ServiceError, match="limits how often it may be asked"):
        patience.client.accounts.current()
    assert patience.waits == []


def test_a_post_to_nobody_is_tried_again_since_it_was_never_sent() -> None:
    made = Patience("http://127.0.0.1:9")
    with pytest.raises(ServiceError, match=r"did not answer POST /v1/predictions: ConnectError\. Check the network"):
        made.client.predictions.create(version="b" * 64, input={})
    assert len(made.waits) == TRIES - 1
    made.close()


class Proxy(ApiServer):
    """A proxy for http://: it is asked for whole URLs."""

    def answer(self, request: Request) -> Answer:
        return reply({"type": "user", "username": "me", "name": "Me", "github_url": None})


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("no_proxies")
def test_the_proxy_of_the_environment_is_used(service: ReplicateStandin, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removeprefix("http://"))
        made = Patience("http://replicate.example")
        assert made.client.accounts.current().username == "me"
        made.close()
        assert [request.path for request in proxy.seen] == ["http://replicate.example/v1/account"]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        made = Patience(service.url)
        assert made.client.accounts.current().username == "me"
        made.close()
        assert (len(proxy.seen), len(service.seen)) == (1, 1)


@pytest.mark.usefixtures("no_proxies")
def test_a_proxy_that_cannot_be_used_is_named_by_its_kind_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://me:SECRET@proxy.example")
    with pytest.raises(RequestError, match="a proxy of the kind socks5://") as caught:
        proxy_for("https://api.replicate.com")
    assert "SECRET" not in str(caught.value)
    assert proxy_for("http://api.replicate.com") is None


def test_the_token_goes_to_its_own_host_alone(service: ReplicateStandin, patience: Patience) -> None:
    with StorageStandin() as stranger:
        with pytest.raises(ServiceError, match=r"its token goes to 127\.0\.0\.1 alone\. Nothing was sent"):
            patience.client.predictions.list(f"{stranger.url}/v1/predictions?cursor=1")
        assert stranger.seen == []
        service.faults.append(Fault("GET", GET, Answer(302, {"Location": f"{stranger.url}/v1/account"})))
        with pytest.raises(ValueError, match=r"Expecting value"):
            patience.client.accounts.current()
        assert stranger.seen == []


def test_a_token_that_a_refusal_quotes_is_taken_out() -> None:
    token = "r8_SECRET_other"
    with StorageStandin() as delivery, ReplicateStandin(delivery) as service:
        made = Patience(service.url, token)
        service.faults.append(Fault("GET", GET, problem(401, f"No such token: {token}\x1b[31m")))
        with pytest.raises(ServiceError) as caught:
            made.client.accounts.current()
        assert token not in str(caught.value)
        assert caught.value.detail == "No such token: …"
        made.close()


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"id": 1}'])
def test_answers_that_the_client_does_not_understand(service: ReplicateStandin, api: Api, body: bytes) -> None:
    service.faults.append(Fault("GET", "/v1/predictions/x", Answer(200, {}, body)))
    with pytest.raises(ServiceError, match="an answer that its official client does not understand"):
        api.get("prediction", "x")
    service.faults.append(Fault("POST", "/v1/predictions", Answer(201, {}, body)))
    with pytest.raises(ServiceError, match=r"look at https://replicate\.com/predictions before you start another"):
        api.start_prediction("b" * 64, {})
    service.faults.append(Fault("POST", "/trainings$", Answer(201, {}, body)))
    with pytest.raises(ServiceError, match=r"look at https://replicate\.com/trainings before you start another"):
        api.start_training(f"me/base:{'b' * 64}", {}, "me/base")


def test_an_upload_has_a_time_limit_and_can_be_repeated(tmp_path: Path) -> None:
    limits: list[object] = []

    def answer(request: httpx.Request) -> httpx.Response:
        limits.append(request.extensions["timeout"])
        assert b"the body" in request.read()
        if len(limits) == 1:
            return httpx.Response(429, headers={"Retry-After": "0"})
        return httpx.Response(404)

    transport = PatientTransport(
        "https://api.replicate.com", lambda _line: None, first_wait_s=0, inner=httpx.MockTransport(answer)
    )
    (tmp_path / "file").write_bytes(b"the body")
    client = Client(api_token=GOOD, base_url="https://api.replicate.com", transport=transport)
    with pytest.raises(ServiceError, match="404"):
        client.files.create(tmp_path / "file")
    assert len(limits) == 2
    assert all(isinstance(limit, dict) and limit["read"] == 60.0 for limit in limits)


def test_a_training_that_names_its_version_in_another_form(service: ReplicateStandin, api: Api) -> None:
    training = {"id": "x", "model": "me/base", "version": "b", "status": "succeeded", "output": {"version": "odd"}}
    service.faults.append(Fault("GET", "/v1/trainings/x", reply(training)))
    with pytest.raises(ServiceError, match="does not understand"):
        api.get("training", "x")


def test_a_status_that_the_client_does_not_know_spoils_neither_a_run_nor_the_list_it_is_in(
    service: ReplicateStandin, api: Api
) -> None:
    run = api.start_prediction("b" * 64, {"workflow_json": "{}"})
    service.runs[run.id].stages = [("aborted", "")]
    assert api.start_prediction("b" * 64, {"workflow_json": '{"aborted": 1}'}).status == "starting"
    assert [found.status for found in api.recent("prediction")] == ["starting", "canceled"]
    found = api.get("prediction", run.id)
    assert (found.ended, found.status) == (True, "canceled")
    assert found.error == "It was aborted: it could not begin in time."
