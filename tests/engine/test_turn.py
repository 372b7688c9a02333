"""ComfyUI's folders are one prediction's at a time, and empty between two."""

from __future__ import annotations

import asyncio
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from comfyui.engine.server import EngineFolders
from comfyui.engine.turn import OwnFolders, Turns, own_folders

pytestmark = pytest.mark.asyncio


@pytest.fixture
def folders(tmp_path: Path) -> EngineFolders:
    return EngineFolders.under(tmp_path / "run")


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


async def test_a_turn_gives_the_inputs_and_takes_back_all_that_was_made(folders: EngineFolders, tmp_path: Path) -> None:
    turns = Turns()
    async with own_folders(tmp_path / "own") as own:
        write(own.input / "sub" / "a.png")
        async with turns.take(own, folders):
            assert names(folders.input) == ["sub/a.png"]
            made = write(folders.output / "run" / "b.png", "made").resolve()
            preview = write(folders.temp / "c.png", "preview").resolve()
            elsewhere = write(folders.output / "by-a-custom-node.txt")
        for folder in (folders.input, folders.output, folders.temp):
            assert list(folder.iterdir()) == []
        assert own.after_turn(made, folders).read_text() == "made"
        assert own.after_turn(preview, folders).read_text() == "preview"
        assert own.after_turn(elsewhere.resolve(), folders).is_file()
        root = own.root
    assert not root.exists()


async def test_what_an_earlier_program_left_there_is_gone(folders: EngineFolders, tmp_path: Path) -> None:
    for folder in (folders.input, folders.output, folders.temp):
        write(folder / "old" / "a.png")
    async with own_folders(tmp_path / "own") as own, Turns().take(own, folders):
        assert [names(folder) for folder in (folders.input, folders.output, folders.temp)] == [[], [], []]


async def test_comfyui_may_remove_its_temp_folder_at_any_moment(folders: EngineFolders, tmp_path: Path) -> None:
    """As it does when it starts and when it ends (cleanup_temp in its main.py)."""
    done = threading.Event()

    def clean_up() -> None:
        while not done.is_set():
            shutil.rmtree(folders.temp, ignore_errors=True)

    turns = Turns()
    with ThreadPoolExecutor(1) as pool:
        cleaning = pool.submit(clean_up)
        try:
            for number in range(200):
                async with own_folders(tmp_path / "own") as own:
                    write(own.input / "a.png")
                    async with turns.take(own, folders):
                        assert names(folders.input) == ["a.png"]
                        write(folders.output / f"{number}.png")
                        # Several, so that some are gone between the list and the move.
                        with suppress(FileNotFoundError, FileExistsError):
                            for preview in range(5):
                                write(folders.temp / f"{preview}.png")
                    assert names(own.output) == [f"{number}.png"]
        finally:
            done.set()
        cleaning.result()


async def test_turns_come_one_after_another_in_order(folders: EngineFolders, tmp_path: Path) -> None:
    turns, order = Turns(), list[str]()

    async def predict(name: str) -> None:
        async with own_folders(tmp_path / "own") as own:
            write(own.input / name)
            async with turns.take(own, folders):
                order.append(name)
                for _ in range(3):
                    assert names(folders.input) == [name]
                    await asyncio.sleep(0)

    await asyncio.gather(*(predict(name) for name in "abcd"))
    assert order == list("abcd")
    assert not turns.taken()


@pytest.mark.parametrize("in_turn", [True, False])
async def test_a_cancel_in_or_before_the_turn_leaves_the_next_one_a_clean_place(
    folders: EngineFolders, tmp_path: Path, *, in_turn: bool
) -> None:
    turns, began, roots = Turns(), asyncio.Event(), list[OwnFolders]()

    async def predict() -> None:
        async with own_folders(tmp_path / "own") as own:
            roots.append(own)
            write(own.input / "a.png")
            began.set()
            async with turns.take(own, folders):
                write(folders.output / "half.png")
                await asyncio.Event().wait()

    async with own_folders(tmp_path / "own") as holder:
        if in_turn:
            task = asyncio.ensure_future(predict())
            await began.wait()
            await asyncio.sleep(0)
            task.cancel()
        else:
            async with turns.take(holder, folders):
                task = asyncio.ensure_future(predict())
                await began.wait()
                await asyncio.sleep(0)
                task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not roots[0].root.exists()
    async with own_folders(tmp_path / "own") as own, turns.take(own, folders):
        assert names(folders.output) == []
