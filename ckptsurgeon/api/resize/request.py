"""The arguments of resize, and the checks of them that read no file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import ConfigError
from ...planning.resizing.repeat import Noise
from ...util.text import escape
from ..inputs.argument_types import Files, check_seed, plain_arguments, rules_as_text
from .merging import check_merge
from .vocabulary_choices import VocabularyChoices

__all__ = ["Request", "paths_of"]

NEW_CHANNELS = ("init", "copy")
_MOMENTS = re.compile(r"(^|\.)(optim\w*|exp_avg(_sq)?|adam_[mv]|momentum_buffer)($|\.)")
"""Matches dotted paths of the state of an optimizer."""


@dataclass(frozen=True)
class Request:
    """The arguments of ``resize`` as plain data; a text is '' if it was not given.

    ``path``, ``by``, ``config`` and ``optimizer`` are paths. ``tokens`` has all arguments about the vocabulary.
    """

    path: str
    model_type: str | None = None
    expert: int | None = None
    layers: str = ""
    new_channels: str | None = None
    new_width: str | None = None
    noise: float | None = None
    merge_experts: str | None = None
    align_experts: bool = False
    by: str = ""
    tokens: VocabularyChoices = field(default_factory=VocabularyChoices)
    config: str = ""
    optimizer: str = ""
    dtype: str | None = None
    seed: int = 0
    root: str | None = None

    @property
    def noise_of_copies(self) -> Noise:
        """The size (``--noise``) and the seed of the random changes to weights that read copies."""
        return Noise(self.noise or 0.0, self.seed)

    def check(self) -> None:
        """Raise ConfigError for a value that an argument cannot have."""
        check_seed(self.seed)
        if self.new_channels is not None and self.new_channels not in NEW_CHANNELS:
            raise ConfigError(f"--new-channels {escape(self.new_channels)} is unknown.", hint="Use init or copy.")
        if self.noise is not None and not 0 <= self.noise <= 1:
            raise ConfigError(
                f"--noise {self.noise} is not a number from 0 to 1.", hint="Write, for example, --noise 0.1."
            )
        if self.new_width is not None and self.new_width not in NEW_CHANNELS:
            raise ConfigError(f"--new-width {escape(self.new_width)} is unknown.", hint="Use copy or init.")
        if self.merge_experts is not None:
            check_merge(self.merge_experts)
        elif self.align_experts:
            raise ConfigError(
                "--align-experts is only for --merge-experts.",
                hint="Leave --align-experts out, or merge experts: --merge-experts similar.",
            )
        if self.root is not None and _MOMENTS.search(self.root):
            raise ConfigError(
                f"--root {escape(self.root)} is the state of an optimizer, which cannot be resized like weights.",
                hint="Choose the weights, and name the file of the optimizer's state with --optimizer.",
            )

    def arguments(self, fields: Mapping[str, Any], kept: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Return the arguments that the recipe in the output records; of files, only the names.

        ``fields`` has the new values of fields, and ``kept`` the indices to keep, by field.
        """
        tokens = self.tokens
        found = plain_arguments(
            model_type=self.model_type, layers=self.layers,
            keep={name: list(value) for name, value in kept.items()}, new_channels=self.new_channels,
            new_width=self.new_width, noise=self.noise, merge_experts=self.merge_experts,
            align_experts=self.align_experts,
            by=os.path.basename(self.by), dtype=self.dtype, tokenizer=_name(tokens.tokenizer),
            pad_to=tokens.pad_to if tokens.pad_to > 1 else 0, trim=list(map(os.path.basename, tokens.corpora)),
            no_keep_special=not tokens.keeps_special, new_tokens=tokens.new, token_map=rules_as_text(tokens.spelled),
            donor=_name(tokens.donor), omp_k=tokens.picks, root=self.root, optimizer=_name(self.optimizer),
            set=dict(fields),
        )  # fmt: skip
        return found if self.expert is None else {**found, "expert": self.expert}  # 0 is valid


def paths_of(files: Files) -> list[str]:
    """Return one path, or several paths, as a list of strings."""
    return [os.fspath(one) for one in ([files] if isinstance(files, str | os.PathLike) else files or ())]


def _name(path: str) -> str:
    """Return the name of a file or folder without the folder that it is in."""
    return os.path.basename(path.rstrip("/"))
