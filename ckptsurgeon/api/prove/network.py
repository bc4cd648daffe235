"""A network on the meta device whose weights are read from a checkpoint when they are needed."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor, nn

from ...checkpoint.zero_notes import seen_zero_notes
from ...engine.inputs import PlanInputs
from ...engine.live_modules import stage_tensors
from ...errors import PlanError
from ...planning.plan.plan import Plan
from ...planning.plan.step import Step
from ...planning.transplant.equal_tensors import UnequalTensorsError
from ...tensors.composition import is_decoded, leaves
from ...tensors.info import TensorInfo
from ..inputs.reopening import inputs_of
from .rounding import Rounding, codes_of, rounding_of, roundoff

__all__ = ["Network", "rounding_between"]

BLOCK = 1 << 22
"""Codes are read in parts of this many bytes, to compute their CRC-32."""
SAMPLED = 4096
"""About this many values of each tensor are kept as a sample."""


_UNEQUAL = (
    "If both are used, write tie_word_embeddings: false in the config.json of this checkpoint. Otherwise, leave out "
    "the one that should not be used: ckpt filter --exclude."
)


def _nothing(number: int) -> None:
    pass


@dataclass
class Network:
    """A module on the meta device, and the plan for reading its weights from a checkpoint as float32.

    ``path`` is the path of the checkpoint, and ``folder`` the folder that contains it.
    """

    path: str
    module: nn.Module
    plan: Plan
    folder: str
    notes: tuple[str, ...] = ()
    """The notes of ``inspect`` on the checkpoint."""
    tokens: tuple[str, ...] = ()
    """The token list inside the checkpoint, if it is a GGUF file; () if there is none."""
    is_converted: bool = False
    """Whether the checkpoint is a GGUF file: then its tensors have other names than in the plan and in transformers."""
    computed: Mapping[str, Tensor] = field(default_factory=dict)
    """{key: tensor that the checkpoint lacks and the class computes, in the dtype of the computation}"""
    digests: dict[str, int] = field(default_factory=dict)
    """{key of a tensor that was read: CRC-32 of its float32 values}"""
    samples: dict[str, Tensor] = field(default_factory=dict)
    """About ``SAMPLED`` values of each tensor that was read, evenly spaced."""
    code_sums: dict[str, tuple[str, tuple[int, ...], int] | None] = field(default_factory=dict)
    """{key: the result of ``codes`` for this key}"""
    opened: ExitStack = field(default_factory=ExitStack)
    """The exit stack that closes the plan and the checkpoints from which the plan reads."""
    progress: Callable[[int], None] = _nothing
    """A function that is called with the number of values of each tensor that is read."""

    names: Mapping[str, str] = field(default_factory=dict)
    """{key in the module: key under which the tensor is compared}, for keys that differ (see ``renamed``)"""

    @cached_property
    def steps(self) -> Mapping[str, Step]:
        """{key of a tensor: step of the plan that reads it}."""
        return {self._name(step.key): step for step in self.plan.steps}

    def _name(self, key: str) -> str:
        return self.names.get(key, key)

    def renamed(self, names: Mapping[str, str]) -> Network:
        """Return a copy of this network, after a run, with the recorded digests and samples under other keys.

        ``names`` maps keys of the module to the new keys.
        """
        digests = {names.get(key, key): one for key, one in self.digests.items()}
        samples = {names.get(key, key): one for key, one in self.samples.items()}
        return replace(self, names=names, digests=digests, samples=samples, code_sums={})

    def read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Return the values of parameters or buffers as float32, and record their digests and samples.

        Raises PlanError if the checkpoint stores tied tensors separately, and their values differ.
        """
        steps = self.steps
        owners = {key: self._name(steps[key].tied_to) or key for key in keys if key in steps}
        chosen = tuple(steps[key] for key in dict.fromkeys(owners.values()))
        inputs = inputs_of(self.plan)
        try:
            staged, _ = stage_tensors(replace(self.plan, steps=chosen), inputs)
        except UnequalTensorsError as error:
            raise PlanError(error.message, hint=_UNEQUAL) from error
        found = {**self.computed, **staged}
        values = {key: _as_float32(found[steps[owner].key]) for key, owner in owners.items()}
        for key, value in values.items():
            self.progress(value.numel())
            if key not in self.digests:
                flat = value.contiguous().reshape(-1)
                self.digests[key] = zlib.crc32(flat.numpy().view("uint8").data)
                self.samples[key] = flat[:: max(1, flat.numel() // SAMPLED)].clone()
        return values

    def rounding(self, key: str) -> Rounding:
        """Return the largest change that rounding to the stored dtype or codes may have made to a tensor's values."""
        own = self.steps[key].key if key in self.steps else key
        if own in self.computed:
            return Rounding(roundoff(str(self.computed[own].dtype).removeprefix("torch.")))
        info = self._source_of(self.steps[key]) if key in self.steps else None
        if info is None:
            return Rounding()
        return rounding_of(info)

    def codes(self, key: str) -> tuple[str, tuple[int, ...], int] | None:
        """Return (dtype, shape, CRC-32) of the codes of a quantised tensor; None for any other tensor.

        The codes are read only in the first call.
        """
        if key not in self.code_sums:
            self.code_sums[key] = self._read_codes(key)
        return self.code_sums[key]

    def _read_codes(self, key: str) -> tuple[str, tuple[int, ...], int] | None:
        step = self.steps.get(key)
        info = self._source_of(step) if step is not None else None
        if step is None or step.source is None or info is None or not is_decoded(info):
            return None
        codes = codes_of(info)
        if codes.storage is None:
            return None
        inputs = self.plan.inputs
        assert isinstance(inputs, PlanInputs)
        file = inputs.sources[step.source].open_files().get(codes.storage.file)
        if file is None:
            return None
        place, crc = codes.storage.offset + codes.offset, 0
        for start in range(0, codes.nbytes, BLOCK):
            crc = zlib.crc32(file.read(place + start, min(BLOCK, codes.nbytes - start)), crc)
        return codes.dtype, codes.shape, crc

    def rounding_of_scales(self, key: str) -> Rounding:
        """Return the largest change that rounding to the stored dtype may have made to a quantised tensor's scales."""
        info = self._source_of(self.steps[key])
        others = [one for one in leaves(info) if one is not codes_of(info)] if info is not None else []
        return Rounding(max((roundoff(one.dtype) for one in others), default=0.0))

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes in which the weights are stored; for a quantised weight, the dtype of its codes."""
        infos = [self._source_of(step) for step in self.plan.steps]
        return tuple(dict.fromkeys(_stored_as(info) for info in infos if info is not None))

    def _source_of(self, step: Step) -> TensorInfo | None:
        """Return the tensor of the checkpoint that a step of the plan reads; None if the step reads no tensor."""
        inputs = self.plan.inputs
        assert isinstance(inputs, PlanInputs)
        return None if step.source is None else inputs.sources[step.source][step.source_key]

    def stores(self, step: Step) -> bool:
        """Return whether the checkpoint stores the tensor that a step reads, plainly or as codes with the same key."""
        info = self._source_of(step)
        return info is not None and (info.made is None or is_decoded(info)) and not self.is_converted

    def rows(self, key: str) -> int:
        """Return the size of a tensor's first axis; 0 for a tensor without axes."""
        return next(iter(self.steps[key].shape), 0)

    def load_buffers(self, read: Callable[[Sequence[str]], Mapping[str, Tensor]] | None = None) -> None:
        """Copy the buffers in the checkpoint, such as the statistics of batch norms, into the module.

        ``read`` is a function that returns the values of buffers by key; by default it is the method ``read``.
        """
        own = {key: buffer for key, buffer in self.module.named_buffers() if key in self.steps}
        for key, value in (read or self.read)(list(own)).items():
            own[key].copy_(value)

    def value_notes(self) -> tuple[str, ...]:
        """Return notes on the values read so far: implausible scales, and zeros where a file may be incomplete.

        A later call leaves out the zeros that an earlier call has noted.
        """
        sources = inputs_of(self.plan).sources
        odd = [note for one in sources for note in one.odd_scale_notes]
        return (*odd, *seen_zero_notes(sources, said=self.notes))

    def close(self) -> None:
        """Close the checkpoint."""
        self.opened.close()


def _as_float32(values: Tensor) -> Tensor:
    return values.float() if values.is_floating_point() else values


def _stored_as(info: TensorInfo) -> str:
    if not is_decoded(info):
        return info.dtype
    return f"{codes_of(info).dtype} codes"


def rounding_between(first: Network, second: Network, key: str) -> Rounding:
    """Return the largest difference between the values of a tensor in two networks that rounding may cause.

    If both store the same codes, only the scales may have been rounded, so no other rounding explains a difference.
    """
    codes = first.codes(key)
    if codes is not None and codes == second.codes(key):
        return first.rounding_of_scales(key).coarser(second.rounding_of_scales(key))
    return first.rounding(key).coarser(second.rounding(key))
