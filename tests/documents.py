"""The project's Markdown pages as the tests read them: headings, links, tables, fenced blocks. Pure but for reading."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from comfyui.settings import PROJECT_ROOT

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#{1,4}) (.+)$", re.MULTILINE)
_LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block; `first` is its first line, by which tests and people name it."""

    page: str
    language: str
    text: str

    @property
    def first(self) -> str:
        return self.text.splitlines()[0].strip()

    @cached_property
    def lines(self) -> list[str]:
        """Its lines, with those that a backslash continues joined."""
        return [line.strip() for line in self.text.replace("\\\n", " ").splitlines()]


@dataclass(frozen=True)
class Page:
    """A page by its path in the project."""

    name: str
    text: str

    @property
    def folder(self) -> Path:
        return (PROJECT_ROOT / self.name).parent

    @cached_property
    def blocks(self) -> list[Block]:
        return [Block(self.name, found["language"], _dedent(found)) for found in _FENCE.finditer(self.text)]

    @cached_property
    def prose(self) -> str:
        """The page without its fenced blocks."""
        return _FENCE.sub("", self.text)

    def headings(self, level: int) -> list[str]:
        return [title for signs, title in _HEADING.findall(self.prose) if len(signs) == level]

    @cached_property
    def anchors(self) -> list[str]:
        return [anchor_of(title) for _, title in _HEADING.findall(self.prose)]

    @cached_property
    def links(self) -> list[str]:
        return [*_LINK.findall(self.prose), *re.findall(r'src="([^"]+)"', self.prose)]

    @cached_property
    def code(self) -> list[str]:
        """The texts between single backticks."""
        return _CODE.findall(self.prose)

    @cached_property
    def contents(self) -> list[str]:
        """The anchors of the list of links that stands before the first section; empty where there is none."""
        head = self.prose.partition("\n## ")[0]
        return re.findall(r"^- \[[^\]]*\]\(#([^)]+)\)$", head, re.MULTILINE)

    def sections(self) -> Iterator[tuple[str, str]]:
        """Title and text of each section of the second level, without fenced blocks."""
        for part in self.prose.split("\n## ")[1:]:
            title, _, text = part.partition("\n")
            yield title, text

    def tables(self) -> Iterator[list[list[str]]]:
        """Each table as rows of cells, the heading first."""
        for lines in re.findall(r"(?:^ *\|.*\|$\n?)+", self.prose, re.MULTILINE):
            rows = [_cells(line) for line in lines.splitlines()]
            yield [rows[0], *rows[2:]]


def anchor_of(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def code_in(cell: str) -> list[str]:
    """The texts between backticks in a cell."""
    return _CODE.findall(cell)


def read_page(path: Path) -> Page:
    return Page(str(path.relative_to(PROJECT_ROOT)), path.read_text("utf-8"))


def user_pages() -> list[Page]:
    """What users read: the READMEs, and docs/."""
    paths = [PROJECT_ROOT / "README.md", *sorted((PROJECT_ROOT / "docs").glob("*.md"))]
    return [read_page(path) for path in [*paths, *sorted((PROJECT_ROOT / "examples").glob("*/README.md"))]]


def _dedent(found: re.Match[str]) -> str:
    indent = len(found["indent"])
    return "".join(line[indent:] if line.strip() else line for line in found["text"].splitlines(keepends=True))


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
