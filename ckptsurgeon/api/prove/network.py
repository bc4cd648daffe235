"""A network on the meta device whose weights are read from a checkpoint when they are needed."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.in_memory import path_of
from ...checkpoint.opening import open_checkpoint
from ...checkpoint.seen_zeros import seen_zero_notes
from ...destinations._load import target_with
from ...destinations.torch_module.meta import build_on_meta
from ...destinations.torch_module.user_code import PROCESS_STATE
from ...engine.inputs import PlanInputs
from ...engine.live_modules import stage_tensors
from ...errors import ConfigError, PlanError
from ...planning.plan.plan import Plan
from ...planning.plan.step import Step
from ...planning.quantised_error import UndecodableWeightError
from ...planning.transplant.options import Options
from ...storage.read.uri import shown
from ...tensors.composition import is_decoded, leaves
from ...tensors.dtypes import BLOCKS, DTYPES
from ...tensors.info import Shifted, TensorInfo
from ...util.text import escape
from ..edit import convert
from ..inputs.argument_types import CheckpointLike
from ..inputs.arguments import specs_of
from ..inputs.encoding import ENCODINGS
from ..inputs.inputs import close_plan
from ..inputs.reopening import inputs_of
from ..layouts.named_layout import TRANSFORMERS
from ..model_folder.checks import contradictions
from ..model_folder.embedded import embedded_model
from ..model_folder.folder import model_folder
from ..transplant.opening import TransplantRequest, plan_into
from .computed_tensors import computed_tensors

__all__ = ["Network", "Rounding", "configuration_of", "open_network", "rounding_between"]

ROUNDOFF = {
    "float64": 2**-53, "float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8, "float8_e4m3fn": 2**-4,
    "float8_e4m3fnuz": 2**-4, "float8_e5m2": 2**-3, "float8_e5m2fnuz": 2**-3,
}  # fmt: skip
"""The largest relative error of rounding to a dtype: half the distance between 1 and the next larger number."""
CODES = {"int8": 2**-8}
"""The largest rounding error of integer codes, as a share of the largest weight in the row."""
BLOCK = 1 << 22
"""Codes are read in parts of this many bytes, to compute their CRC-32."""
BITS = {name: int(next(filter(str.isdecimal, name))) for name in BLOCKS}
"""The number of bits of a weight in each GGUF type with blocks of codes, read from its name: 4 for ``q4_0``."""
FOUR_BITS = 2**-4
"""The largest rounding error of codes of 4 bits, and of all dtypes of codes not in ``CODES`` and ``BITS``."""
DECODE = (
    "Dequantise the model first, with the package that quantised it. If config.json has no quantization_config, copy "
    "that of the original model."
)
"""The hint for weights that cannot be decoded: the network computes with decoded weights."""
USUAL = 0.7
"""Random changes are at most this share of the largest rounding error, because most rounding errors are smaller.

