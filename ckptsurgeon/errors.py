"""The errors, each with the exit code the command line gives it.

    CheckpointError            1
    ├── PatternError           2   a pattern or rule that is malformed or matches nothing
    ├── ConfigError            2   a bad option, destination configuration, recipe, or a missing package
    ├── SourceError            3   an input that is missing or cannot be read
    ├── FormatError            3   not a checkpoint, or one whose structure is broken
    │   └── UnsafeError        3   structurally sound, but dangerous to interpret
    ├── PlanError              4   the plan is impossible, or a source changed since it was made
    ├── OutputError            5   the output cannot be written
    └── VerifyError            1   the output is not what its recipe says

A message says what, where, and what to do; ``details`` lists every offender, however many, for ``--json``.
"""

from __future__ import annotations

from collections.abc import Sequence

from .util.text import without_secrets

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

    ``hint`` says what to do; ``details`` names every offender; ``rule`` is the short name of a violated rule.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", details: Sequence[str] = (), rule: str = "") -> None:
        self.message = without_secrets(message)
        self.hint = without_secrets(hint)
        self.details = tuple(map(without_secrets, details))
        super().__init__(self.message)
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class PatternError(CheckpointError):
    """A key pattern or rule is malformed, matches nothing, or can never apply."""

    exit_code = 2


class ConfigError(CheckpointError):
    """An option, destination configuration or recipe is wrong, or a package it needs is missing."""

    exit_code = 2


class SourceError(CheckpointError):
    """An input does not exist, is not a regular file, or cannot be read."""

    exit_code = 3


class FormatError(CheckpointError):
    """A file is not a checkpoint, or breaks a rule of its format."""

    exit_code = 3


class UnsafeError(FormatError):
    """A file is well formed but would be dangerous to interpret."""


class PlanError(CheckpointError):
    """The plan is impossible: mismatch, collision, nothing loaded, an unmet requirement, a changed source."""

    exit_code = 4


class OutputError(CheckpointError):
    """The output exists, is one of the inputs, or cannot be written."""

    exit_code = 5


class VerifyError(CheckpointError):
    """An output differs from what its recipe, plan or sources say."""
