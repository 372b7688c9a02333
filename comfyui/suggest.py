"""The nearest right name for a wrong one: people mistype names, and come with those of other tools. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

OTHER_TOOLS_AFFIXES = re.compile(r"^(hf|civitai)_|_urls?$")
"""hf_lora, checkpoint_url: what people remember from elsewhere."""


def nearest_input(name: str, known: Sequence[str]) -> str | None:
    """The input that `name` most likely means, None where nothing is near."""
    bare = OTHER_TOOLS_AFFIXES.sub("", name.lower())
    near = difflib.get_close_matches(bare, known, n=1, cutoff=0.5)
    return near[0] if near else next((right for right in known if bare and right.startswith(bare)), None)


def unknown_inputs_message(unknown: Iterable[str], known: Sequence[str]) -> str:
    """One sentence for each unknown input with the nearest right name, then all right names."""
    said = []
    for name in unknown:
        near = nearest_input(name, known)
        said.append(f"There is no input {name!r}{f'; did you mean {near!r}?' if near else '.'}")
    return f"{' '.join(said)} The inputs are: {', '.join(known)}."
