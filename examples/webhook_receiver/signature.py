"""Whether a webhook comes from Replicate, and lately: its signature, by the Standard Webhooks specification.

    webhook-id ────────┐
    webhook-timestamp ─┼─► "id.timestamp.body" ─► HMAC-SHA256 with the secret ─► is it in webhook-signature?
    body, as it came ──┘

Pure, and of the standard library alone: copy this file into another project as it is. It remembers nothing, so a
message that is sent again within the tolerance is right again: the caller keeps the ids of those it has (`store`).

https://replicate.com/docs/topics/webhooks/verify-webhook
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass

TOLERANCE_S = 300
"""How far a message's time may be from ours, back or ahead; what the specification's own libraries allow."""
SECRET_PREFIX = "whsec_"  # noqa: S105 - it says that a secret follows
MIN_KEY_BYTES = 24
"""The specification's; a shorter key is a secret that was cut when it was copied."""
_ID = re.compile(r"[!-~]{1,256}")
_SECONDS = re.compile(r"[0-9]{1,12}")


class SignatureError(Exception):
    """A message that is not to be believed; its text says why, and quotes nothing of the message or the secret."""


@dataclass(frozen=True)
class Claims:
    """What a message's headers claim; nothing of it is true before `verify` has seen the body.

    `id` is the same each time one event is sent; `timestamp` is in Unix seconds, as text, since the text is signed.
    """

    id: str
    timestamp: str
    signatures: tuple[str, ...]


def read_secret(text: str) -> bytes:
    """The key in a signing secret ("whsec_" and base64). Raises ValueError, which does not quote it."""
    body = text.strip().removeprefix(SECRET_PREFIX)
    if not body:
        raise ValueError("it is empty")
    try:
        key = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"it is not {SECRET_PREFIX} followed by base64") from None
    if len(key) < MIN_KEY_BYTES:
        raise ValueError(f"it holds {len(key)} bytes, and {MIN_KEY_BYTES} are the fewest")
    return key


def claims_of(headers: Mapping[str, str], now_s: float, tolerance_s: float = TOLERANCE_S) -> Claims:
    """Read the headers of a message that came at `now_s` (Unix seconds); their names may be written in any case.

    Cheap, and needs no body. Raises SignatureError if one is missing, malformed, too old or too far ahead.
    """
    given = {name.lower(): value for name, value in headers.items()}
    found = []
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        if not given.get(name):
            raise SignatureError(f"the header {name} is missing")
        found.append(given[name])
    event_id, timestamp, signatures = found
    if not _ID.fullmatch(event_id):
        raise SignatureError("webhook-id is too long, or has characters that no id has")
    if not _SECONDS.fullmatch(timestamp):
        raise SignatureError("webhook-timestamp is not a number of seconds")
    age_s = now_s - int(timestamp)
    if abs(age_s) > tolerance_s:
        seen = f"{age_s:.0f} s old" if age_s > 0 else f"{-age_s:.0f} s ahead of this machine's clock"
        raise SignatureError(f"webhook-timestamp is {seen}, and {tolerance_s:.0f} s are allowed")
    return Claims(event_id, timestamp, tuple(signatures.split()))


def verify(claims: Claims, body: bytes, key: bytes) -> None:
    """Return if one of the signatures is right for `body`, the very bytes that came. Raises SignatureError otherwise.

    There are several while a secret is being replaced; versions other than v1 are passed over.
    """
    signed = f"{claims.id}.{claims.timestamp}.".encode() + body
    expected = b"v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256))
    if not any(hmac.compare_digest(given.encode(errors="replace"), expected) for given in claims.signatures):
        raise SignatureError("no signature in webhook-signature fits the body and the secret")
