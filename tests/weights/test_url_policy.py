"""Which URLs may be fetched."""

from __future__ import annotations

import pytest

from comfyui.errors import DownloadError
from comfyui.url_policy import Origin, check_address, check_url, display_url, origin


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a",
        "http://localhost:8188/a",
        "http://2130706433/a",
        "http://0x7f.1/a",
        "http://[::1]/a",
        "http://[::ffff:127.0.0.1]/a",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/",
        "http://0.0.0.0/",
    ],
)
def test_private_hosts_are_refused(url: str) -> None:
    with pytest.raises(DownloadError, match=r"not a public internet address.*ALLOW_PRIVATE_URLS=1"):
        check_url(url, allow_private=False)
    assert check_url(url, allow_private=True).scheme == "http"


@pytest.mark.parametrize(
    "address",
    ["192.168.1.1", "100.64.0.1", "224.0.0.1", "fe80::1%eth0", "fc00::1", "2002:7f00:1::", "64:ff9b::10.0.0.1", "::"],
)
def test_private_addresses_are_refused(address: str) -> None:
    with pytest.raises(DownloadError, match="not a public"):
        check_address(address, shown="it")


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_public_addresses_pass(address: str) -> None:
    check_address(address, shown="it")


def test_a_public_url_passes_without_a_request() -> None:
    assert check_url("https://8.8.8.8/a", allow_private=False) == Origin("https", "8.8.8.8", 443)


def test_an_unknown_host_is_named_unless_a_proxy_will_look_it_up() -> None:
    url = "https://no-such-host.invalid/a?token=SECRET"
    with pytest.raises(DownloadError, match=r"no-such-host\.invalid.*was not found") as caught:
        check_url(url, allow_private=False)
    assert "SECRET" not in str(caught.value)
    assert check_url(url, allow_private=False, via_proxy=True).host == "no-such-host.invalid"


def test_origins() -> None:
    assert origin("HTTP://Example.com/a") == Origin("http", "example.com", 80)
    assert origin("https://example.com:8443") == Origin("https", "example.com", 8443)


def test_display() -> None:
    assert display_url("https://u:p@example.com:8/a?b=c#d") == "https://example.com:8/a"
    assert display_url("https://[") == "(a URL that cannot be read)"


@pytest.mark.parametrize("start", ["", "https:/", "https//", "https:", "https:///", "//?", "hf:"])
@pytest.mark.parametrize("password", ["s3cret", "s3c/ret", "s3c?ret", "s3c#ret", "s3c@ret", "s3c:ret"])
def test_a_mistyped_url_shows_no_password(start: str, password: str) -> None:
    url = f"{start}alice:{password}@example.com/f?token=s3c#ret"
    assert display_url(url) == "example.com/f"
    with pytest.raises(DownloadError) as caught:
        origin(url)
    assert "s3c" not in str(caught.value)
    assert "ret" not in str(caught.value)


def test_a_path_without_a_host_is_shown() -> None:
    assert display_url("weights/my.tar") == "weights/my.tar"
