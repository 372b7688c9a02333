"""The pages for users against the code: links lead somewhere, commands parse, inputs, examples and prices are real.

What their shell blocks do is tried by tests/e2e/test_docs_commands.py.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from decimal import ROUND_HALF_UP, Decimal

import pytest

from comfyui.engine import upstream
from comfyui.local import quickstart, serve, train_lora_arguments, workflow_cli
from comfyui.local.generate import arguments as generate_arguments
from comfyui.local.replicate import arguments as replicate_arguments
from comfyui.local.replicate.prices import AS_OF, PRICES
from comfyui.local.weights import arguments as weights_arguments
from comfyui.settings import PROJECT_ROOT
from tests.documents import Page, code_in, read_page, user_pages
from tests.local.replicate_standin import arguments_of
from tests.parts import example

PAGES = {page.name: page for page in [*user_pages(), read_page(PROJECT_ROOT / "benchmarks" / "README.md")]}
DOCS = [name for name in PAGES if name.startswith("docs/")]
WITH_CONTENTS = [
    f"docs/{name}.md" for name in ("costs", "errors", "faq", "gpu-box", "howto", "moving", "replicate", "training")
]
PREDICTION, TRAINING = arguments_of("predict.py", "run"), arguments_of("train.py", "train")
PARSERS: dict[str, Callable[[Sequence[str]], object]] = {
    "fetch-comfyui": upstream.main,
    "generate": generate_arguments.parse_arguments,
    "quickstart": quickstart.parse_arguments,
    "replicate": replicate_arguments.parse_arguments,
    "serve": serve.parse_arguments,
    "train-lora": train_lora_arguments.parse_arguments,
    "weights": weights_arguments.parse_arguments,
    "workflow": workflow_cli.parse_arguments,
}
WITH_COMMANDS = {"replicate", "weights", "workflow"}
WITHOUT_PARSER = {"bench": {"ready", "predict", "training", "weights", "memory"}, "setup": {"--dev"}}
COMMAND = re.compile(r"(?:^|&& |^(?:\w+=\S+ )+)(?:\./)?scripts/([\w-]+)(.*)")
ENDS = {"|", "&&", ";", "<<<", ">", "<"}


# --- Links and lists -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(name: str) -> None:
    page = PAGES[name]
    assert [link for link in page.links if not _leads_somewhere(page, link)] == []


def _leads_somewhere(page: Page, link: str) -> bool:
    if re.match(r"https?://", link):
        return True
    file, _, anchor = link.partition("#")
    target = (page.folder / file).resolve() if file else PROJECT_ROOT / page.name
    if not target.exists() or not target.is_relative_to(PROJECT_ROOT):
        return False
    return not anchor or anchor in read_page(target).anchors


@pytest.mark.parametrize("name", [name for name in PAGES if PAGES[name].contents or name in WITH_CONTENTS])
def test_the_contents_at_the_top_name_every_section_in_order(name: str) -> None:
    page = PAGES[name]
    sections = [anchor for anchor, title in zip(page.anchors, _titles(page), strict=True) if title in page.headings(2)]
    assert page.contents == sections


def _titles(page: Page) -> list[str]:
    return re.findall(r"^#{1,4} (.+)$", page.prose, re.MULTILINE)


def test_the_index_names_every_page_of_docs() -> None:
    assert set(DOCS) - {f"docs/{link}" for link in PAGES["docs/README.md"].links} == {"docs/README.md"}


# --- Commands --------------------------------------------------------------------------------------------------------


def commands(page: Page) -> Iterator[tuple[str, list[str]]]:
    """Name and arguments of each of our scripts that a block of the page calls."""
    for block in page.blocks:
        for line in block.lines if block.language in ("", "sh") else ():
            for name, rest in COMMAND.findall(line):
                words = shlex.split(rest, comments=True)
                end = next((at for at, word in enumerate(words) if word in ENDS), len(words))
                yield name, words[:end]


def help_of(name: str, *words: str) -> str | None:
    """What --help says; None where the words before it are not understood."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended:
        PARSERS[name]([*words, "--help"])
    return said.getvalue() if ended.value.code == 0 else None


@pytest.mark.parametrize("name", PAGES)
def test_every_command_in_a_block_is_understood_by_its_script(name: str) -> None:
    for script, words in commands(PAGES[name]):
        assert (PROJECT_ROOT / "scripts" / script).is_file(), script
        if script not in PARSERS:
            assert set(words) <= WITHOUT_PARSER.get(script, set()), (script, words)
        elif script == "fetch-comfyui":
            assert not words
        else:
            assert refusal_of(script, words) is None, (script, words)


