"""Pictures as people have them, made into a dataset to train on: RGB PNGs of final size, captions, repeats, one order.

Taken is a folder, or a zip or tar of one: loose images, images with `name.txt` captions, Kohya's folders
`<repeats>_<name>/` anywhere in it, and the lists of `caption_lists`. What is damaged or contradicts itself is refused,
with everything else that is wrong, before any time on a GPU is paid for; what is no picture is left out and named.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Event

from PIL import Image, ImageOps

from comfyui.archives import ArchiveInput, archive_suffix, unpack
from comfyui.errors import StoppedError, StorageError, TrainingInputError
from comfyui.training.captions import Caption, find_captions, with_trigger_word
from comfyui.training.fitting import check_fit, fitted_size
from comfyui.training.pictures import TAKEN, read_picture
from comfyui.training.remarks import INPUT_NAME, Remark, Skipped, grouped, listed, problem, refuse, shown
from comfyui.training.source_files import IMAGE_SUFFIXES, MAX_FILES, REFUSED_SUFFIXES, SourceFile, list_files
from comfyui.weights.disk import room_errors

MAX_TOTAL_BYTES = 8 * 1024**3
MAX_REPEATS = 1000
"""More is no number of repeats: "2024_06_photos"."""
KOHYA_FOLDER = re.compile(r"([0-9]+)_(.*)", re.DOTALL)
REGULARISATION_FOLDERS = {"reg", "reg_data", "regularization", "regularisation"}
"""Where the tools around sd-scripts put images of the class without the subject; TrainLoraNode has no use for them."""
PNG_COMPRESSION = 1
"""Of zlib's 9: the files are read once."""


@dataclass(frozen=True)
class TrainingImage:
    """One image to train on.

    `path` is an RGB PNG of `width` x `height` pixels that we wrote; `source` is the image's name as the person knows it
    ("10_fox/a.jpg"). `caption_from` is the file that the caption came from, None where it is the trigger word or the
    folder's name alone, or empty.
    """

    path: Path
    caption: str
    repeats: int
    width: int
    height: int
    source: str
    caption_from: str | None = None


@dataclass(frozen=True)
class Dataset:
    """Images in natural order of their names; the files left out; `sha256` of what is learnt from.

    The digest is over sizes, pixels, captions and repeats of the images in their order. So it is the same for a folder
    and any archive of it, whichever order the files were listed or packed in.
    """

    images: tuple[TrainingImage, ...]
    skipped: tuple[Skipped, ...]
    sha256: str
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class _Subject:
    """What the folders above an image say of it, by Kohya's rule."""

    repeats: int = 1
    name: str = ""


def prepare_dataset(
    source: Path,
    out_dir: Path,
    *,
    resolution: int,
    fit: str = "buckets",
    trigger_word: str = "",
    stop: Event | None = None,
) -> Dataset:
    """Read the folder, zip or tar `source` and write its images into `out_dir`, a new or empty folder.

    `resolution` is in pixels. "crop" cuts the middle square out of each image and makes it `resolution` wide and high;
    "buckets" keeps its shape: it is scaled to cover the nearest of `fitting.buckets` and cut at two edges. Small
    images are scaled up, with a remark. `trigger_word` becomes part of each caption, and is the caption where there is
    none (`captions` has the rules).

    Raises TrainingInputError with all problems at once, StorageError for a full disk or an `out_dir` in use, and
    StoppedError once `stop` is set; nothing is in `out_dir` then.
    """
    check_fit(resolution, fit)
    _require_empty(out_dir)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with (
        room_errors(out_dir.parent, INPUT_NAME, "more bytes"),
        tempfile.TemporaryDirectory(prefix=".dataset-", dir=out_dir.parent) as work,
    ):
        folder = source if source.is_dir() else _unpacked(source, Path(work) / "unpacked", stop)
        pictures = Path(work) / "pictures"
        pictures.mkdir()
        preparation = _Preparation(pictures, out_dir, resolution, fit, " ".join(trigger_word.split()), stop or Event())
        dataset = preparation.run(folder)
        pictures.rename(out_dir)
    return dataset


