"""Every example of every page is run: its Python, its commands, and the files that they are about."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from ..helpers.example_files import AT_ADDRESSES, HERE
from ..helpers.examples import PAGES, ROOT, Example, Reader, commands_of, examples
from ..helpers.shell import left_out
from ..trainer.conftest import draw_once, reopen_here
from . import test_contributing, test_tutorial

Run = Callable[..., Any]

NOT_RUN: dict[str, tuple[str | tuple[str, ...], str]] = {
    "CONTRIBUTING.md": (
        ("make test", "python3 -m pytest -m gpu"),
        "they install, run this or need a GPU; tests/project/test_contributing.py holds that they are there",
    ),
    "docs/howto/coqui.md": ("python -m coqui_stt_training.train", "Coqui STT's own, which needs TensorFlow 1.15"),
    "docs/howto/espnet.md": ("./asr.sh", "ESPnet's own recipe, which needs a corpus and hours"),
    "docs/howto/wav2vec2.md": (
        ("$ ckpt demo-data demo --lang en --force", "import soundfile"),
        "training to the end takes minutes: make test-speech runs them",
    ),
    "docs/howto/speechbrain.md": ("from speechbrain.utils", "SpeechBrain's own class, from its tutorial"),
}
"""By page: how the blocks begin that this test does not run, and why. Commands that install: ``tests/helpers/shell.py``."""

ELSEWHERE = {
    "README.md": "tests/project/test_documentation.py",
    "CONTRIBUTING.md": "tests/project/test_contributing.py",
    "docs/tutorial.md": "tests/project/test_tutorial.py",
}
"""Pages that a test of their own runs; which of their examples it runs is held below."""

FEWER: dict[str, dict[str, str]] = {
    "docs/howto/data.md": {"--steps 40": "--steps 4 --set warmup=2"},
    "docs/howto/finetune.md": {"steps: 30": "steps: 6", "evaluate_every: 15": "evaluate_every: 3"},
    "docs/howto/search.md": {"--trials 16": "--trials 4"},
    "docs/howto/wav2vec2.md": {"--steps 24": "--steps 4 --set warmup=2", "batch_size: 32": "batch_size: 8"},
}
"""By page: the numbers that are smaller here, so that the commands run in a fraction of the time."""

LONG = ("data", "finetune", "processes", "train", "wav2vec2")
"""Pages whose commands train: not for every commit (make check, make test)."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def is_run(example: Example) -> bool:
    """Whether a test can and should run an example."""
    begin, _ = NOT_RUN.get(name_of(example.page), (None, ""))
    if begin is not None and example.text.startswith(begin):
        return False
    return example.kind != "shell" or not all(map(left_out, commands_of(example)))


RUN = [page for page in PAGES if name_of(page) not in ELSEWHERE and any(map(is_run, examples(page)))]
RUNNING = [pytest.param(page, marks=pytest.mark.long if page.stem in LONG else (), id=page.stem) for page in RUN]


