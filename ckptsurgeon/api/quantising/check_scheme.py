"""Checks the value of ``--quantize``, the name of a quantisation scheme."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import ConfigError
from ...tensors.encoders._schemes import SCHEMES
from ...util.text import escape

__all__ = ["check_scheme"]


def check_scheme(
    name: str | None, include: Sequence[str], exclude: Sequence[str], *, others: Sequence[str] = ()
) -> None:
    """Raise ConfigError if the scheme ``name`` is unknown, is used with ``others``, or is None with patterns given.

    ``include`` and ``exclude`` are the patterns. ``others`` are further options that the user has set and that cannot
    be combined with a scheme.
    """
    if name is not None and others:
        raise ConfigError(
            f"--quantize cannot be used with {others[0]}, nor with GGUF output.",
            hint="Quantise for llama.cpp with --gguf-type q8_0, without --quantize. Else convert first without "
            "--quantize, and quantise the output in a second run.",
        )
    if name is None and (include or exclude):
        option = "--include" if include else "--exclude"
        raise ConfigError(
            f"{option} has no effect without --quantize: it selects the tensors to quantise.",
            hint="To write only some tensors of a checkpoint, use ckpt filter.",
        )
    if name is not None and name not in SCHEMES:
        raise ConfigError(
            f"--quantize {escape(name)} is unknown.",
            hint=f"Use one of {', '.join(SCHEMES)}.",
        )
