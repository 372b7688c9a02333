"""docs/errors.md quotes messages; each quotation is what the code says today, and every family of errors is in it.

A message is looked for in the string constants and f-strings of our Python files, and in what our shell scripts echo.
Words of others (ComfyUI, Cog, torch), which stand with a † behind them in the document, are not looked for.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfyui import errors
from comfyui.settings import PROJECT_ROOT

DOCUMENT = (PROJECT_ROOT / "docs" / "errors.md").read_text("utf-8")
VARIES = "…"
QUOTED = re.compile(r"`([^`]+)`(†?)")
SHELL_VALUE = re.compile(r"\$\([^)]*\)|\$\{?\w+\}?")
SHORTEST = 7
"""Letters that the longest piece of a message needs: less would be found anywhere."""


def our_files() -> list[Path]:
    """Every Python file that runs for a user; not ComfyUI's own."""
    upstream = PROJECT_ROOT / "comfyui" / "upstream"
    package = [path for path in (PROJECT_ROOT / "comfyui").rglob("*.py") if not path.is_relative_to(upstream)]
    return [PROJECT_ROOT / "predict.py", PROJECT_ROOT / "train.py", *package]


class Texts:
    """All that the code can say, with … for each value; names such as MANIFEST_NAME are put in."""

    def __init__(self, sources: list[str]) -> None:
        self._trees = [ast.parse(source) for source in sources]
        self._names: dict[str, set[str]] = {}
        for tree in self._trees:
            for name, value in _constants(tree):
                self._names.setdefault(name, set()).add(value)

    def all(self) -> Iterator[str]:
        for tree in self._trees:
            described = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in described:
                    yield self._text(node)

    def _text(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(value=str(text)):
                return text
            case ast.JoinedStr(values=parts):
                return "".join(map(self._text, parts))
            case ast.FormattedValue(value=ast.Name(id=name), conversion=-1, format_spec=None):
                values = self._names.get(name, set())
                return next(iter(values)) if len(values) == 1 else VARIES
        return VARIES


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))):
                yield name, text


def shell_texts() -> Iterator[str]:
    for script in (PROJECT_ROOT / "scripts").iterdir():
        for line in script.read_text("utf-8").splitlines():
            if "echo" in line:
                yield SHELL_VALUE.sub(VARIES, line)


def first_cells(heading: str) -> list[str]:
    """The first cell of each row of the tables whose first column is called `heading`."""
    tables = re.split(r"\n\n+", DOCUMENT)
    rows = [table.splitlines()[2:] for table in tables if table.startswith(f"| {heading} |")]
    return [row.split("|")[1] for table in rows for row in table]


def says(text: str, message: str) -> bool:
    """Whether the pieces of the message, between its …, stand in the text in their order."""
    pieces = filter(None, (piece.strip() for piece in message.split(VARIES)))
    return re.search(".*".join(map(re.escape, pieces)), text, re.DOTALL) is not None


@pytest.fixture(scope="module")
def texts() -> set[str]:
    python = Texts([path.read_text("utf-8") for path in our_files()])
    return {text for text in (*python.all(), *shell_texts()) if len(text) >= SHORTEST}


def test_every_message_in_the_tables_is_said_by_the_code(texts: set[str]) -> None:
    cells = first_cells("you see")
    assert cells
    assert [cell for cell in cells if not QUOTED.search(cell)] == []
    ours = [message for cell in cells for message, others in QUOTED.findall(cell) if not others]
    assert [message for message in ours if max(map(len, message.split(VARIES))) < SHORTEST] == []
    assert [message for message in ours if not any(says(text, message) for text in texts)] == []


def test_every_family_of_errors_is_explained_and_no_other() -> None:
    named = {name for cell in first_cells("error") for name, _ in QUOTED.findall(cell)}
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert named == classes


def test_a_text_is_what_is_said_with_its_values_left_open() -> None:
    source = '"""Not said."""\nNAME = "a.json"\nraise E(f"In {NAME}, {x!r} is " f"no {NAME!r}; see {y:.3f}.")\n'
    said = list(Texts([source]).all())
    assert "In a.json, … is no …; see …." in said
    assert "Not said." not in said
    assert says(said[1], "In a.json, … is no")
    assert not says(said[1], "is no … In a.json")