def report(dataset: Dataset, *, batch_size: int, grad_accumulation_steps: int, steps: int) -> list[str]:
    """What will be trained on, in plain lines for the log, before the training starts.

    A step of TrainLoraNode changes the LoRA once, by `grad_accumulation_steps` batches (comfy_extras/nodes_train.py of
    0.30.0). It draws batches at random, so an epoch is a measure of how often an image is seen, not an order.
    """
    images = dataset.images
    total = sum(image.repeats for image in images)
    per_epoch = -(-total // batch_size)
    alone = [image for image in images if image.caption_from is None]
    sizes = Counter((image.width, image.height) for image in images)
    lines = [
        f"Dataset: {_count(len(images), 'image')}, {total} with repeats, sha256 {dataset.sha256}",
        f"Captions: {len(images) - len(alone)} of {_count(len(images), 'image')} with one of their own",
        *grouped((image.source, _without_caption(image.caption)) for image in alone),
        f"Sizes: {', '.join(f'{width}x{height} ({count})' for (width, height), count in sorted(sizes.items()))}",
        *(f"Repeats: {line}" for line in _repeats(images)),
        f"Steps: {steps}, each of {grad_accumulation_steps} x {batch_size} images; with {per_epoch} batches in an "
        f"epoch, {steps * grad_accumulation_steps / per_epoch:.3g} epochs",
    ]
    lines += [f"Note: {line}" for line in grouped((remark.source, remark.text) for remark in dataset.remarks)]
    lines += [f"Skipped: {line}" for line in grouped((skip.source, skip.reason) for skip in dataset.skipped)]
    return lines


def _without_caption(caption: str) -> str:
    return f"Captions: {caption!r} alone" if caption else "Captions: none (give trigger_word, or caption files)"


def _repeats(images: Sequence[TrainingImage]) -> list[str]:
    folders: dict[tuple[str, int], int] = Counter((image.source.rpartition("/")[0], image.repeats) for image in images)
    if all(repeats == 1 for _, repeats in folders):
        return []
    return [f"{shown(folder) or '(top)'}: {repeats} x {count}" for (folder, repeats), count in folders.items()]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _require_empty(out_dir: Path) -> None:
    if out_dir.is_dir() and not any(out_dir.iterdir()):
        return
    if out_dir.exists() or out_dir.is_symlink():
        raise StorageError(
            f"{out_dir} is in use; the dataset needs a folder of its own. Remove it, or name another.",
            path=str(out_dir),
            expected="a new or empty folder",
            seen="something else",
        )


def _unpacked(source: Path, folder: Path, stop: Event | None) -> Path:
    if not source.is_file():
        raise TrainingInputError(f"{INPUT_NAME} {shown(str(source))} is not there.", input_name=INPUT_NAME)
    if archive_suffix(source) is None:
        raise TrainingInputError(
            f"{INPUT_NAME} {source.name!r} is neither a zip nor a tar that can be read; it may be cut short, or of "
            "another kind (rar, 7z). Put the images, with their captions, into one zip.",
            input_name=INPUT_NAME,
        )
    folder.mkdir()
    error = partial(TrainingInputError, input_name=INPUT_NAME)
    unpack(source, folder, ArchiveInput(INPUT_NAME, "the archive", error, MAX_FILES, MAX_TOTAL_BYTES), stop)
    return folder


class _Preparation:
    """One run over a folder, collecting what is wrong instead of stopping at it."""

    def __init__(
        self, pictures: Path, out_dir: Path, resolution: int, fit: str, trigger_word: str, stop: Event
    ) -> None:
        self._pictures = pictures
        self._out_dir = out_dir
        self._resolution = resolution
        self._fit = fit
        self._trigger_word = trigger_word
        self._stop = stop
        self._remarks: list[Remark] = []
        self._skipped: list[Skipped] = []
        self._problems: dict[str, TrainingInputError] = {}
        self._digest = hashlib.sha256()

    def run(self, folder: Path) -> Dataset:
        """Read all files of `folder`, write the images, raise for what is wrong."""
        files, self._skipped = list_files(folder)
        files = [file for file in files if not self._is_regularisation(file)]
        suffixes = (*IMAGE_SUFFIXES, *REFUSED_SUFFIXES)
        pictures = [file for file in files if file.suffix in suffixes]
        captions = find_captions(pictures, [file for file in files if file.suffix not in suffixes])
        self._remarks += captions.remarks
        self._skipped += captions.skipped
        self._problems |= {str(error): error for error in captions.problems}
        images: list[TrainingImage] = []
        for file in pictures:
            if self._stop.is_set():
                raise StoppedError("It was stopped while the pictures were read.")
            try:
                subject = _subject(file)
                if subject.repeats:
                    images.append(self._image(file, subject, captions.of_image.get(file.name), len(images)))
                else:
                    self._skipped.append(Skipped(file.name, "its folder's number of repeats is 0"))
            except TrainingInputError as error:
                self._problems[str(error)] = error
        if self._problems:
            raise refuse(list(self._problems.values()))
        if not images:
            seen = listed(skip.source for skip in self._skipped)
            raise TrainingInputError(
                f"{INPUT_NAME} holds no images{f'; there are {seen}' if seen else ''}. {TAKEN}", input_name=INPUT_NAME
            )
        return Dataset(tuple(images), tuple(self._skipped), self._digest.hexdigest(), tuple(self._remarks))

    def _is_regularisation(self, file: SourceFile) -> bool:
        folders = pairwise(file.folder.casefold().split("/"))
        found = any(upper in REGULARISATION_FOLDERS and KOHYA_FOLDER.fullmatch(lower) for upper, lower in folders)
        if found:
            self._skipped.append(Skipped(file.name, "for regularisation, which ComfyUI's training does not have"))
        return found

    def _image(self, file: SourceFile, subject: _Subject, caption: Caption | None, number: int) -> TrainingImage:
        picture = read_picture(file)
        self._remarks += [Remark(file.name, text) for text in picture.remarks]
        width, height = fitted_size(*picture.image.size, resolution=self._resolution, fit=self._fit)
        if picture.image.width < width or picture.image.height < height:
            self._remarks.append(Remark(file.name, f"smaller than {width}x{height}, scaled up"))
        fitted = ImageOps.fit(picture.image, (width, height), Image.Resampling.LANCZOS)
        name = f"{number:05d}.png"
        if not self._problems:
            fitted.save(self._pictures / name, compress_level=PNG_COMPRESSION)
        text = with_trigger_word(caption.text if caption else "", self._trigger_word) or subject.name
        if caption and text != caption.text:
            self._remarks.append(Remark(file.name, f"{self._trigger_word!r} put in front of the caption"))
        learnt = [width, height, hashlib.sha256(fitted.tobytes()).hexdigest(), text, subject.repeats]
        self._digest.update(json.dumps(learnt).encode() + b"\n")
        return TrainingImage(
            self._out_dir / name, text, subject.repeats, width, height, file.name, caption.origin if caption else None
        )


def _subject(file: SourceFile) -> _Subject:
    """What the innermost folder `<repeats>_<name>` above a file says; raises TrainingInputError for too many."""
    for folder in reversed(file.folder.split("/")):
        if match := KOHYA_FOLDER.fullmatch(folder):
            repeats = int(match[1])
            if repeats > MAX_REPEATS:
                raise problem(
                    file.folder,
                    f"would repeat its images {repeats} times; {MAX_REPEATS} are the most. A folder's name begins with "
                    "a number and _ only where the number is the repeats: rename it.",
                )
            return _Subject(repeats, " ".join(match[2].split()))
    return _Subject()
