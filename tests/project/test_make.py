"""What ``make test`` leaves out is depth: a case of every promise and a run of every verb stay in it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from ckptsurgeon.cli.application import verbs

from ..helpers.depth import has_its_turn
from ..promises.clauses import SECTIONS
from ..promises.table import ALL

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
RIGHTS = {"faults", "gpu", "browser"}
"""Marks of tests that need more than a machine; they have targets of their own."""


def target(name: str) -> str:
    """Return what a target of the Makefile runs."""
    return re.findall(rf"^{name}:.*\n((?:\t.*\n)+)", MAKEFILE, re.M)[0]


def test_make_test_leaves_out_what_is_long_and_make_test_all_goes_as_deep_as_it_can() -> None:
    marks = re.findall(r"not (\w+)", re.findall(r"-m '(.*?)'", target("test"))[0])
    usual = re.findall(r"not (\w+)", re.findall(r"-m '(.*?)'", (ROOT / "pyproject.toml").read_text())[0])
    assert set(marks) == {"long", *usual}  # -m replaces what pyproject.toml leaves out, it does not add to it
    assert "CKPT_TESTS=full" in target("test-all")
    assert "-m" not in target("test-all").replace("-m pytest", "")


def test_what_continuous_integration_runs_is_everything_in_a_dozen_turns() -> None:
    script = (ROOT / ".ci/run").read_text()
    goals = " ".join(re.findall(r"^make (.*)$", script, re.M)).split()
    assert [goal for goal in goals if not goal.startswith("-")] == [
        "lint",
        "chromium",
        "test",
        "test-browser",
        "test-turn",
    ]
    assert target("test-turn").replace("CKPT_TURN=$(TURN)/$(TURNS) ", "") == target("test-all")
    turns = int(re.findall(r"^TURNS := (\d+)$", MAKEFILE, re.M)[0])
    for path in (ROOT / "tests").rglob("test_*.py"):
        name = path.relative_to(ROOT).as_posix()
        assert [has_its_turn(name, f"{turn}/{turns}") for turn in range(turns)].count(True) == 1, name
    assert re.search(r"^check: lint ", MAKEFILE, re.M)
    (command,) = target("check").splitlines()  # what it runs besides is among all tests
    assert all((ROOT / name).is_file() for name in command.partition("-m 'not long' ")[2].split())


@pytest.mark.parametrize("section", SECTIONS)
def test_make_test_has_a_case_of_every_promise(section: str, request: pytest.FixtureRequest) -> None:
    marks: dict[str, list[set[str]]] = {}
    for item in request.config.stash[ALL]:
        mark = item.get_closest_marker("clause")
        if mark is not None:
            marks.setdefault(mark.args[0], []).append({one.name for one in item.iter_markers()})
    if not marks.keys() >= set(SECTIONS[section]):
        pytest.skip("only some of the tests are run")
    for clause in SECTIONS[section]:
        without_rights = [found for found in marks[clause] if not found & RIGHTS]
        assert not without_rights or any("long" not in found for found in without_rights), clause


VERBS = [verb.NAME for verb in verbs()]


@cache
def quick() -> str:
    """Return the text of all tests but for those that are marked as long."""
    texts = [path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py"))]
    blocks = [block for text in texts if "pytestmark = pytest.mark.long" not in text for block in text.split("\n\n\n")]
    return "\n".join(block for block in blocks if not block.startswith("@pytest.mark.long"))


@pytest.mark.parametrize("verb", VERBS)
def test_make_test_runs_every_verb(verb: str) -> None:
    words = ", ".join(f'"{word}"' for word in verb.split())
    assert re.search(rf"\b(?:ckpt|main)\(\s*\[?{words}", quick())


def test_no_test_sleeps() -> None:
    """Waiting for a time is slow here and too short there: tests/helpers/waiting.py waits for facts."""
    sleeps = re.compile(r"\btime\.sleep\(|^from time import .*\bsleep\b|\bsleep \d", re.M)
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "tests").rglob("*.py")}
    slow_device = "tests/bench/throttled.py"  # what it measures is a device of so many bytes a second
    found = [name for name, text in texts.items() if sleeps.search(text) and "/trainer/" not in name]
    assert [name for name in found if name != slow_device] == []
