"""docs/tutorial.md, word for word: its commands run, print what it shows, and end in a model that is worth it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..helpers.shell import installed, left_out, shows
from ..trainer.together import alone

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tutorial.md").read_text()


@dataclass(frozen=True)
class Part:
    """Commands, one a line, and what they print; with ``loose`` numbers are not compared."""

    commands: tuple[str, ...]
    shown: str
    loose: bool


def parts() -> Iterator[Part]:
    found = re.findall(
        r"^```sh\n(.*?)^```\n(?:\n^```text( title=\"figures differ\")?\n(.*?)^```\n)?", PAGE, re.S | re.M
    )
    for commands, loose, shown in found:
        yield Part(tuple(commands.splitlines()), shown, bool(loose))


def test_every_block_of_the_tutorial_is_run_or_compared() -> None:
    assert len(re.findall("^```(?:sh|text)", PAGE, re.M)) == sum(2 if part.shown else 1 for part in parts())
    assert len(re.findall("^```", PAGE, re.M)) == 2 * len(re.findall("^```(?:sh|text)", PAGE, re.M))


def test_the_explanation_of_warm_starts_has_the_figures_of_the_tutorial() -> None:
    told = (ROOT / "docs/explanation/warm-starts.md").read_text()
    rows = re.findall(r"^  (warm|scratch|permuted) +(.*?\))  +(.*?\))$", PAGE, re.M)
    assert [name for name, *_ in rows] == ["warm", "scratch", "permuted"]
    for name, frozen, whole in rows:
        assert re.search(rf"^\| {name}: .*\| {re.escape(frozen)} \| {re.escape(whole)} \|$", told, re.M), name
    warm, scratch, permuted = (float(whole.split()[0]) for *_, whole in rows)
    assert round(10 * (scratch - permuted) / (scratch - warm)) == 7
    assert "that is seven tenths" in told


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_tutorial_ends_in_a_trained_model() -> None:
    environment = installed(ROOT)
    folder = Path.cwd()
    for part in parts():
        out = ""
        for command in part.commands:
            if left_out(command):
                continue
            if command.startswith("cd "):
                folder = folder / command.split()[1]
                continue
            expected = int(found[1]) if (found := re.search(r"# exit (\d+)$", command)) else 0
            code, printed = run(command, folder, environment)
            assert code == expected, (command, printed)
            out += printed
        assert shows(out, part.shown, loose=part.loose), f"shown:\n{part.shown}\nprinted:\n{out}"
    helped(json.loads((folder / "russian/result.json").read_text()))


def run(command: str, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Run a command; returns its exit code, and what it printed and said.

    ``ckpt --version`` is the program itself; the other commands of ckpt are forked from a process that has imported torch.
    """
    words = shlex.split(command, comments=True)
    if words[0] == "ckpt" and words[1:] != ["--version"]:
        return alone(*words[1:], folder=folder, environment=environment)
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, text=True, timeout=600,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


def helped(result: dict[str, object]) -> None:
    """Hold what was measured against what the tutorial says of it."""
    controls = result["controls"]
    assert isinstance(controls, dict)
    arms = {(arm["name"], arm["frozen"]): arm["values"] for arm in controls["arms"]}
    assert controls["verdict"] == "KNOWLEDGE"
    for frozen in (True, False):
        pairs = zip(arms["warm", frozen], arms["scratch", frozen], strict=True)
        assert all(warm < scratch for warm, scratch in pairs), arms
    mean = {name: sum(arms[name, False]) / 3 for name in ("warm", "scratch", "permuted")}
    assert mean["permuted"] < mean["scratch"], "permuted weights are ahead of scratch"
    assert os.path.exists("tutorial/russian/best.safetensors")
    assert sys.version_info >= (3, 11)
