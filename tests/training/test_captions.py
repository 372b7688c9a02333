"""Captions beside images and in lists, as people and spreadsheets write them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.errors import TrainingInputError
from comfyui.training.caption_lists import LIST_NAMES, ListedCaption, read_list
from comfyui.training.captions import Captions, find_captions, with_trigger_word
from comfyui.training.remarks import Remark
from tests.training.dataset_parts import Files, source_file

IMAGES = ("10_fox/a.jpg", "10_fox/b.png", "2_sea/a.jpg", "top.webp")


def found(tmp_path: Path, others: Files, images: Sequence[str] = IMAGES) -> Captions:
    return find_captions(
        [source_file(tmp_path, name) for name in images],
        [source_file(tmp_path, name, content) for name, content in others.items()],
    )


def texts(captions: Captions) -> dict[str, str]:
    assert [str(error) for error in captions.problems] == []
    return {image: caption.text for image, caption in captions.of_image.items()}


def problems(captions: Captions) -> list[str]:
    assert all(error.input_name == "training_images" for error in captions.problems)
    return [str(error) for error in captions.problems]


def test_a_text_beside_an_image_is_its_caption(tmp_path: Path) -> None:
    others: Files = {"10_fox/a.txt": "\ufeffa fox,\r\n  on snow \n", "10_fox/B.TXT": "b", "2_sea/a.caption": "the sea"}
    assert texts(found(tmp_path, others)) == {
        "10_fox/a.jpg": "a fox, on snow",
        "10_fox/b.png": "b",
        "2_sea/a.jpg": "the sea",
    }


def test_two_images_of_one_name_share_their_caption_and_dots_are_no_endings(tmp_path: Path) -> None:
    captions = found(tmp_path, {"a.v2.txt": "a"}, ["a.v2.jpg", "a.v2.png", "a.jpg"])
    assert texts(captions) == {"a.v2.jpg": "a", "a.v2.png": "a"}


def test_an_empty_caption_is_none(tmp_path: Path) -> None:
    assert texts(found(tmp_path, {"top.txt": " \n", "top.caption": "the top"})) == {"top.webp": "the top"}


def test_a_caption_without_an_image_is_named_and_not_read(tmp_path: Path) -> None:
    captions = found(tmp_path, {"README.txt": b"\xff\xfe", "2_sea/b.caption": "b"})
    assert texts(captions) == {}
    assert [(skip.source, skip.reason) for skip in captions.skipped] == [
        ("README.txt", "a text without an image of the same name"),
        ("2_sea/b.caption", "a text without an image of the same name"),
    ]


def test_the_nearest_caption_wins_and_the_others_are_named(tmp_path: Path) -> None:
    others: Files = {
        "captions.csv": "file,text\ntop.webp,from the list\n10_fox/a.jpg,  a   fox\n",
        "10_fox/a.txt": "a fox",
        "top.caption": "from the caption",
        "top.txt": "from the text",
    }
    captions = found(tmp_path, others)
    assert texts(captions) == {"10_fox/a.jpg": "a fox", "top.webp": "from the text"}
    assert captions.remarks == [
        Remark("top.webp", "has its caption from top.txt; another one in top.caption is not used"),
        Remark("top.webp", "has its caption from top.txt; another one in captions.csv is not used"),
    ]


CSVS = {
    "Replicate": "caption,image_file\na fox,10_fox/a.jpg\nthe top,top.webp\n",
    "Hugging Face": "file_name,text\n10_fox/a.jpg,a fox\ntop.webp,the top\n",
    "other names and columns": "id,Image,Author,Caption\n1,10_fox/a.jpg,me,a fox\n2,top.webp,me,the top\n",
    "empty lines first": "\n\r\nfile_name,text\n10_fox/a.jpg,a fox\ntop.webp,the top\n",
    "no names": "10_fox/a.jpg,a fox\ntop.webp,the top",
    "semicolons": "File Name;Caption\r\n10_fox/a.jpg;a fox\r\n\r\ntop.webp;the top\r\n",
    "tabs": "file_name\ttext\n10_fox/a.jpg\ta fox\ntop.webp\tthe top\n",
    "quotes": '\ufeff"file_name", "text"\n"10_fox/a.jpg", "a fox"\n"top.webp", "the\ntop"\n',
    "quotes and semicolons": '"file_name";"text"\n"10_fox/a.jpg";"a fox"\n"top.webp";"the top"\n',
    "another machine's paths": "file,text\nC:\\me\\10_fox\\b.png,b\n./10_fox/A.JPG,a fox\n/home/me/TOP.webp,the top\n",
}


@pytest.mark.parametrize("form", CSVS)
def test_lists_with_commas_are_read_as_people_write_them(tmp_path: Path, form: str) -> None:
    seen = texts(found(tmp_path, {"caption.csv": CSVS[form]}))
    assert seen.pop("10_fox/b.png", "b") == "b"
    assert seen == {"10_fox/a.jpg": "a fox", "top.webp": "the top"}


def test_commas_in_a_caption_without_quotes_belong_to_it(tmp_path: Path) -> None:
    others: Files = {"metadata.csv": "file_name,text\ntop.webp,a fox, smiling,outdoors\n10_fox/b.png,\n"}
    assert texts(found(tmp_path, others)) == {"top.webp": "a fox, smiling, outdoors"}


def test_lists_of_json_lines_are_read(tmp_path: Path) -> None:
    lines = [
        {"file_name": "a.jpg", "text": "the sea\nat night", "width": 3},
        {"image": "../top.webp", "prompt": "\u2028top"},
        {"file_name": "a.jpg", "text": None},
    ]
    content = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n"
    captions = found(tmp_path, {"2_sea/metadata.jsonl": content})
    assert texts(captions) == {"2_sea/a.jpg": "the sea at night", "top.webp": "top"}
    assert captions.of_image["top.webp"].origin == "2_sea/metadata.jsonl"


def test_a_name_is_first_taken_letter_by_letter_in_any_form_of_its_accents(tmp_path: Path) -> None:
    others: Files = {"caption.csv": "file,text\nA.jpg,large\na.jpg,small\ncafe\u0301.jpg,coffee\n"}
    images = ["A.jpg", "a.jpg", "caf\u00e9.jpg"]
    assert texts(found(tmp_path, others, images)) == {"A.jpg": "large", "a.jpg": "small", "caf\u00e9.jpg": "coffee"}


def test_a_name_that_fits_several_images_is_a_problem_unless_the_list_lies_beside_one(tmp_path: Path) -> None:
    assert texts(found(tmp_path, {"2_sea/caption.csv": "file,text\na.jpg,the sea\n"})) == {"2_sea/a.jpg": "the sea"}
    assert problems(found(tmp_path, {"caption.csv": "file,text\na.jpg,a fox\n"})) == [
        "caption.csv means several images by a.jpg in line 2: 10_fox/a.jpg, 2_sea/a.jpg; write the folder too."
    ]


EXAMPLE = 'write {"file_name": "a.jpg", "text": "…"}.'
NO_COLUMNS = (
    "has no columns with the file names and the captions; begin it with a line `file_name,text`, then one line for "
    "each image."
)
BAD_LISTS: dict[str, tuple[str, bytes | str, list[str]]] = {
    "a missing image": (
        "caption.csv",
        "file,text\ngone.png,x\n",
        ["has a caption for gone.png in line 2, an image that is not there."],
    ),
    "no columns": ("caption.csv", "label,score\nfox,3\n", [NO_COLUMNS]),
    "names alone": ("caption.csv", "file_name\ntop.webp\n", [NO_COLUMNS]),
    "too few fields": (
        "caption.csv",
        "file,text\ntop.webp\n",
        ["has 1 and not 2 fields in line 2; put a caption that holds ',' in quotes."],
    ),
    "too many fields": (
        "caption.csv",
        "text,file\na fox, red,top.webp\n",
        ["has 3 and not 2 fields in line 2; put a caption that holds ',' in quotes."],
    ),
    "an open quote": (
        "caption.csv",
        'file,text\ntop.webp,"a fox\n10_fox/b.png,b\n',
        ["cannot be read at line 3: unexpected end of data. Write a quote inside quotes twice."],
    ),
    "no JSON": ("metadata.jsonl", '{"file_name": "top.webp"\n', [f"is no JSON object in line 1; {EXAMPLE}"]),
    "several": (
        "metadata.jsonl",
        '[]\n{"text": "a"}\n{"file_name": 3, "text": "a"}\n',
        [
            f"is no JSON object in line 1; {EXAMPLE}",
            f"lacks the file name or the caption in line 2; {EXAMPLE}",
            f"has a file name or caption that is no text in line 3; {EXAMPLE}",
        ],
    ),
    "deep JSON": ("metadata.jsonl", "[" * 100_000, [f"is no JSON object in line 1; {EXAMPLE}"]),
    "UTF-16": (
        "caption.csv",
        "file,text".encode("utf-16"),
        ["is not UTF-8 (UTF-16); save it with the encoding UTF-8."],
    ),
    "bytes": ("caption.csv", b"file,text\n\0", ["holds bytes that are no text."]),
    "a long caption": (
        "caption.csv",
        f"file,text\ntop.webp,{'x' * 10_001}",
        ["has a caption of 10001 letters; 10000 are the most."],
    ),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_a_list_that_cannot_be_used_says_where_and_why(tmp_path: Path, case: str) -> None:
    name, content, said = BAD_LISTS[case]
    assert problems(found(tmp_path, {name: content})) == [f"{name} {text}" for text in said]


@pytest.mark.parametrize("name", LIST_NAMES)
def test_an_empty_list_and_one_of_another_name_say_nothing(tmp_path: Path, name: str) -> None:
    captions = found(tmp_path, {name: "\n", "prices.csv": "file,text\ntop.webp,3 $\n"})
    assert texts(captions) == {}
    assert [skip.source for skip in captions.skipped] == ["prices.csv"]


def test_a_text_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    file = source_file(tmp_path, "top.txt")
    with file.path.open("wb") as stream:
        stream.truncate(16 * 1024**2 + 1)
    assert problems(find_captions([source_file(tmp_path, "top.webp")], [file])) == [
        "top.txt is larger than 16 MiB, too much for a text with captions."
    ]


def test_a_text_that_went_away_is_named(tmp_path: Path) -> None:
    file = source_file(tmp_path, "top.txt")
    file.path.unlink()
    assert problems(find_captions([source_file(tmp_path, "top.webp")], [file])) == [
        "top.txt cannot be read: No such file or directory."
    ]


LINES = st.text(st.characters(exclude_characters="\0\r\n", exclude_categories=["Cs"]), max_size=30)


@given(st.lists(LINES, max_size=6), st.sampled_from(",;\t"))
def test_what_a_spreadsheet_writes_is_read_back(captions: list[str], delimiter: str) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([["file_name", "text"], *([f"{n}.png", text] for n, text in enumerate(captions))])
    read = read_list("caption.csv", buffer.getvalue())
    assert read == [ListedCaption(n + 2, f"{n}.png", text) for n, text in enumerate(captions)]


@given(
    st.text(st.characters(exclude_categories=["Cs"])) | st.text('",;\t\n\rabfile_nametext.png{}[]:'),
    st.sampled_from(LIST_NAMES),
)
def test_no_list_raises_whatever_it_holds(text: str, name: str) -> None:
    for row in read_list(name, text):
        assert isinstance(row, ListedCaption | TrainingInputError)


@pytest.mark.parametrize(
    ("caption", "trigger_word", "wanted"),
    [
        ("", "TOK", "TOK"),
        ("", "", ""),
        ("a fox", "", "a fox"),
        ("a fox", "TOK", "TOK, a fox"),
        ("a photo of tok, red", "TOK", "a photo of tok, red"),
        ("tokyo at night", "TOK", "TOK, tokyo at night"),
        ("an atok", "TOK", "TOK, an atok"),
        ("a sks (dog) here", "sks (dog)", "a sks (dog) here"),
    ],
)
def test_the_trigger_word_is_in_every_caption_once(caption: str, trigger_word: str, wanted: str) -> None:
    assert with_trigger_word(caption, trigger_word) == wanted
