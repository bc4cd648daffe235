"""Estimates the share of each of several processes in writing an output: shards, bytes, memory, and time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod

from ..errors import ConfigError
from ..planning.plan.plan import Plan
from ..planning.plan.process_shares import UNEVEN, ProcessShare, Sharing, unevenness
from ..planning.plan.step import Step
from ..storage.write.staged_file import StagedFile
from ..tensors.dtypes import DTYPES
from .apply_settings import MEMORY, MergeContext
from .compute.compute import costs_of
from .inputs import PlanInputs
from .one_output_part import PartRun
from .output.layout import OutputOptions, OutputShape, as_written, is_folder, lay_out
from .output.quantisers import quantisers_of
from .output_parts import plan_of_parts, steps_of_parts, write_parts
from .processes import shared_out

__all__ = ["sharing_of"]

SAMPLE = 128 << 20
"""How many bytes of the output are computed, and discarded, to measure how fast a process works."""
BASE, TORCH = 60 << 20, 200 << 20
"""The bytes of memory that Python and ckpt use, and that torch uses: several processes communicate through torch."""

CLEARLY = 1.1
"""If the shares are uneven, another size of shards is proposed only if it divides the unevenness by more than this."""
SHARDS_EACH = (2, 4, 8, 16)
KILOBYTE, MEGABYTE = 10**3, 10**6


def sharing_of(plan: Plan, inputs: PlanInputs, options: OutputOptions, number: int) -> Sharing:
    """Return the share of each of ``number`` processes in writing the output of a plan, whose inputs are open.

    Nothing is written. If the processes would write very different numbers of bytes, the result also contains a size of
    shards with which the shares are more even. If all sources are local, a sample of the output is computed to estimate
    the time; an error in computing it is raised. Raises PlanError if the memory limit is too small.
    """
    written = as_written(plan, options)
    shape = lay_out(written, options, (), quantisers=quantisers_of(written, inputs.sources))
    steps = steps_of_parts(written, shape)
    shares = shared_out(shape.parts, number) if is_folder(options) else [list(shape.parts), *([[]] * (number - 1))]
    context = MergeContext(plan.seed, inputs.plugins, inputs.memory or MEMORY)
    rate = _rate(written, inputs, options)
    found = []
    for share in shares:
        costs = costs_of(replace(plan_of_parts(written, steps, share), inputs=inputs), context)
        size = sum(part.layout.size for part in share)
        memory = BASE + costs.memory_nbytes + (TORCH if number > 1 else 0)
        found.append(ProcessShare(len(share), costs.nbytes_read, size, memory, size / rate if rate else None))
    made = Sharing(tuple(found), shape.size, rate, is_folder=is_folder(options))
    if made.unevenness <= UNEVEN or not is_folder(options):
        return made
    text, then = _more_even(written, options, shape, number)
    return replace(made, shard_size=text, shard_unevenness=then) if then < made.unevenness / CLEARLY else made


def _more_even(plan: Plan, options: OutputOptions, shape: OutputShape, number: int) -> tuple[str, float]:
    """Return the size of shards that ``number`` processes share most evenly, and the unevenness of their shares.

    A few sizes are tried, from the largest down; one of them is the size of the largest tensor. The first size with an
    unevenness of at most ``UNEVEN`` is returned. Sizes that would make a shard for each tensor are left out, because
    ckpt refuses them. If no size is left, the result is ("", infinity).
    """
    found: list[tuple[float, str]] = []
    sizes = {shape.size // (number * shards) for shards in SHARDS_EACH} | {max(map(_nbytes, plan.steps), default=0)}
    for text in dict.fromkeys(map(_size_text, sorted(sizes, reverse=True))):
        try:
            parts = lay_out(plan, replace(options, max_shard_size=text), ()).parts
        except ConfigError:
            continue
        shares = [sum(part.layout.size for part in share) for share in shared_out(parts, number)]
        found.append((unevenness(shares), text))
        if found[-1][0] <= UNEVEN:
            break
    then, text = min(found, key=lambda one: one[0], default=(math.inf, ""))  # if several are equally even: the largest
    return text, then


def _size_text(nbytes: int) -> str:
    """Return ``nbytes`` as a value of ``--max-shard-size``, rounded down, such as "3MB"; at least "1KB"."""
    if nbytes >= MEGABYTE:
        return f"{nbytes // MEGABYTE}MB"
    return f"{max(1, nbytes // KILOBYTE)}KB"


def _rate(plan: Plan, inputs: PlanInputs, options: OutputOptions) -> float | None:
    """Return the number of bytes of the output that a process writes per second, measured with a sample of the steps.

    Returns None if a source is remote, or if no step can be computed without the destination's initialiser.
    """
    local = {file.remote for source in inputs.sources for file in source.open_files().values()} <= {False}
    chosen = list(_sample(plan)) if local else []
    if not chosen:
        return None
    sample = replace(plan, steps=tuple(chosen), vocabularies=())
    (part,) = lay_out(sample, replace(options, path="sample.safetensors", to="", max_shard_size=""), ()).parts
    began = time.perf_counter()
    write_parts([PartRun(sample, chosen, inputs, part, _Nowhere(""), lambda nbytes: None)], lambda run: None)
    return part.layout.size / max(time.perf_counter() - began, 1e-6)


def _sample(plan: Plan) -> Iterator[Step]:
    """Yield steps, spread over the plan, that need no initial values and together make about ``SAMPLE`` bytes."""
    usable = [step for step in plan.steps if not (step.draws or step.tied_to or step.overlays)]
    usable = [step for step in usable if DTYPES[step.dtype].kind != "quantized"]  # safetensors has no such dtypes
    sizes = {id(step): _nbytes(step) for step in usable}
    stride = max(1, sum(sizes.values()) // SAMPLE)
    left = SAMPLE
    for step in usable[::stride]:
        left -= sizes[id(step)]
        yield step
        if left <= 0:
            return


def _nbytes(step: Step) -> int:
    return DTYPES[step.dtype].bits * prod(step.shape) // 8


class _Nowhere(StagedFile):
    """A file that discards all bytes."""

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        """Yield -1, an invalid descriptor: the kernel cannot copy to it, so that callers use ``write``."""
        yield -1

    def start_writing(self, offset: int, nbytes: int) -> None:
        """Do nothing: all bytes are discarded."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Do nothing: all bytes are discarded."""
