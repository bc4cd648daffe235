"""Reads the initialisers in a destination's YAML, checks that they fit their tensors, and draws values with them.

The field ``init`` is the name of a function of ``torch.nn.init`` without its last underscore, alone (``ones``) or with
arguments (``{normal: {std: 0.02}}``). It may also be a number, to which all values are set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..planning.target import Undrawable
from ..tensors.dtypes import DTYPES
from ..tensors.info import TensorInfo
from ..util.text import brief_repr, escape
from ._document import Document, check_fields

if TYPE_CHECKING:
    import torch

__all__ = ["DEVIATION", "LIKE", "NO_INIT", "ZERO_DEVIATION", "Init", "drawn", "read_init", "suggested_init"]

_AT_LEAST_2 = ("xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal")
_ARGUMENTS = {
    "uniform": ("a", "b"), "normal": ("mean", "std"), "trunc_normal": ("mean", "std", "a", "b"),
    "constant": ("val",), "ones": (), "zeros": (), "eye": (), "dirac": ("groups",), "arange": (),
    "xavier_uniform": ("gain",), "xavier_normal": ("gain",),
    "kaiming_uniform": ("a", "mode", "nonlinearity"), "kaiming_normal": ("a", "mode", "nonlinearity"),
    "orthogonal": ("gain",), "sparse": ("sparsity", "std"),
}  # fmt: skip
"""Initialisers and their arguments, as in ``torch.nn.init``; ``arange`` is ours: 0, 1, 2, …, as for position ids."""
_CHOICES = {
    "mode": ("fan_in", "fan_out"),
    "nonlinearity": (
        "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "sigmoid",
        "tanh", "relu", "leaky_relu", "selu",
    ),
}  # fmt: skip
_NEEDED = {"constant": "val", "sparse": "sparsity"}

_EXACT = ("constant", "ones", "zeros", "eye", "arange")
"""Initialisers that can fill tensors of integers and booleans."""

LIKE = "like"
"""The value of the field ``init`` for a tensor that starts with its values in a checkpoint."""
TORCH_SLOPE = 2.23607
"""The square root of 5: the ``a`` with which torch's linear and convolution layers call ``kaiming_uniform_``."""


@dataclass(frozen=True)
class Init:
    """An initialiser with its arguments, checked to fit its tensor."""

    name: str
    arguments: Mapping[str, Any]

    @property
    def is_zero(self) -> bool:
        """Whether the initialiser sets all values to zero."""
        return self.name == "zeros" or (self.name == "constant" and self.arguments.get("val") == 0)


NO_INIT = Undrawable(
    "does not say how to initialise {keys}, and no source has all of the values",
    "Give each of these tensors a field init in the destination's file.",
)
ZERO_DEVIATION = Undrawable(
    "initialises {keys} with zeros, but models divide by standard deviations and variances",
    "Use a source that has this tensor, or pass --reinit {key} to start with zeros nevertheless.",
    allowed=True,
)
DEVIATION = re.compile(r"(.*[._])?(?<!log_)(std|stddev|stdev|istd|var|variance|deviation)")
"""Matches the usual names of standard deviations and variances, but not of their logarithms."""


def read_init(document: Document, key: str, info: TensorInfo, spec: Any) -> Init:
    """Return the initialiser that ``spec`` describes; raises ConfigError if it is unknown or does not fit the tensor.

    ``spec`` is the value of the field ``init`` of the tensor ``key``.
    """
    if isinstance(spec, (int, float)):
        spec = {"constant": {"val": spec}}
    name, arguments = next(iter(spec.items())) if isinstance(spec, dict) and len(spec) == 1 else (spec, {})
    if not isinstance(name, str) or name not in _ARGUMENTS:
        raise document.fail(
            f"the tensor {escape(key)} has an unknown initialiser: {brief_repr(spec)}.",
            f"Use one of {', '.join(_ARGUMENTS)}.",
        )
    arguments = arguments or {}
    if not isinstance(arguments, dict):
        raise document.fail(f"the arguments of the initialiser {name} of the tensor {escape(key)} are not a map.")
    check_fields(document, f"{name} of {key}", arguments, _ARGUMENTS[name])
    needed = _NEEDED.get(name)
    if needed and needed not in arguments:
        raise document.fail(f"the initialiser {name} of the tensor {escape(key)} needs the argument {needed}.")
    why = _unfit(info, name) or _bad_arguments(info, name, arguments)
    if why:
        raise document.fail(f"{name} cannot initialise the tensor {escape(key)}: {why}.")
    return Init(name, arguments)


def _unfit(info: TensorInfo, name: str) -> str:
    """Return the reason why the initialiser ``name`` does not fit a tensor with this shape and dtype; '' if it fits."""
    dims, dtype = len(info.shape), DTYPES[info.dtype]
    wanted = {"eye": dims == 2, "sparse": dims == 2, "dirac": 3 <= dims <= 5, "arange": dims >= 1}.get(name, True)
    if not wanted or (name in _AT_LEAST_2 and dims < 2):
        needed = {"eye": "2", "sparse": "2", "dirac": "3 to 5", "arange": "1 or more"}.get(name, "2 or more")
        return f"it has {dims} dimensions, not {needed}"
    if name != "zeros" and (dtype.kind in ("quantized", "bits") or dtype.values > 1 or dtype.bits % 8):
        return f"a tensor of {info.dtype} can only be initialised with zeros"
    if name not in _EXACT and not dtype.is_floating:
        return f"its dtype is {info.dtype}, not a floating-point dtype"
    if name == "arange" and info.numel and not _holds(info.dtype, info.shape[-1] - 1):
        return f"{info.dtype} cannot represent the last value, {info.shape[-1] - 1}"
    return ""


