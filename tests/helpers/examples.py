"""The examples of a page, found by their form and run as a reader would: in order, each of them."""

from __future__ import annotations

import re
import shlex
import subprocess
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.distributed.run import get_args_parser

from ..cli.completion.asked import told
from ..conftest import Result
from ..trainer.together import together
from .forked import as_ckpt, forked_torchrun
from .nursery import COMMAND
from .shell import installed, left_out

__all__ = ["PAGES", "ROOT", "Example", "Reader", "commands_of", "examples"]

ROOT = Path(__file__).parents[2]
PAGES = [
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if path.name != "changelog.md"
]
"""Every page with examples in it; the changelog is of the past."""

LANGUAGES = {
    "python": "python", "py": "python", "yaml": "yaml", "json": "json", "sh": "shell", "bash": "shell",
    "console": "shell", "text": "",
}  # fmt: skip
"""What a block is by the word behind its fence; a ``text`` is not an example, but what one prints, or a figure."""
PROGRAMS = ("ckpt", "torchrun", "python", "python3", "pip", "make", "git", "cat", "./")
"""What a line begins with in a block without a fence that is one of commands."""
_FENCE = re.compile(r'^```(?P<word>\S*)(?: (?:title="(?P<title>[^"]+)"|(?P<name>\S+)))?$')
TAB = "⇥"


@dataclass(frozen=True)
class Example:
    """A block of a page: ``kind`` is python, yaml, json or shell, ``title`` the file that it is, if it is one."""

    page: Path
    line: int
    kind: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {self.text.splitlines()[0].strip()}"


def examples(page: Path, text: str = "") -> Iterator[Example]:
    """Yield the examples of a page in order; a block of a language that nobody runs is an error."""
    lines = (text or page.read_text()).splitlines()
    at = 0
    while at < len(lines):
        begin, fence = at, _FENCE.match(lines[at])
        if fence:
            at = next(i for i in range(begin + 1, len(lines)) if lines[i] == "```") + 1
            kind = LANGUAGES[fence["word"]]
            if kind:
                title = fence["title"] or fence["name"] or ""
                yield Example(page, begin + 1, kind, title, "\n".join(lines[begin + 1 : at - 1]) + "\n")
            continue
        at += 1
        if lines[begin].startswith("    ") and (begin == 0 or not lines[begin - 1].strip()):
            while at < len(lines) and lines[at].startswith("    "):
                at += 1
            block = textwrap.dedent("\n".join(lines[begin:at])) + "\n"
            if any(line.removeprefix("$ ").startswith(PROGRAMS) for line in block.splitlines()):
                yield Example(page, begin + 1, "shell", "", block)


def commands_of(example: Example) -> list[str]:
    """The commands of a block, one a line; those that go on behind a backslash are one."""
    joined = example.text.replace("\\\n", " ")
    return [line.removeprefix("$ ") for line in joined.splitlines() if line.strip()]


def _by_torchrun(words: Sequence[str]) -> Result:
    """Run a command by torchrun, whose processes are forked; tests/engine/test_processes.py has some that it starts."""
    asked = get_args_parser().parse_args(words[1:])
    assert (asked.training_script, asked.module) == ("ckptsurgeon", True), words
    done = forked_torchrun(["--standalone", *words[1:]], lambda: as_ckpt(*asked.training_script_args))
    return Result(done.ended(), done.out, done.err)


def _forked(words: Sequence[str]) -> Result:
    """Run a command as the processes that torchrun would start, forked from one that has imported torch."""
    asked = get_args_parser().parse_args(words[1:])
    assert (asked.training_script, asked.module) == ("ckptsurgeon", True), words
    rest = asked.training_script_args
    ended = together(COMMAND, *rest, size=int(asked.nproc_per_node))
    code = next((one.code for one in ended if one.code), 0)
    return Result(code, ended[0].out, "".join(one.err for one in ended))


@dataclass
class Reader:
    """Runs examples in the working directory. ``there`` says what stands here in place of what no test can reach."""

    ckpt: Callable[..., Result]
    there: Mapping[str, str] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)

    def run(self, example: Example) -> None:
        """Run an example: write the file that it is, execute its Python, or run its commands."""
        if example.title:
            Path(example.title).write_text(example.text)
        elif example.kind == "python":
            exec(compile(example.text, str(example), "exec"), self.names)  # noqa: S102 - our own page
        elif example.kind == "shell":
            for command in commands_of(example):
                self._command(command)
        else:
            raise AssertionError(f"{example}: a block of {example.kind} without a title is no file that is used")

    def _command(self, command: str) -> None:
        if left_out(command):
            return
        if TAB in command:
            self._typed(command)
            return
        line, _, comment = re.sub(r"\s+#\s", " #", command, count=1).partition(" #")
        for said, here in self.there.items():
            line = line.replace(said, here)
        expected = int(found[1]) if (found := re.match(r"exit (\d+)", comment)) else 0
        done = self._started(line)
        assert done.code == expected, (command, done)

    def _started(self, line: str) -> Result:
        line, _, out = line.partition(" > ")
        words = shlex.split(line)
        if words[0] == "ckpt" and "$(" not in line:
            done = self.ckpt(*words[1:])
        elif words[0] == "torchrun":
            once = "train" in words and "--strategy" not in words
            done = _by_torchrun(words) if once else _forked(words)
        else:
            found = subprocess.run(
                ["bash", "-c", line], env=installed(ROOT), capture_output=True, text=True, timeout=300
            )
            done = Result(found.returncode, found.stdout, found.stderr)
        if out:
            Path(out.strip()).write_text(done.out)
        return done

    def _typed(self, line: str) -> None:
        """Hold what Tab writes against what stands behind it."""
        typed, _, written = line.partition(TAB)
        kind, values = told(typed.removeprefix("ckpt "))
        assert written.split()[-1] in values, (line, kind, values)
