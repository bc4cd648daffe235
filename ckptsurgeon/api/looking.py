"""``inspect`` and ``init_config``: what headers tell."""

from __future__ import annotations

import json
import os

from ..checkpoint import open_checkpoint
from ..errors import FormatError
from ..inspection import Inspection, inspection_of
from ..text import escape
from .types import Path, Patterns

__all__ = ["init_config", "inspect"]


def inspect(path: Path, *, root: str | None = None, include: Patterns = (), stats: bool = False) -> Inspection:
    """Describe a checkpoint from its headers: every tensor, what it shares, what else is in the file.

    ``include`` limits the description to keys that match; ``stats`` reads their values too. Raises what
    ``open_checkpoint`` raises, and PatternError for a pattern that matches nothing.
    """
    with open_checkpoint(path, root) as checkpoint:
        return inspection_of(checkpoint, include, stats=stats)


def init_config(path: Path, *, root: str | None = None, output: Path | None = None, force: bool = False) -> str:
    """Return a destination configuration that declares the tensors of a checkpoint, and write it to ``output``.

    It is YAML, or JSON where ``output`` ends in ``.json``.

    Headers tell shapes and dtypes but not how a model initialises, so each tensor gets the initialiser that its
    name and shape suggest, to be reviewed. Raises OutputError where the output exists, without ``force``.
    """
    from ..configs import declare
    from ..yamltext import dump_yaml

    with open_checkpoint(path, root) as checkpoint:
        opaque = [key for key, info in checkpoint.items() if info.opaque]
        if opaque:
            raise FormatError(
                f"{escape(opaque[0])} of {escape(os.fspath(path))} cannot be declared: {checkpoint[opaque[0]].opaque}.",
                details=opaque,
                rule="opaque",
            )
        document = {"model": declare(checkpoint, checkpoint.ties)}
        as_json = output is not None and os.fspath(output).lower().endswith(".json")
        text = json.dumps(document, indent=2) + "\n" if as_json else dump_yaml(document)
        if output is not None:
            from ..engine import write_text

            write_text(os.fspath(output), text, inputs=checkpoint.open_files().values(), force=force)
    return text
