"""The errors, each with the exit code of the command line.

    CheckpointError            1
    ├── PatternError           2   a pattern or rule that is malformed or matches nothing
    ├── ConfigError            2   a bad option, destination configuration, recipe, or a missing package
    ├── SourceError            3   an input that is missing or cannot be read
    ├── FormatError            3   not a checkpoint, or one whose structure is broken
    │   └── UnsafeError        3   well formed, but dangerous to interpret
    ├── PlanError              4   the plan is impossible, or a source has changed since the plan was made
    ├── OutputError            5   the output cannot be written
    └── VerifyError            1   the output differs from its recipe

The message says what is wrong and in which file; the hint says what to do. ``details`` lists every affected key or file
for ``--json``; the message lists only the first few.
"""

from __future__ import annotations

from collections.abc import Sequence

from .util.arguments import as_arguments
from .util.text import IN_JSON, without_secrets

__all__ = [
    "CheckpointError",
    "ConfigError",
    "FormatError",
    "OutputError",
    "PatternError",
    "PlanError",
    "SourceError",
    "UnsafeError",
    "VerifyError",
]


class CheckpointError(Exception):
    """Base of every error that ckptsurgeon raises on purpose.

    ``message`` says what is wrong and ``hint`` what to do. Both contain options as on the command line (``--vocab``);
    in ``str(error)`` they are replaced by the Python arguments (``vocab``), and ``--json`` by ``details``, which lists
    every affected key or file. If a file breaks a rule of its format, ``rule`` is a short name of this rule, such as
    "crc"; otherwise ''.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", details: Sequence[str] = (), rule: str = "") -> None:
        self.message = without_secrets(message)
        self.hint = without_secrets(hint)
        self.details = tuple(map(without_secrets, details))
        super().__init__(self.message)
        self.rule = rule
        self.arguments: frozenset[str] = frozenset()
        """The names of the arguments of the called Python function: messages show options as these arguments."""

    @property
    def said(self) -> str:
        """The message followed by the hint, with options as on the command line."""
        return f"{self.message} {self.hint}" if self.hint else self.message

    def add_hint(self, sentence: str) -> None:
        """Add a sentence to the end of the hint."""
        self.hint = without_secrets(f"{self.hint} {sentence}".lstrip())

    def __str__(self) -> str:
        all_of_them = " (details lists all)" if self.details else ""
        return as_arguments(self.said.replace(IN_JSON, all_of_them), self.arguments)


class PatternError(CheckpointError):
    """A key pattern or rule is malformed, matches nothing, or can never apply."""

    exit_code = 2


class ConfigError(CheckpointError):
    """An option, destination configuration or recipe is wrong, or a Python package that it needs is missing."""

    exit_code = 2


class SourceError(CheckpointError):
    """An input does not exist, is not a regular file, or cannot be read."""

    exit_code = 3


class FormatError(CheckpointError):
    """A file is not a checkpoint, or breaks a rule of its format."""

    exit_code = 3


class UnsafeError(FormatError):
    """A file that looks well formed is refused: it is ambiguous, or reading it would take too much memory or time."""


class PlanError(CheckpointError):
    """The plan is impossible (shapes or keys do not fit, nothing is loaded, a rule is not met), or a source changed."""

    exit_code = 4


class OutputError(CheckpointError):
    """The output exists already, is also an input, or cannot be written."""

    exit_code = 5


class VerifyError(CheckpointError):
    """An output differs from its recipe, plan or sources."""