def _bad_arguments(info: TensorInfo, name: str, arguments: Mapping[str, Any]) -> str:
    """Return what is wrong with the arguments of an initialiser; '' if they are valid."""
    for argument, value in arguments.items():
        choices = _CHOICES.get(argument)
        if choices is not None and value not in choices:
            return f"{argument} is {brief_repr(value, 40)}, not one of {', '.join(choices)}"
        if choices is None and (isinstance(value, str) or not isinstance(value, (int, float))):
            return f"{argument} is {brief_repr(value, 40)}, not a number"
    low, high = arguments.get("a", 0.0), arguments.get("b", 1.0)
    if name == "uniform" and low > high:
        return f"its lower bound a is {low}, above its upper bound b, {high}"
    if arguments.get("std", 0) < 0:
        return f"std is {arguments['std']}, below zero"
    if not 0 <= arguments.get("sparsity", 0) <= 1:
        return f"sparsity is {arguments['sparsity']}, not between 0 and 1"
    groups = arguments.get("groups", 1)
    if not isinstance(groups, int) or groups < 1 or (name == "dirac" and info.shape[0] % groups):
        return f"groups is {groups}, not a whole number that divides the size of the first axis, {info.shape[0]}"
    if name == "constant" and not _holds(info.dtype, arguments["val"]):
        return f"{arguments['val']} is not a value of {info.dtype}"
    return ""


def _holds(dtype: str, value: float) -> bool:
    """Return whether a dtype can represent a value: integer and bool dtypes exactly, floating-point dtypes rounded."""
    kind, bits = DTYPES[dtype].kind, DTYPES[dtype].bits
    low, high = {
        "bool": (0, 1),
        "int": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
        "uint": (0, 2**bits - 1),
    }.get(kind, (value, value))
    return kind in ("float", "complex") or (value == int(value) and low <= value <= high)


def drawn(info: TensorInfo, init: Init) -> memoryview:
    """Return the bytes of a new tensor that ``init`` fills; random values come from torch's default generator."""
    if init.name == "zeros" or info.numel == 0:
        return memoryview(bytearray(info.nbytes))
    import torch

    dtype: torch.dtype = getattr(torch, info.dtype)
    wide = torch.complex64 if dtype.is_complex else torch.float32
    computed = dtype if info.dtype not in _NO_KERNELS and not info.dtype.startswith("float8") else wide
    tensor = torch.empty(info.shape, dtype=computed)
    _fill(tensor, init)
    return tensor.to(dtype).reshape(-1).view(torch.uint8).numpy().data


_NO_KERNELS = ("complex32", "uint16", "uint32", "uint64")
"""Dtypes for which torch has few operations, so that initial values are computed in a wider dtype."""


def _fill(tensor: torch.Tensor, init: Init) -> None:
    import torch

    if init.name == "arange":
        tensor.copy_(torch.arange(tensor.shape[-1]).expand(tensor.shape))
        return
    try:
        getattr(torch.nn.init, f"{init.name}_")(tensor, **init.arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the initialiser {init.name} with {dict(init.arguments)} fails: {escape(str(error))}."
        ) from error


_MATRIX = re.compile(r"(.*_)?(weight|kernel)|weight_v|weight_[ih]h_l\d+(_reverse)?|original1")
_SCALE = re.compile(r"(.*_)?(weight|gamma|scale)|weight_g|original0|running_var")
_SHIFT = re.compile(r"(.*_)?(bias|beta)|bias_[ih]h_l\d+(_reverse)?|bias_[kv]|running_mean")
"""Usual names of tensors that start with random values (``_MATRIX``), ones (``_SCALE``) and zeros (``_SHIFT``)."""


def suggested_init(key: str, info: TensorInfo) -> str | dict[str, Any]:
    """Return the initialiser that a tensor's name and shape suggest, in the form of the field ``init``.

    This function knows the weights, biases and running statistics of torch's layers, counters and position ids. For all
    other tensors, such as most buffers, the result is "like": start with the values of a checkpoint.
    """
    leaf, dtype, dims = re.split(r"[./]", key)[-1], DTYPES[info.dtype], len(info.shape)
    if leaf == "position_ids" and not _unfit(info, "arange"):
        return "arange"
    if leaf == "num_batches_tracked":
        return "zeros"
    if dtype.kind != "float" or dtype.values > 1 or dtype.bits % 8:
        return LIKE
    if dims >= 2 and _MATRIX.fullmatch(leaf):
        return {"kaiming_uniform": {"a": TORCH_SLOPE}}
    if _SCALE.fullmatch(leaf) and (dims == 1 or leaf in ("weight_g", "original0")):
        return "ones"
    return "zeros" if dims == 1 and _SHIFT.fullmatch(leaf) else LIKE
