"""Compares the tensors of an output with their checksums, and with the same tensors computed again from the sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from ...checkpoint.checkpoint import Checkpoint
from ...engine.apply_settings import MergeContext, factorising_bytes
from ...engine.check_steps import check_step
from ...engine.checksums import crc32
from ...engine.compute.adding_lora import is_single
from ...engine.compute.matching_pursuit import is_pursuit
from ...engine.output.quantisers import stored_quantiser
from ...errors import ConfigError, FormatError, VerifyError
from ...planning.plan.rows import VocabularyRows
from ...planning.plan.step import MERGES, Input, Step, with_vocabularies
from ...planning.recipe import RecipeEntry
from ...tensors.dtypes import DTYPES, is_masked
from ...tensors.info import TensorInfo
from ...tensors.ops.casts import count_special, raw_dtype
from ...tensors.quantised.methods import is_packed_in_floats
from ...tensors.torch_quantisers import codes_of
from ...util.text import count, escape
from .differences import BLOCK, Origins, first_difference, product_fault, reader
from .expected import Check, difference_of

__all__ = ["check_values", "compare", "left_out"]

# Comparison with the sources, if they still exist.

Named = tuple[Checkpoint, str]
"""A source tensor: its checkpoint and its key."""


def compare(check: Check, key: str, info: TensorInfo, made: RecipeEntry) -> None:
    """Compute a tensor of an output again from its sources, compare the two, and record the result in ``check``.

    ``made`` says how the tensor was made. Raises VerifyError if the recorded sources cannot give this tensor.
    """
    if made.source is None:
        check.drawn += 1
        return
    why = check.left_out.get(key) or next(_gone(check, key, info, made), None)
    if why is not None:
        check.not_compared[key] = why
        return
    sources = _sources(check, made)
    step = _planned(check, key, info, made, sources=sources)
    _check_quantiser(check, key, sources[0])
    origins = [(codes_of(source[name]) or source[name], source) for source, name in sources]
    over = check.expected.keeper if step.overlays else None
    keeper = check.expected.sources[over] if over is not None else None
    differ = partial(first_difference, step, info, check.output, origins, keeper=keeper, context=check.expected.context)
    on_device = step.merge is not None and step.merge.device != ""
    where = differ(near=on_device)
    is_rounded = is_single(step) or is_pursuit(step) or _is_factorised(step, check.expected.context)
    near = on_device or (where is not None and is_rounded)
    if near and not on_device:  # another processor, or another BLAS, may round the last bits differently
        where = differ(near=True)
    if where is not None and made.factor is not None:
        _compare_product(check, key, step, origins)
    elif where is not None:
        check.fail(key, f"differs from {_origin(sources)} at byte {where}")
    elif near:
        check.near += 1
    else:
        check.compared += 1


def _origin(sources: Sequence[Named]) -> str:
    """Return a text on the tensor from which an output's tensor was made, or on what several tensors give together."""
    (source, name), *others = sources
    first = f"{escape(name)} of {escape(source.path)}"
    return f"what {first} and {count(len(others), 'other tensor')} give," if others else first


def _is_factorised(step: Step, context: MergeContext) -> bool:
    """Return whether a step merges whole matrices by their singular values.

    LAPACK computes the singular values, and may round the last bits differently on another computer.
    """
    return step.merge is not None and factorising_bytes(step.numbers, context) > 0


def _check_quantiser(check: Check, key: str, origin: Named) -> None:
    """Raise VerifyError if a tensor that torch quantised has other scales or zero points than its source."""
    stored, (source, name) = check.output[key], origin
    found, theirs = codes_of(stored), codes_of(source[name])
    if found is None and theirs is None:
        return
    same = found is not None and theirs is not None
    if not same or not stored_quantiser(check.output, stored).equals(stored_quantiser(source, source[name])):
        raise VerifyError(f"has other scales or zero points than {escape(name)} of {escape(source.path)}")


def _compare_product(check: Check, key: str, step: Step, origins: Origins) -> None:
    """Compare a low-rank factor that is not equal, bit for bit, to the factor that is extracted again.

    Factors are not unique, so the products of the factors A and B are compared. Raises VerifyError if these differ.
    """
    pair = check.expected.factors[difference_of(check.expected.tensors[key])]
    names = [pair[part] for part in "AB" if part in pair and pair[part] in check.output]
    if len(names) != 2:
        raise VerifyError(f"the output lacks the other low-rank factor of the pair to which {escape(key)} belongs")
    fault = product_fault(step, [(check.output[name], check.output) for name in names], origins, check.expected.context)
    if fault:
        raise VerifyError(fault)
    check.products += 1


