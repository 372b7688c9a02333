"""Captions of many images in one file: caption.csv and metadata.jsonl, read from their text. Pure.

    caption.csv      Replicate's form (stability-ai/sdxl): columns `image_file` and `caption`, in any order
    metadata.csv     Hugging Face's form (datasets, ImageFolder): columns `file_name` and `text`
    metadata.jsonl   the same, one JSON object on each line

People write them by hand and with spreadsheets, so other usual names of columns, no names at all (file name first), and
semicolons or tabs in place of commas are understood.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfyui.errors import TrainingInputError
from comfyui.training.remarks import problem
from comfyui.training.source_files import IMAGE_SUFFIXES, REFUSED_SUFFIXES

if TYPE_CHECKING:
    from _csv import Reader

LIST_NAMES = ("caption.csv", "captions.csv", "metadata.csv", "metadata.jsonl")
FILE_KEYS = ("file_name", "filename", "image_file", "image_path", "file", "image", "path")
TEXT_KEYS = ("text", "caption", "captions", "prompt", "description")
DELIMITERS = (",", ";", "\t")
JSON_EXAMPLE = '{"file_name": "a.jpg", "text": "…"}'
EXPECTED = "begin it with a line `file_name,text`, then one line for each image"


@dataclass(frozen=True)
class ListedCaption:
    """One line of a list: the image's name as it is written there, and its caption, "" where it has none."""

    line: int
    file_name: str
    text: str


@dataclass(frozen=True)
class _CsvForm:
    """How a list is written: what parts the fields, whether names of columns come first, and which columns count."""

    delimiter: str
    has_header: bool
    columns: int
    file_at: int
    text_at: int


def read_list(name: str, text: str) -> list[ListedCaption | TrainingInputError]:
    """The captions in a list called `name`; each line that cannot be understood is there as the error that says so."""
    return _read_jsonl(name, text) if name.lower().endswith(".jsonl") else _read_csv(name, text)


def _read_csv(name: str, text: str) -> list[ListedCaption | TrainingInputError]:
    form = _csv_form(text)
    if form is None:
        return (
            [problem(name, f"has no columns with the file names and the captions; {EXPECTED}.")] if text.strip() else []
        )
    captions: list[ListedCaption | TrainingInputError] = []
    reader = _reader(text, form.delimiter)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                captions.append(_csv_row(name, reader.line_num, row, form))
    except csv.Error as error:
        captions.append(
            problem(name, f"cannot be read at line {reader.line_num}: {error}. Write a quote inside quotes twice.")
        )
    return captions[1:] if form.has_header else captions


def _csv_form(text: str) -> _CsvForm | None:
    """How a list is written, by its first line; None where that says nothing of file names and captions."""
    for delimiter in DELIMITERS:
        with suppress(csv.Error):  # Quotes are damaged only if this is the right delimiter, and then it is read again.
            first = next(iter(_reader(text.lstrip("\r\n"), delimiter)), [""])
            header = [cell.strip().lower().replace(" ", "_") for cell in first]
            file_at, text_at = _column(header, FILE_KEYS), _column(header, TEXT_KEYS)
            if file_at is not None and text_at is not None:
                return _CsvForm(delimiter, True, len(header), file_at, text_at)
            if len(header) > 1 and header[0].endswith((*IMAGE_SUFFIXES, *REFUSED_SUFFIXES)):
                return _CsvForm(delimiter, False, 2, 0, 1)
    return None


def _reader(text: str, delimiter: str) -> Reader:
    # Without strict, a quote that is never closed takes all lines after it into one caption.
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)


def _column(header: Sequence[str], keys: Sequence[str]) -> int | None:
    return next((header.index(key) for key in keys if key in header), None)


def _csv_row(name: str, line: int, cells: list[str], form: _CsvForm) -> ListedCaption | TrainingInputError:
    if len(cells) > form.columns and form.text_at == form.columns - 1:
        # Captions hold commas, and people forget the quotes; where the caption is last, nothing is lost by it.
        cells = [*cells[: form.text_at], f"{form.delimiter} ".join(cells[form.text_at :])]
    if len(cells) > form.columns or len(cells) <= max(form.file_at, form.text_at):
        return problem(
            name,
            f"has {len(cells)} and not {form.columns} fields in line {line}; put a caption that holds "
            f"{form.delimiter!r} in quotes.",
        )
    return ListedCaption(line, cells[form.file_at].strip(), cells[form.text_at])


def _read_jsonl(name: str, text: str) -> list[ListedCaption | TrainingInputError]:
    # Not splitlines(): JSON may hold U+2028 and the like as they are.
    return [_json_row(name, number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _json_row(name: str, number: int, line: str) -> ListedCaption | TrainingInputError:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        return problem(name, f"is no JSON object in line {number}; write {JSON_EXAMPLE}.")
    file_key = next((key for key in FILE_KEYS if key in row), None)
    text_key = next((key for key in TEXT_KEYS if key in row), None)
    if file_key is None or text_key is None:
        return problem(name, f"lacks the file name or the caption in line {number}; write {JSON_EXAMPLE}.")
    file_name, text = row[file_key], "" if row[text_key] is None else row[text_key]
    if not isinstance(file_name, str) or not isinstance(text, str):
        return problem(name, f"has a file name or caption that is no text in line {number}; write {JSON_EXAMPLE}.")
    return ListedCaption(number, file_name, text)
