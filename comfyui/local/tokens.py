"""A person's tokens: from a file named on the command line, or from the environment.

There is no flag for a token itself: every user of a machine can read its command lines.
"""

from __future__ import annotations

import os
from pathlib import Path

from comfyui.errors import RequestError
from comfyui.weights.remote import is_token


def read_token(file: Path | None, variable: str) -> str | None:
    """The token in `file`, else that of the environment; None where there is none.

    Raises RequestError for a file that cannot be read, and for a text that cannot be a token; neither is quoted.
    """
    where = variable if file is None else f"the file {file}"
    try:
        text = os.environ.get(variable, "") if file is None else file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        # Not the error itself: what cannot be decoded would be quoted in it.
        raise RequestError(f"The token in {where} cannot be read: {type(error).__name__}.") from None
    token = text.strip()
    if not is_token(token):
        raise RequestError(
            f"The token in {where} has a space, a line end or a letter that no token has; copy it again."
        )
    return token or None


def need_token(file: Path | None, variable: str, flag: str, page: str) -> str:
    """As read_token; without one a RequestError that says where to make it and how to give it."""
    token = read_token(file, variable)
    if token is None:
        raise RequestError(f"No token is given. Make one at {page}, then export {variable}=… or use {flag} FILE.")
    return token