The relative error is largest for values just above a power of two, and half as large just below the next power of two.
"""
SAMPLED = 4096
"""About this many values of each tensor are kept as a sample."""


@dataclass(frozen=True)
class Rounding:
    """The largest change of a tensor's values by rounding.

    ``relative`` is a share of each value, ``of_row`` a share of the largest absolute value in the row, and ``absolute``
    a distance that is the same for all values. ``absolute`` is needed for norms of Gemma: GGUF stores each weight plus
    1, and this sum is rounded.
    """

    relative: float = 0.0
    of_row: float = 0.0
    absolute: float = 0.0

    def coarser(self, other: Rounding) -> Rounding:
        """Return a Rounding with the larger of the two values in each field."""
        both = zip(astuple(self), astuple(other), strict=True)
        return Rounding(*map(max, both))

    def moved(self, key: str, values: Tensor) -> Tensor:
        """Return ``values`` after random changes such as rounding may cause; ``key`` determines the seed."""
        chance = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        by = (torch.rand(values.shape, generator=chance) * 2 - 1) * USUAL
        found = values + values * by * self.relative + by * self.absolute
        if self.of_row and values.dim() > 1:
            found = found + values.abs().flatten(1).amax(1).view(-1, *[1] * (values.dim() - 1)) * by * self.of_row
        return found


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
    """The tensors that the checkpoint lacks and the class computes, by key, in the dtype in which it computes them."""
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

    @cached_property
    def steps(self) -> Mapping[str, Step]:
        """{key of a tensor in the module: step of the plan that reads it}."""
        return {step.key: step for step in self.plan.steps}

    def read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Return the values of parameters or buffers as float32, and record their digests and samples."""
        steps = self.steps
        owners = {key: steps[key].tied_to or key for key in keys if key in steps}
        chosen = tuple(steps[key] for key in dict.fromkeys(owners.values()))
        inputs = inputs_of(self.plan)
        staged, _ = stage_tensors(replace(self.plan, steps=chosen), inputs)
        found = {**self.computed, **staged}
        values = {key: _as_float32(found[owner]) for key, owner in owners.items()}
        for key, value in values.items():
            self.progress(value.numel())
            if key not in self.digests:
                flat = value.contiguous().reshape(-1)
                self.digests[key] = zlib.crc32(flat.numpy().view("uint8").data)
                self.samples[key] = flat[:: max(1, flat.numel() // SAMPLED)].clone()
        return values

    def rounding(self, key: str) -> Rounding:
        """Return how much a tensor's values may have changed when they were rounded to their dtype or codes."""
        if key in self.computed:
            return Rounding(ROUNDOFF.get(str(self.computed[key].dtype).removeprefix("torch."), 0.0))
        info = self._source_of(self.steps[key]) if key in self.steps else None
        if info is None:
            return Rounding()
        if is_decoded(info) or DTYPES[info.dtype].block:
            return _rounding_of_codes(info)
        relative = max(ROUNDOFF.get(one.dtype, 0.0) for one in leaves(info))
        return Rounding(relative, absolute=relative * _added(info))

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
        codes = _codes_of(info)
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
        """Return how much the scales of a quantised tensor may have changed when they were rounded to their dtype."""
        info = self._source_of(self.steps[key])
        others = [one for one in leaves(info) if one is not _codes_of(info)] if info is not None else []
        return Rounding(max((ROUNDOFF.get(one.dtype, 0.0) for one in others), default=0.0))

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


def _added(info: TensorInfo) -> float:
    """Return the absolute value of the number that GGUF adds to all values of a tensor (a norm); 0 if none is added."""
    return abs(info.made.by) if isinstance(info.made, Shifted) else 0.0


def _stored_as(info: TensorInfo) -> str:
    if not is_decoded(info):
        return info.dtype
    return f"{_codes_of(info).dtype} codes"


def _codes_of(info: TensorInfo) -> TensorInfo:
    """Return the codes of a quantised tensor: the largest of its stored tensors, because scales may be float8, too."""
    return max(leaves(info), key=lambda one: one.numel)


def rounding_between(first: Network, second: Network, key: str) -> Rounding:
    """Return the largest difference between the values of a tensor in two networks that rounding may cause.

    If both store the same codes, only the scales may have been rounded, so no other rounding explains a difference.
    """
    codes = first.codes(key)
    if codes is not None and codes == second.codes(key):
        return first.rounding_of_scales(key).coarser(second.rounding_of_scales(key))
    return first.rounding(key).coarser(second.rounding(key))


def _rounding_of_codes(info: TensorInfo) -> Rounding:
    codes = _codes_of(info).dtype
    if codes in BITS:
        return Rounding(of_row=2.0 ** -BITS[codes])
    if codes.startswith("float8"):
        return Rounding(relative=ROUNDOFF[codes])
    return Rounding(of_row=CODES.get(codes, FOUR_BITS))


def configuration_of(path: str) -> str:
    """Return the path of the config.json in a checkpoint's folder; '' if there is none."""
    folder = path if os.path.isdir(path) else os.path.dirname(path) or os.curdir
    found = os.path.join(folder, "config.json")
    return found if os.path.isfile(found) else ""


def open_network(
    source: CheckpointLike, configuration: str, *, task: str | None, root: str | None, read_buffers: bool = True
) -> Network:  # fmt: skip
    """Open a checkpoint as the network that a configuration describes; raises ConfigError or PlanError.

    ``configuration`` is the path of the configuration, ``task`` the ESPnet task, if an ESPnet configuration fits
    several tasks, and ``root`` the dotted path of the state dict. Without ``read_buffers``, no values are read.
    """
    spec = target_with(configuration, None, task, dequantized=True)
    if spec.build is None:
        raise ConfigError(
            f"{escape(spec.name)} describes only tensors, not a network that can run.",
            hint="Give the configuration of a model: --model config.json, or a YAML file with model:.",
        )
    options = Options.of(dtype="float32")
    with ExitStack() as opened:
        given, inner = source, root
        conversion = _to_transformers(source, root)
        if conversion is not None:
            opened.callback(close_plan, conversion)
            given, inner = _converted(conversion), None
        try:
            # Row n is copied to row n, even if the configuration's folder has another tokeniser: see shared_tokens.
            request = TransplantRequest(root=inner, by_place=True, encoding=ENCODINGS[1])
            plan = plan_into(specs_of(given), spec, options, request)
            opened.callback(close_plan, plan)
            module = _built(spec.build)
            computed = computed_tensors(spec, module, [step.key for step in plan.steps if step.reason == "missing"])
        except PlanError as error:
            name = escape(shown(path_of(source)))
            hint = f"ckpt fits {name} {escape(configuration)} lists all tensors that are missing or have another shape."
            raise PlanError(
                f"{name} does not load into the network of {escape(configuration)}: {error.message}",
                hint=DECODE if isinstance(error, UndecodableWeightError) else hint,
                details=error.details,
            ) from error
        path = path_of(source)
        folder = path if os.path.isdir(path) else os.path.dirname(path) or os.curdir
        network = Network(shown(path), module, plan, folder, _notes(source, root), _tokens(source, root))
        network.is_converted, network.computed = conversion is not None, computed
        if read_buffers:
            network.load_buffers()
        network.opened = opened.pop_all()
    return network


def _to_transformers(source: CheckpointLike, root: str | None) -> Plan | None:
    """Return the plan that gives a GGUF file the names and layout of transformers; None for any other checkpoint."""
    with open_checkpoint(source, root) as checkpoint:
        if not checkpoint.header.stored:
            return None
        in_blocks = any(DTYPES[info.dtype].block for info in checkpoint.values())
    dtype = "float32" if in_blocks else None
    return convert(source, layout=TRANSFORMERS, root=root, dequantize=in_blocks, dtype=dtype)


def _tokens(source: CheckpointLike, root: str | None) -> tuple[str, ...]:
    with open_checkpoint(source, root) as checkpoint:
        embedded = embedded_model(checkpoint)
        return embedded.tokens if embedded is not None else ()


def _converted(plan: Plan) -> Checkpoint:
    """Return the tensors that a plan would write, as a checkpoint; values are read from the plan's open source."""
    assert isinstance(plan.inputs, PlanInputs)
    (opened,) = plan.inputs.sources
    steps = [step for step in plan.steps if step.source is not None]
    return opened.holding({step.key: opened[step.source_key] for step in steps})


def _notes(source: CheckpointLike, root: str | None) -> tuple[str, ...]:
    """Return the notes on a checkpoint, and the notes on files in its folder that contradict the tensors."""
    with open_checkpoint(source, root) as checkpoint:
        folder = None if checkpoint.folder is None else model_folder(checkpoint)
        return (*checkpoint.notes, *contradictions(checkpoint, folder))


def _built(build: Callable[[], object]) -> nn.Module:
    """Build a module on the meta device, in float32 and evaluation mode; the global random state does not change.

    Meanwhile, no other thread draws random numbers; otherwise, restoring the state would undo its draws.
    """
    with PROCESS_STATE, torch.random.fork_rng(devices=()):
        module = build_on_meta(lambda: _module(build()))
    return module.float().eval().requires_grad_(False)


def _module(made: object) -> nn.Module:
    assert isinstance(made, nn.Module)
    return made
