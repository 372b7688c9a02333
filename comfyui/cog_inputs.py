"""What Cog does not say about inputs when its built schema is not there: a wrong name."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from cog.input import FieldInfo

from comfyui.errors import RequestError

Function = TypeVar("Function", bound=Callable[..., Any])


def explain_unknown_inputs(function: Function) -> Function:
    """Decorate run() or train(): an input it does not have is a RequestError that lists the right names.

    Without `.cog/openapi_schema.json` (which only `cog build` writes) Cog passes every input on by name, and the caller
    would see Python's TypeError. Cog also puts the plain default in place of each Input(...), but only on the outermost
    function (coglet, predictor.rs), so it is done here for the decorated one.
    """
    function.__defaults__ = tuple(
        default.default if isinstance(default, FieldInfo) else default for default in function.__defaults__ or ()
    )
    known = [name for name in inspect.signature(function).parameters if name not in ("self", "weights")]

    def check(names: dict[str, Any]) -> None:
        if unknown := [name for name in names if name not in known]:
            raise RequestError(unknown_inputs_message(unknown, known))

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def checked_async(*args: Any, **inputs: Any) -> Any:
            check(inputs)
            return await function(*args, **inputs)

        return checked_async  # type: ignore[return-value]

    @functools.wraps(function)
    def checked(*args: Any, **inputs: Any) -> Any:
        check(inputs)
        return function(*args, **inputs)

    return checked  # type: ignore[return-value]


def unknown_inputs_message(unknown: list[str], known: list[str]) -> str:
    """One sentence for each unknown input with the nearest right name, then all right names."""
    said = []
    for name in unknown:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        said.append(f"There is no input {name!r}{f'; did you mean {near[0]!r}?' if near else '.'}")
    return f"{' '.join(said)} The inputs are: {', '.join(known)}."
