"""``lora_concat``: joins adapters of one base into one adapter, by the weighted sum of their changes or by KnOTS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...checkpoint.checkpoint import Checkpoint
from ...engine.compute.compute import memory_bytes, with_costs
from ...errors import ConfigError
from ...planning.lora_output.concat import plan_lora_concat
from ...planning.lora_output.knots import knots_of
from ...planning.lora_output.stacked_experts import inseparable_stacks, target_stacks
from ...planning.plan.plan import Plan
from ...planning.transplant.options import Options
from ..inputs.argument_types import CheckpointLike, Patterns, Sources, checked, plain_arguments
from ..inputs.inputs import KeptOpen, source_notes
from ..inputs.sampled_parts import twice_notes
from .adapter_files import base_name
from .adapter_output import factor_dtype, open_adapters
from .merging import adapters_of, weights_of_adapters

if TYPE_CHECKING:
    import torch

__all__ = ["lora_concat"]


@checked
def lora_concat(
    adapters: Sources,
    *,
    weights: Sequence[float] | None = None,
    base: CheckpointLike | None = None,
    exclude: Patterns = (),
    dtype: str | torch.dtype | None = None,
    method: str = "sum",
    merge: str | None = None,
    density: float | None = None,
    rank: int | None = None,
    seed: int | None = None,
    memory: str | int | None = None,
) -> Plan:
    """Plan one PEFT adapter whose weight change is exactly the sum of weight * scale * B A over all ``adapters``.

    The factors A are stacked along the rank. The factors B are joined side by side, each multiplied by its weight and
    scale, so that the new scale is 1 (lora_alpha is r). A module that only some adapters have gets the sum of the ranks
    of these adapters. Stacked experts (PEFT's target_parameters) stay stacked, unless one of the adapters is of single
    experts; with ``method="knots"``, they are read as single experts, which gpt-oss does not have.

    With ``method="knots"``, the change is that of KnOTS: the changes of the adapters are multiplied by their weights,
    and merged by the method ``merge`` in a basis that all of them share. "ties" (as in the merge method ``knots_ties``;
    the default) keeps the largest values of each change, a share of ``density`` (0.2), and averages the values that
    have the sign of the majority. "dare_ties" (``knots_dare_ties``) keeps random values, a share of ``density`` (0.5),
    drawn with ``seed``, and scales them up to make up for the dropped values. "task_arithmetic" is the sum, which is
    the same in any basis. ``rank`` is the largest rank of the result. By default, it is the sum of the ranks, with
    which the merged change is stored exactly. ``memory`` ("512MB") limits the memory of the computation.

    Adapters are PEFT folders, single files with kohya's or diffusers' key names, or dicts of an adapter's tensors.
    ``weights`` has a weight for each adapter, by default 1; ``exclude`` leaves out modules. For kohya's names, ``base``
    is the model whose modules they name; only its keys are read. ``dtype`` is the dtype of the factors, by default that
    of the adapters; B becomes float32 if weight and scale cannot be multiplied into 16 bits exactly.

    Raises PlanError if the adapters cannot be joined (DoRA, modules_to_save, two biases, different bases or shapes).
    Raises ConfigError for adapters of another kind, for invalid weights and for parameters of another method;
    PatternError for a pattern that matches nothing; and the errors of ``open_checkpoint``.
    """
    given = adapters_of(adapters)
    counts, wanted = weights_of_adapters(weights, given), factor_dtype(dtype)
    if not any(counts):
        raise ConfigError(
            "the weights of all adapters are zero, so the result would change nothing.",
            hint="Give a weight that is not zero.",
        )
    knots, most = knots_of(method, merge, density, rank, seed), memory_bytes(memory)
    options = Options.of(exclude=exclude)
    opened: list[Checkpoint] = []
    with KeptOpen(opened):
        found = open_adapters(
            given, counts, opened, base,
            kept_stacks=inseparable_stacks if knots is not None else lambda data, _: target_stacks(data),
        )  # fmt: skip
        plan = plan_lora_concat(
            found.adapters,
            found.model,
            knots=knots,
            exclude=options.exclude,
            dtype=wanted,
            alike=base_name,
            arguments={
                **plain_arguments(exclude=exclude, dtype=wanted or None),
                **({"weights": counts} if weights is not None else {}),
                **(knots.arguments if knots is not None else {}),
            },
            notes=[
                *source_notes(opened[: len(given)], unwrap=False),
                *twice_notes(opened[: len(given)], counts if knots is None else ()),
            ],
        )
        made = found.finished(plan, opened, most)
        return with_costs(made, most) if knots is not None else made