@pytest.mark.costly
@pytest.mark.parametrize("page", RUNNING)
def test_the_examples_of_a_page_run(
    page: Path, ckpt: Run, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, as a reader would run them; no page has a block that is only to be looked at."""
    name = name_of(page)
    if name == "docs/howto/completion.md":  # which writes into the user's own files
        monkeypatch.setenv("HOME", str(Path("home").absolute()))
        monkeypatch.setenv("SHELL", "/bin/bash")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # as if activated
    reopen_here(monkeypatch)
    draw_once(monkeypatch)
    torch.manual_seed(0)
    HERE.get(name, lambda: None)()
    there = AT_ADDRESSES[name](request.getfixturevalue("hub")) if name in AT_ADDRESSES else {}
    read(Reader(ckpt, there), filter(is_run, examples(page, fewer(page))))


def fewer(page: Path) -> str:
    """Return a page with smaller numbers of steps and trials."""
    text = page.read_text()
    for said, here in FEWER.get(name_of(page), {}).items():
        assert said in text, (page, said)
        text = text.replace(said, here)
    return text


def read(reader: Reader, every: Iterable[Example]) -> None:
    for example in every:
        reader.run(example)


def test_every_exception_is_an_example_that_there_is() -> None:
    for name, (begin, why) in NOT_RUN.items():
        for text in (begin,) if isinstance(begin, str) else begin:
            assert [one for one in examples(ROOT / name) if one.text.startswith(text)], (name, text)
        assert why
    assert (HERE.keys() | AT_ADDRESSES.keys()) <= {name_of(page) for page in RUN}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_pages_with_a_test_of_their_own_have_no_more_than_it_runs(name: str) -> None:
    found = list(filter(is_run, examples(ROOT / name)))
    assert found
    assert not [str(one) for one in found if not RUN_THERE[name](one, found)]


def _of_the_readme(one: Example, every: list[Example]) -> bool:
    """Its commands, its one Python and its one YAML, whose lines are destinations."""
    alone = [other for other in every if other.kind == one.kind] == [one]
    return one.kind == "shell" or (one.kind in ("python", "yaml") and alone and not one.title)


def _of_contributing(one: Example, every: list[Example]) -> bool:
    """Files by their names, the one Python that makes what they need, and commands of ckpt."""
    if one.title:
        return test_contributing.FILES.get(one.title) == one.text
    if one.kind == "shell":
        return all(command.removeprefix("ckpt ") in test_contributing.COMMANDS for command in commands_of(one))
    return one.kind == "python" and [other for other in every if other.kind == "python" and not other.title] == [one]


def _of_the_tutorial(one: Example, every: list[Example]) -> bool:
    return any(tuple(commands_of(one)) == part.commands for part in test_tutorial.parts())


RUN_THERE: dict[str, Callable[[Example, list[Example]], bool]] = {
    "README.md": _of_the_readme, "CONTRIBUTING.md": _of_contributing, "docs/tutorial.md": _of_the_tutorial,
}  # fmt: skip

BLOCKS = {
    "```python\nx = 1\n```\n": ("python", ""),
    "```py\nx = 1\n```\n": ("python", ""),
    '```yaml title="a.yaml"\nx: 1\n```\n': ("yaml", "a.yaml"),
    "```python a/b.py\nx = 1\n```\n": ("python", "a/b.py"),
    "```sh\nckpt inspect a\n```\n": ("shell", ""),
    "text\n\n    $ ckpt inspect a\n": ("shell", ""),
    "text\n\n    ckpt inspect a\n    # of which\n": ("shell", ""),
}


@pytest.mark.parametrize("text", BLOCKS)
def test_a_block_is_known_by_its_form(text: str) -> None:
    (found,) = examples(ROOT / "README.md", text)
    assert (found.kind, found.title) == BLOCKS[text]


@pytest.mark.parametrize(
    "text", ["```text\nx\n```\n", "text\n\n    headers   formats\n", "- a\n    ckpt x, in a list\n"]
)
def test_what_is_shown_is_no_example(text: str) -> None:
    assert not list(examples(ROOT / "README.md", text))


@pytest.mark.parametrize("text", ["```\nckpt inspect a\n```\n", "```rust\nx\n```\n"])
def test_a_block_of_no_known_language_is_an_error(text: str) -> None:
    with pytest.raises(KeyError):
        list(examples(ROOT / "README.md", text))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("```yaml\nmodel: {}\n```\n", "without a title is no file that is used"),
        ("    $ ckpt inspect nowhere.pth\n", "nowhere.pth"),
        ("    $ ckpt --version    # exit 3\n", "--version"),
        ("    $ bogus-program\n    $ ckpt --version\n", "bogus-program"),
        ("    $ ckpt inspect a.pth --include enc⇥    --include nothing\n", "nothing"),
        ("```python\nraise AssertionError('so')\n```\n", "so"),
    ],
)
def test_an_example_that_does_not_run_fails(text: str, why: str, ckpt: Run) -> None:
    torch.save({"encoder.weight": torch.ones(1)}, "a.pth")
    with pytest.raises(AssertionError, match=re.escape(why)):
        read(Reader(ckpt), examples(ROOT / "README.md", text))
