"""CONTRIBUTING.md, held against the program: each of its files is put into a copy of the package, and its commands run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest

from ckptsurgeon.trainer.system.random_state import preserve_random_state

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"^```\w+ (\S+\.\w+)\n(.*?)```", PAGE, re.S | re.M))
COMMANDS = re.findall(r"^    \$ ckpt (.*)$", PAGE, re.M)

RUN = """
import contextlib, io, json, shlex, subprocess, sys, types
from ckptsurgeon.cli import main

def reopen_here():
    from ckptsurgeon.trainer.checks import saved
    from ckptsurgeon.trainer.system.random_state import preserve_random_state

    def again(command, *, input, **_):
        sys.stdin = io.StringIO(input)
        with preserve_random_state(), contextlib.redirect_stdout(io.StringIO()) as out:
            saved.main()
        return subprocess.CompletedProcess(command, 0, out.getvalue(), "")

    saved.subprocess = types.SimpleNamespace(run=again, TimeoutExpired=subprocess.TimeoutExpired)

outcomes = []
for command in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        outcomes.append((main(shlex.split(command)), out.getvalue()))
    if command.startswith("train "):
        reopen_here()  # what the first run saved, a new process has opened
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package in which the files of the page lie, and nothing else is changed."""
    # With what is compiled: five seconds. What another process is about to compile has a name of its own meanwhile.
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "ckptsurgeon", folder / "ckptsurgeon", ignore=shutil.ignore_patterns("*.pyc.*"))
    for name, text in FILES.items():
        if name.startswith("ckptsurgeon/"):
            assert not (folder / name).exists(), name
            assert (folder / name).parent.is_dir(), name
            (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the commands of the page need."""
    folder = tmp_path_factory.mktemp("here")
    made = re.search(r"```python\n(.*?)```", PAGE, re.S)
    assert made
    with chdir(folder), preserve_random_state():  # the page calls torch.manual_seed
        exec(compile(made[1], "CONTRIBUTING.md", "exec"), {})  # noqa: S102 - our own page
    for name, text in FILES.items():
        if not name.startswith("ckptsurgeon/"):
            (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def outcomes(extended: Path, here: Path) -> dict[str, str]:
    """What each command of the page prints, run in order."""

    commands = [*COMMANDS, "-h", "merge --list", "count digits.idx --json"]
    arguments = [sys.executable, "-P", "-c", RUN, *commands]
    environment = {**os.environ, "PYTHONPATH": str(extended)}
    done = subprocess.run(arguments, cwd=here, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    for command, (code, out) in zip(commands, json.loads(done.stdout), strict=True):
        assert code == 0, f"ckpt {command}\n{out}{done.stderr}"
    return {command: out for command, (_, out) in zip(commands, json.loads(done.stdout), strict=True)}


def of(outcomes: dict[str, str], begin: str) -> str:
    (found,) = [out for command, out in outcomes.items() if command.startswith(begin) and "--json" not in command]
    return found


@pytest.mark.long
def test_a_format_is_one_file(outcomes: dict[str, str], here: Path) -> None:
    from safetensors.numpy import load_file

    assert "digits" in of(outcomes, "inspect digits.idx")
    assert " idx " in of(outcomes, "inspect digits.idx")
    assert "verified" in of(outcomes, "verify digits")
    assert load_file(here / "digits.safetensors")["digits"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.long
def test_a_merge_method_is_one_file(outcomes: dict[str, str], here: Path) -> None:
    from safetensors.numpy import load_file

    assert "loudest" in outcomes["merge --list"]
    assert "verified" in of(outcomes, "verify loud")
    assert load_file(here / "loud.safetensors")["w"].tolist() == [-2.0, -1.0, 1.5]


@pytest.mark.long
def test_a_kind_of_destination_is_one_file(outcomes: dict[str, str], here: Path) -> None:
    from safetensors.numpy import load_file

    assert "initialised" in of(outcomes, "transplant")
    found = load_file(here / "dst.init.safetensors")
    assert {key: value.shape for key, value in found.items()} == {
        "0.weight": (8, 4), "0.bias": (8,), "2.weight": (1, 8), "2.bias": (1,),
    }  # fmt: skip
    assert "copied" in of(outcomes, "transplant")


@pytest.mark.long
def test_a_task_is_one_file(outcomes: dict[str, str], here: Path) -> None:
    commands = [command for command in outcomes if command.startswith("train ")]
    assert "trained" in outcomes[commands[0]]
    result = next(path for path in here.rglob("result.json") if path.parent.name != "logged")
    told = json.loads(result.read_text())
    assert told["best"] < told["first_loss"]


@pytest.mark.long
def test_a_verb_is_one_file(outcomes: dict[str, str]) -> None:
    assert of(outcomes, "count") == "1\n"
    assert json.loads(outcomes["count digits.idx --json"])["tensors"] == 1
    assert re.search(r"^  count +Count the tensors", outcomes["-h"], re.M)


def test_the_files_are_as_the_package_is_written(extended: Path) -> None:
    """Formatted and clean, as what they stand among."""
    names = [name for name in FILES if name.startswith("ckptsurgeon/")]
    ruff = [sys.executable, "-m", "ruff"]
    settings = ["--config", ROOT / "pyproject.toml"]
    for command in ([*ruff, "format", "--check", *settings, *names], [*ruff, "check", *settings, *names]):
        done = subprocess.run(command, cwd=extended, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_commands_of_make_are_there() -> None:
    targets = re.findall(r"^    make ([\w-]+)", PAGE, re.M)
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target


def test_its_links_and_paths_lead_somewhere() -> None:
    # tests/project/test_documentation.py reads README.md and docs/; the examples' own files are in neither
    for path in re.findall(r"`((?:tests|ckptsurgeon|fixtures)/[\w./]+)`", PAGE):
        assert (ROOT / path).exists(), path


def test_no_recording_names_the_files_of_the_machine_that_made_it() -> None:
    places = (b"site-packages", str(ROOT).encode() + b"/")
    named = [
        str(path)
        for path in (ROOT / "fixtures" / "golden").rglob("*")
        if path.is_file() and any(place in path.read_bytes() for place in places)
    ]
    assert named == []