def refusal_of(script: str, words: Sequence[str]) -> str | None:
    """What a script says to a command line that it does not understand."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            PARSERS[script](words)
        except SystemExit as ended:
            return said.getvalue() if ended.code else None
    return None


@pytest.mark.parametrize("name", PAGES)
def test_every_command_and_flag_in_a_sentence_is_there(name: str) -> None:
    wrong = [code for code in PAGES[name].code if re.match(r"(\./)?scripts/\w", code) and not _is_there(code)]
    assert wrong == []


def _is_there(code: str) -> bool:
    script, *words = code.removeprefix("./").removeprefix("scripts/").split()
    if script not in PARSERS:
        return (PROJECT_ROOT / "scripts" / script).is_file()
    # Behind a bare -- stand flags of cog push.
    words = words[: words.index("--")] if "--" in words else words
    command = words[:1] if script in WITH_COMMANDS and words[:1] != ["--help"] else []
    told = help_of(script, *command)
    return told is not None and all(word in told for word in words if word.startswith("--"))


# --- Inputs ----------------------------------------------------------------------------------------------------------


def inputs_named(page: Page) -> set[str]:
    """What stands in the first column of tables that call it `input`."""
    tables = [rows for rows in page.tables() if rows[0][0] == "input"]
    return {name for rows in tables for row in rows[1:] for name in code_in(row[0])}


@pytest.mark.parametrize("name", PAGES)
def test_every_input_in_a_table_is_one_of_predict_or_train(name: str) -> None:
    assert inputs_named(PAGES[name]) <= {*PREDICTION, *TRAINING}


@pytest.mark.parametrize("name", ["README.md", "docs/moving.md"])
def test_the_tables_of_the_prediction_leave_no_input_out(name: str) -> None:
    assert set(PREDICTION) <= inputs_named(PAGES[name])


def test_the_readme_names_only_inputs_that_a_training_has() -> None:
    text = dict(PAGES["README.md"].sections())["Inputs of a training"]
    named = {name for name in code_in(text) if re.fullmatch(r"[a-z_]+", name)}
    assert {"checkpoints", "loras", "huggingface_read_token"} <= named <= set(TRAINING)


def test_the_commands_of_the_pages_send_only_inputs_that_are_there() -> None:
    """Those of curl and --input; a stand-in of Replicate would take any."""
    blocks = [block.text for page in PAGES.values() for block in page.blocks if block.language == "sh"]
    sent = {name for text in blocks for name in re.findall(r"--input (\w+)=|-i (\w+)=", text) for name in name if name}
    for text in blocks:
        inputs = re.search(r'"input": \{(.*?)\}', text, re.DOTALL)
        sent |= set(re.findall(r'"(\w+)":', inputs[1])) if inputs else set()
    assert {"checkpoints", "workflow_json"} <= sent <= {*PREDICTION, *TRAINING}


# --- Examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_every_example_that_a_command_names_is_there(name: str) -> None:
    named = {path for block in PAGES[name].blocks for path in re.findall(r"examples/workflows/\w+\.json", block.text)}
    assert [path for path in named if not (PROJECT_ROOT / path).is_file()] == []


HOWTO = dict(PAGES["docs/howto.md"].sections())


@pytest.mark.parametrize("title", [title for title in HOWTO if title != "Before you start"])
def test_the_values_of_a_howto_are_inputs_of_its_examples(title: str) -> None:
    graphs = [example(name) for name in re.findall(r"workflows/(\w+)\.json", HOWTO[title])]
    assert graphs
    inputs = {f"{node_id}.{name}" for graph in graphs for node_id, node in graph.items() for name in node["inputs"]}
    assert {code for code in code_in(HOWTO[title]) if re.fullmatch(r"\d+\.[a-z_]+", code)} <= inputs


def test_the_values_of_all_examples_are_in_every_example_of_the_howtos() -> None:
    common = {code for code in code_in(HOWTO["Before you start"]) if re.fullmatch(r"\d+\.[a-z_]+", code)}
    for name in re.findall(r"workflows/(\w+)\.json", "".join(HOWTO.values())):
        inputs = {f"{node_id}.{key}" for node_id, node in example(name).items() for key in node["inputs"]}
        # The sampler of a Turbo model has its seed and steps elsewhere; the page says where.
        assert common - inputs <= ({"6.seed", "6.steps"} if name == "turbo" else set())


# --- Money -----------------------------------------------------------------------------------------------------------


def cost_tables() -> dict[str, list[list[str]]]:
    """The tables of docs/costs.md by the title of their section."""
    return {title: next(Page("", f"\n{text}\n").tables(), []) for title, text in PAGES["docs/costs.md"].sections()}


def test_the_prices_are_those_of_the_code_with_their_date() -> None:
    rows = cost_tables()["Price of a second"][1:]
    assert {code_in(row[0])[0]: row[1] for row in rows} == {sku: f"${price:.6f}" for sku, price in PRICES.items()}
    assert f"as it was in {AS_OF}" in PAGES["docs/costs.md"].text


def money(seconds: str, price: float) -> str:
    amount = Decimal(seconds) * Decimal(str(price))
    step = "0.01" if amount >= Decimal("0.1") else "0.0001"
    return f"${amount.quantize(Decimal(step), ROUND_HALF_UP)}"


@pytest.mark.parametrize("title", ["Seconds into money", "Worked examples"])
def test_the_arithmetic_of_the_costs_is_right(title: str) -> None:
    heading, *rows = cost_tables()[title]
    seconds_at = heading.index("seconds")
    columns = {at: PRICES[code_in(cell)[0]] for at, cell in enumerate(heading) if code_in(cell)}
    assert columns
    for row in rows:
        for at, price in columns.items():
            assert row[at] == money(row[seconds_at], price), row
