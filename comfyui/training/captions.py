"""Which caption belongs to which image of a dataset.

    a.txt          beside a.jpg: Kohya's sd-scripts and most tools                       first
    a.caption      beside a.jpg: the default ending of sd-scripts                        second
    caption.csv, metadata.jsonl, …   the lists of `caption_lists`, in the files' order   last

Where several speak of one image, the first of this order is taken, and a remark says so. All lines of a caption file
are one caption. An image that none speaks of gets the trigger word; without one, the name in its Kohya folder
("10_sls frog": "sls frog"), as sd-scripts does; else nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from comfyui.errors import TrainingInputError
from comfyui.training.caption_lists import LIST_NAMES, read_list
from comfyui.training.remarks import Remark, Skipped, listed, problem, shown
from comfyui.training.source_files import SourceFile

CAPTION_SUFFIXES = (".txt", ".caption")
MAX_TEXT_BYTES = 16 * 1024**2
MAX_CAPTION_LETTERS = 10_000
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Caption:
    """What an image shows, on one line; `origin` is the file that says so."""

    text: str
    origin: str


@dataclass
class Captions:
    """What was found: captions by the image's name, and what there is to say of it."""

    of_image: dict[str, Caption] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    problems: list[TrainingInputError] = field(default_factory=list)

    def add(self, image: str, text: str, origin: str) -> None:
        """Take a caption unless the image has one; an empty one is none."""
        caption = Caption(" ".join(text.split()), origin)
        if len(caption.text) > MAX_CAPTION_LETTERS:
            self.problems.append(
                problem(origin, f"has a caption of {len(caption.text)} letters; {MAX_CAPTION_LETTERS} are the most.")
            )
        elif caption.text:
            first = self.of_image.setdefault(image, caption)
            if first.text != caption.text:
                self.remarks.append(
                    Remark(
                        image, f"has its caption from {shown(first.origin)}; another one in {shown(origin)} is not used"
                    )
                )


def find_captions(images: Sequence[SourceFile], others: Sequence[SourceFile]) -> Captions:
    """The captions for `images` in the `others`, the files that are no images, both in natural order."""
    found = Captions()
    names = _ImageNames(images)
    for suffix in CAPTION_SUFFIXES:
        for file in others:
            if file.suffix == suffix:
                _take_caption_file(file, names, found)
    for file in others:
        if file.path.name.lower() in LIST_NAMES:
            _take_list(file, names, found)
        elif file.suffix not in CAPTION_SUFFIXES:
            found.skipped.append(Skipped(file.name, "no image and no caption"))
    return found


def with_trigger_word(caption: str, trigger_word: str) -> str:
    """The caption with the trigger word in it: as it is where it has the word, else with it in front.

    So does ai-toolkit with its `trigger_word` (and so Replicate's FLUX trainer, which runs it); sd-scripts has none.
    """
    if not trigger_word or re.search(rf"(?<!\w){re.escape(trigger_word)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger_word}, {caption}" if caption else trigger_word


def read_text(file: SourceFile) -> str:
    """The text of a small UTF-8 file, with or without a byte order mark. Raises TrainingInputError, naming the file."""
    try:
        if file.path.stat().st_size > MAX_TEXT_BYTES:
            raise problem(file.name, f"is larger than {MAX_TEXT_BYTES >> 20} MiB, too much for a text with captions.")
        content = file.path.read_bytes()
    except OSError as error:
        raise problem(file.name, f"cannot be read: {error.strerror}.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        seen = "UTF-16" if content.startswith(UTF_16_MARKS) else f"byte 0x{content[error.start]:02x} at {error.start}"
        raise problem(file.name, f"is not UTF-8 ({seen}); save it with the encoding UTF-8.") from error
    if "\0" in text:
        raise problem(file.name, "holds bytes that are no text.")
    return text


class _ImageNames:
    """Finds images by the names that people write: exactly, with other capitals, or without the folder."""

    def __init__(self, images: Sequence[SourceFile]) -> None:
        self._exact = {image.name for image in images}
        self._folded = _grouped((image.name.casefold(), image.name) for image in images)
        self._bare = _grouped((image.name.rpartition("/")[2].casefold(), image.name) for image in images)
        self._stems = _grouped((_stem(image.name).casefold(), image.name) for image in images)

    def beside(self, caption_file: str) -> Sequence[str]:
        """The images that a caption file belongs to by its name: usually one."""
        return self._stems.get(_stem(caption_file).casefold(), ())

    def listed(self, folder: str, written: str) -> Sequence[str]:
        """The images that `written` may mean in a list that lies in `folder`: one, unless it is wrong."""
        path = re.sub(r"^(\./)+", "", unicodedata.normalize("NFC", written).replace("\\", "/"))
        name = f"{folder}/{path}" if folder else path
        if name in self._exact:
            return (name,)
        bare = path.rpartition("/")[2].casefold()
        return self._folded.get(name.casefold()) or self._bare.get(bare, ())


def _take_caption_file(file: SourceFile, names: _ImageNames, found: Captions) -> None:
    images = names.beside(file.name)
    if not images:
        found.skipped.append(Skipped(file.name, "a text without an image of the same name"))
        return
    try:
        text = read_text(file)
    except TrainingInputError as error:
        found.problems.append(error)
        return
    for image in images:
        found.add(image, text, file.name)


def _take_list(file: SourceFile, names: _ImageNames, found: Captions) -> None:
    try:
        rows = read_list(file.name, read_text(file))
    except TrainingInputError as error:
        found.problems.append(error)
        return
    for row in rows:
        if isinstance(row, TrainingInputError):
            found.problems.append(row)
            continue
        images = names.listed(file.folder, row.file_name)
        if len(images) == 1:
            found.add(images[0], row.text, file.name)
        elif images:
            found.problems.append(
                problem(
                    file.name,
                    f"means several images by {shown(row.file_name)} in line {row.line}: {listed(images)}; "
                    "write the folder too.",
                )
            )
        else:
            found.problems.append(
                problem(
                    file.name,
                    f"has a caption for {shown(row.file_name)} in line {row.line}, an image that is not there.",
                )
            )


def _stem(name: str) -> str:
    folder, slash, bare = name.rpartition("/")
    return folder + slash + bare.rpartition(".")[0]


def _grouped(pairs: Iterator[tuple[str, str]]) -> Mapping[str, Sequence[str]]:
    groups: dict[str, list[str]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups
