"""What a merge is asked for, apart from its method: options, vocabulary and models."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint
from ...engine.inputs import PlanInputs
from ...errors import ConfigError
from ...methods.merge._method import Method
from ...planning.code_notes import check_mixed_layers, with_possible_codes_said
from ...planning.merge.differing_models import MergeOptions
from ...planning.plan.plan import Plan
from ...planning.quantised import check_codes
from ...planning.transplant.by_place import PLACE
from ...planning.transplant.select import SourceView
from ...tensors.possible_scales import CODES as INTEGERS
from ..aligning.aligned_models import AlignedModels
from ..inputs.argument_types import CheckpointLike, Patterns, Rules
from ..inputs.encoding import ENCODINGS, encoding_notes, read_as
from ..inputs.inputs import KeptOpen, source_notes
from ..inputs.memory_budget import with_costs
from ..model_folder.folder import ModelFolder

if TYPE_CHECKING:
    from .tokenizers import RowsRequest

__all__ = ["BASE", "UNION", "InputModel", "MergeRequest", "VocabularyRequest"]

UNION, BASE = "union", "base"


@dataclass(frozen=True)
class VocabularyRequest:
    """The user's arguments about vocabularies.

    ``vocab`` is the output's vocabulary (--vocab), ``tokens`` the models' token lists (--tokens), and ``keys`` the
    tensors with a row for each token (--vocab-keys). ``rows`` has the rows that a mergekit recipe chooses; if it is
    set, tokens that no model has get rows of zeros, as in mergekit.
    """

    vocab: str | None = None
    tokens: Rules = ()
    keys: Patterns = ()
    rows: RowsRequest | None = None

    @property
    def is_by_place(self) -> bool:
        """Whether row n of the output is merged from row n of each model, even if their tokens differ."""
        return self.vocab is not None and self.vocab.lower() == PLACE

    def is_by_token(self) -> bool:
        """Return whether rows are merged by token; raises ConfigError if other arguments then have no effect."""
        if self.vocab is not None and not self.is_by_place:
            return True
        if self.tokens or isinstance(self.keys, str) or self.keys:
            raise ConfigError(
                "--tokens and --vocab-keys have no effect without --vocab.",
                hint="Write --vocab union, --vocab base or --vocab FILE.",
            )
        return False

    @property
    def said(self) -> dict[str, Any]:
        """The arguments as the output's recipe records them; if ``vocab`` is a path, only the file name is recorded."""
        known = self.vocab is None or self.vocab.lower() in (UNION, BASE, PLACE)
        return {"vocab": self.vocab if known else os.path.basename(str(self.vocab)), "vocab_keys": self.keys}


@dataclass(frozen=True)
class MergeRequest:
    """The parsed arguments of a merge, without the models, the method and its parameters.

    ``arguments`` are the same arguments as plain data, which the recipe of the output records.
    """

    options: MergeOptions
    vocabulary: VocabularyRequest
    arguments: Mapping[str, Any]
    seed: int = 0
    plugins: tuple[Method, ...] = ()
    memory: int = 0
    unwrap: bool = False
    root: str | None = None
    encoding: str = ENCODINGS[0]
    statistics: Rules = ()
    align: bool = False
    align_groups: Mapping[str, Any] | None = None

    def aligned(self, opened: Sequence[Checkpoint], reference: int) -> AlignedModels:
        """Return the open models; with ``--align``, all are aligned with the model at the index ``reference``."""
        if not self.align:
            return AlignedModels(list(opened))
        from ..aligning.align import align

        return align(opened, reference, groups=self.align_groups, memory=self.memory)

    def opened(
        self, models: Sequence[CheckpointLike], stack: ExitStack, *, base: int | None = None
    ) -> list[Checkpoint]:
        """Open the models, decoded if they are quantised; ``stack`` closes them.

        ``base`` is the index of the base in ``models``, if there is one; errors then call this model the base.
        """
        names = ["base" if place == base else f"model {place + 1}" for place in range(len(models))]
        opened = [
            stack.enter_context(open_checkpoint(one, self.root, unwrap=self.unwrap, called=name))
            for one, name in zip(models, names, strict=True)
        ]
        read = [read_as(one, self.encoding) if one.codes else one for one in opened]
        stack.enter_context(KeptOpen(read))
        return read

    def notes(self, opened: Sequence[Checkpoint]) -> list[str]:
        """Return the notes on the open models, and on arguments that have no effect."""
        notes = source_notes(opened, unwrap=self.unwrap)
        return notes if self.encoding == ENCODINGS[0] else [*notes, *encoding_notes(opened, self.encoding)]

    def carried(self, plan: Plan, opened: Sequence[Checkpoint], *others: str, donor: int) -> Plan:
        """Return ``plan`` with its estimated cost, and ``opened`` as its inputs, which stay open until ``apply``.

        ``others`` are paths of further files that were read, which the output must not overwrite. ``donor`` is the
        index of the model whose configuration the output gets.

        Raises PlanError if the plan would use codes of quantised tensors as numbers, decode them with wrong settings,
        or mix encodings.
        """
        if any(codes := [one.codes_before_operations for one in opened]):
            check_codes(plan, codes)
        if any(one.dtype in INTEGERS for step in plan.steps for one in step.inputs):
            plan = with_possible_codes_said(plan, [one.codes for one in opened])
        if any(one.codes for one in opened):
            from ..model_folder.codes.output_settings import check_settings, unsettled_notes, with_settings

            check_settings(plan, opened, donor)
            check_mixed_layers(plan, [one.codes for one in opened], donor, opened[donor])
            plan = replace(plan, notes=(*plan.notes, *unsettled_notes(plan, opened, donor)))
            plan = with_settings(plan, opened, donor)
        inputs = PlanInputs(tuple(opened), None, others, plugins=self.plugins, memory=self.memory)
        return with_costs(replace(plan, inputs=inputs), self.memory, self.plugins)


@dataclass(frozen=True)
class InputModel:
    """One of the models to merge: its path, its tensors (``view``) and the files in its folder."""

    path: str
    view: SourceView
    folder: ModelFolder

    def size(self, tokens: int) -> int:
        """Return the number of rows of the model's embedding; ``tokens`` is the number of tokens in its list.

        The result is the vocabulary size in config.json if a tensor has a dimension of this size, else ``tokens``.
        """
        said = self.folder.rows
        long = said and any(said in info.shape for info in self.view.tensors.values())
        return said if long else tokens
