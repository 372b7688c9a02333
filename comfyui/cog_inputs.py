"""What Cog does not say about inputs when its built schema is not there: a wrong name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from cog.input import FieldInfo

from comfyui.errors import RequestError
from comfyui.suggest import unknown_inputs_message

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