def _gone(check: Check, key: str, info: TensorInfo, made: RecipeEntry) -> Iterator[str]:
    """Yield the reason why a source is missing, for each missing source that the tensor was made from."""
    over = check.expected.keeper if _step(key, made, info, rows=check.expected.rows, inputs=()).overlays else None
    for index in (made.source, *(source for source, _ in made.more), over):
        if index is not None and index not in check.expected.sources:
            yield check.expected.absent.get(index, "its source was not found")


def _sources(check: Check, made: RecipeEntry) -> list[Named]:
    assert made.source is not None
    wanted = [(made.source, made.source_key), *made.more]
    sources = [(check.expected.sources[index], name) for index, name in wanted]
    for source, name in sources:
        if name not in source:
            raise VerifyError(
                f"the source {escape(source.path)} has no tensor {escape(name)}, from which this tensor was made"
            )
    return sources


def _planned(check: Check, key: str, info: TensorInfo, made: RecipeEntry, *, sources: Sequence[Named]) -> Step:
    """Return the plan's step that made a tensor from ``sources``; raises VerifyError if it cannot be carried out."""
    inputs = [Input(i, name, source[name].dtype, source[name].shape) for i, (source, name) in enumerate(sources)]
    step = _step(key, made, info, rows=check.expected.rows, inputs=inputs)
    every = check.expected.vocabularies
    if (made.op, made.policy) == ("merge", "vocab") and not every:
        raise VerifyError("the recipe lacks the vocabularies that are needed to merge this tensor token by token")
    assert made.source is not None
    indices = (made.source, *(index for index, _ in made.more))
    step = with_vocabularies(step, [every[index] for index in indices] if every else ())
    check_step(step)
    return step


def _step(
    key: str, made: RecipeEntry, info: TensorInfo, *, rows: VocabularyRows | None, inputs: Sequence[Input]
) -> Step:
    rows = rows if made.op == "map" else None
    if not inputs:
        return Step(key, made.op, info.dtype, info.shape, rows=rows)
    first, *more = inputs
    return Step(
        key, made.op, info.dtype, info.shape, first.source, first.key, first.dtype, first.shape,
        policy=made.policy, more=tuple(more), weights=made.weights, rows=rows, axis=made.axis, merge=made.merge,
        lora=made.lora, factor=made.factor, coded=made.coded,
    )  # fmt: skip


def check_values(check: Check, key: str) -> None:
    """Compare a tensor of an output with its recorded checksum, then with its sources; record the result in ``check``.

    Raises FormatError if the values cannot be read, VerifyError if the sources cannot give this tensor.
    """
    stored, made = check.output[key], check.expected.tensors[key]
    info = codes_of(stored) or stored
    if info.opaque:
        raise FormatError(f"the values of this tensor cannot be read: {info.opaque}.")
    crc = _read_through(check, key, info)
    if check.expected.has_checksums and crc != made.crc32:
        check.fail(key, f"has CRC-32 {crc:08x}, but the recipe has {made.crc32:08x}")
        return
    storage = info.storage
    whole_record = storage is not None and info.is_plain and info.nbytes == storage.nbytes
    if storage is not None and whole_record and storage.crc32 not in (None, crc):
        check.fail(key, "does not match the checksum that the file stores for it")
        return
    compare(check, key, info, made)
    check.advance(info.nbytes)


def _read_through(check: Check, key: str, info: TensorInfo) -> int:
    """Read a tensor and return the CRC-32 of its bytes; add its numbers of NaN and Inf to ``check``."""
    read, floating = reader(check.output, info), DTYPES[info.dtype].kind in ("float", "complex")
    floating = floating and not (info.shape[1:] == (1,) and is_packed_in_floats(key, check.output.codes))
    crc = 0
    for done in range(0, info.nbytes, BLOCK):
        data = read(done, min(BLOCK, info.nbytes - done))
        crc = crc32(data, crc)
        if floating:
            nan, inf = count_special(np.frombuffer(data, raw_dtype(info.dtype)), info.dtype)
            check.nan, check.inf = check.nan + nan, check.inf + inf
            if (nan or inf) and not is_masked(key):
                check.unsound[key] = None
        check.advance(len(data))
    return crc


# Chooses the merged tensors to compute again.


def left_out(tensors: Mapping[str, RecipeEntry], sample: int | None) -> Mapping[str, str]:
    """Return {key: reason} of the merged tensors that are not computed again.

    ``sample`` is the number of merged tensors to compute again, evenly spread; None for all. Copied tensors are always
    compared, because that costs no more than reading them. Raises ConfigError if ``sample`` is negative.
    """
    if sample is None:
        return {}
    if sample < 0:
        raise ConfigError(f"--sample {sample} is not a number of tensors.", hint="Use 0 or more.")
    merged = [key for key, made in tensors.items() if made.op in MERGES]
    number = min(sample, len(merged))
    chosen = {merged[place * len(merged) // number] for place in range(number)}
    why = f"not one of the {number} merged tensors that were computed again (--sample {sample})"
    return {key: why for key in merged if key not in chosen}
