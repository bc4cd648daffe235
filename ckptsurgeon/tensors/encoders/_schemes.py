"""The schemes of ``ckpt convert --quantize``: which tensors store a weight, and the settings in config.json.

The module does not import numpy: planning reads only headers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..dtypes import DTYPES
from ..info import Encoded, TensorInfo

__all__ = ["JOINED", "OWN_DTYPES", "SCHEMES", "Scheme", "misfit", "quantised_parts", "stated_settings", "together"]

WEIGHT = ".weight"
FLOAT8, EXPONENTS = "float8_e4m3fn", "float8_e8m0fnu"
OWN_DTYPES = ("float32", "float16", "bfloat16")
"""If a weight has one of these dtypes, its scales have the same dtype; the scales of all other weights are float32."""
JOINED = (
    ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"), ("q_a_proj", "kv_a_proj_with_mqa"),
)  # fmt: skip
"""Layers that vLLM joins; the joined layer has only one global scale."""


@dataclass(frozen=True)
class Compressed:
    """The settings of a scheme of compressed-tensors: the name of its format, and what differs from the defaults.

    ``weights`` are the settings of weights; ``activations`` those of activations, None if these are not quantised.
    """

    form: str
    weights: Mapping[str, Any]
    activations: Mapping[str, Any] | None = None

    def stated(self) -> dict[str, Any]:
        """Return the ``quantization_config``, without its ``ignore`` list."""
        common = {"num_bits": 8, "symmetric": True, "dynamic": False, "group_size": None, "observer": None}
        args: dict[str, Any] = {**common, "actorder": None, "block_structure": None, "observer_kwargs": {}}
        group = {
            "targets": ["Linear"], "weights": {**args, **self.weights}, "output_activations": None,
            "format": self.form,
            "input_activations": None if self.activations is None else {**args, **self.activations},
        }  # fmt: skip
        return {"quant_method": "compressed-tensors", "quantization_status": "compressed", "format": self.form,
                "config_groups": {"group_0": group}, "kv_cache_scheme": None,
                "global_compression_ratio": None}  # fmt: skip


@dataclass(frozen=True)
class Scheme:
    """A way to quantise a matrix: the encoder, its stored tensors, and the settings in config.json.

    ``codes`` is (ending of the key of the codes, their dtype); ``per`` is the number of codes in one element. ``steps``
    is how many rows and columns share a scale; 0 means all of them. ``scale`` is the ending of the key of the scales
    and ``scale_dtype`` their dtype ('' for the dtype of the weight); ``stored_scale`` is their dtype in the file, if it
    is different. ``more`` has {ending: role} of other stored tensors. ``ignore`` is the name of the setting that lists
    the modules that are not quantised. ``of_experts`` is a note for the user if a library cannot load experts that are
    quantised in this way.
    """

    name: str
    encoding: str
    codes: tuple[str, str]
    steps: tuple[int, int]
    scale: str
    settings: Mapping[str, Any] | Compressed
    ignore: str = "ignore"
    per: int = 1
    scale_dtype: str = ""
    stored_scale: str = ""
    facts: tuple[tuple[str, float], ...] = ()
    more: Mapping[str, str] = field(default_factory=dict)
    of_experts: str = ""

    @property
    def is_strict(self) -> bool:
        """Whether a matrix can be quantised only if its number of columns is a multiple of the group size."""
        return self.steps[0] == 1 and self.steps[1] > 0

    @property
    def is_shared(self) -> bool:
        """Whether a weight has a global scale; layers that vLLM joins (``JOINED``) share one global scale."""
        return "over" in dict(self.facts)


_CHANNEL = {"strategy": "channel"}
_PER_TOKEN = {"strategy": "token", "dynamic": True}
_OF_FOUR = {"num_bits": 4, "type": "float"}

SCHEMES: Mapping[str, Scheme] = {
    one.name: one
    for one in (
        Scheme(
            "fp8-block", "fp8", (WEIGHT, FLOAT8), (128, 128), ".weight_scale_inv",
            {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
            "modules_to_not_convert", scale_dtype="float32", facts=(("top", 448.0), ("reciprocal", 1)),
        ),
        Scheme(
            "fp8-channel", "fp8", (WEIGHT, FLOAT8), (1, 0), ".weight_scale",
            Compressed("float-quantized", {"type": "float", **_CHANNEL}, {"type": "float", **_PER_TOKEN}),
            facts=(("top", 448.0),),
        ),
        Scheme(
            "int8", "int8", (WEIGHT, "int8"), (1, 0), ".weight_scale",
            Compressed("int-quantized", {"type": "int", **_CHANNEL}, {"type": "int", **_PER_TOKEN}),
            facts=(("bits", 8),), of_experts="transformers 5.23 cannot load experts as int8",
        ),
        Scheme(
            "int4-group128", "packed", (".weight_packed", "int32"), (1, 128), ".weight_scale",
            Compressed("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}),
            per=8, facts=(("bits", 4),), more={".weight_shape": "shape"},
        ),
        Scheme(
            "mxfp4", "mxfp4", (".weight_packed", "uint8"), (1, 32), ".weight_scale",
            Compressed("mxfp4-pack-quantized", {
                **_OF_FOUR, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8",
            }),
            per=2, scale_dtype=EXPONENTS, stored_scale="uint8",
        ),
        Scheme(
            "nvfp4", "nvfp4", (".weight_packed", "uint8"), (1, 16), ".weight_scale",
            Compressed("nvfp4-pack-quantized", {
                **_OF_FOUR, "strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn",
            }),
            per=2, scale_dtype=FLOAT8, facts=(("over", 448.0 * 6),), more={".weight_global_scale": "whole"},
            of_experts="transformers 5.23 loads experts as nvfp4 without their global scales, and so with wrong values",
        ),
    )
}  # fmt: skip


def misfit(info: TensorInfo, scheme: Scheme) -> str:
    """Return the reason why a tensor cannot be quantised under ``scheme``; '' if it can."""
    dtype = DTYPES[info.dtype]
    if info.opaque or dtype.kind != "float" or dtype.is_packed or dtype.bits < 16:
        return info.opaque or f"it is {info.dtype}"
    if len(info.shape) != 2:
        return f"it has {len(info.shape)} dimension{'' if len(info.shape) == 1 else 's'}, not 2"
    if not info.numel:
        return "it has no elements"
    if scheme.is_strict and info.shape[1] % scheme.steps[1]:
        return f"its {info.shape[1]} columns are not a multiple of {scheme.steps[1]}"
    return ""


def quantised_parts(
    scheme: Scheme, name: str, weight: TensorInfo, others: Mapping[str, TensorInfo] | None = None, *, dtype: str = ""
) -> dict[str, TensorInfo]:
    """Return {key ending: stored tensor} for the quantised matrix ``weight``, the codes first.

    ``name`` is the key of the matrix. ``others`` are the matrices that share its global scale, by key. ``dtype`` is the
    dtype of scales if the scheme does not determine it; '' for the dtype of the matrix.
    """
    rows, columns = weight.shape
    steps = (scheme.steps[0] or rows, scheme.steps[1] or columns)
    numbers = scheme.scale_dtype or dtype or (weight.dtype if weight.dtype in OWN_DTYPES else "float32")
    others = others or {}
    of = (weight, *others.values())
    made = Encoded(of, scheme.encoding, "codes", steps, numbers, scheme.facts, name, tuple(others))
    groups = (-(-rows // steps[0]), -(-columns // steps[1]))
    end, dtype = scheme.codes
    found = {
        end: TensorInfo(dtype, (rows, -(-columns // scheme.per)), made=made),
        scheme.scale: TensorInfo(scheme.stored_scale or numbers, groups, made=replace(made, role="scale")),
    }
    for ending, role in scheme.more.items():
        kind, shape = ("int64", (2,)) if role == "shape" else ("float32", (1,))
        found[ending] = TensorInfo(kind, shape, made=replace(made, role=role))
    return found


def stated_settings(scheme: Scheme, plain: Sequence[str]) -> dict[str, Any]:
    """Return the ``quantization_config`` of a model; ``plain`` are the names of modules that are not quantised."""
    settings = scheme.settings.stated() if isinstance(scheme.settings, Compressed) else scheme.settings
    return {**settings, scheme.ignore: list(plain)}


def together(name: str) -> tuple[str, ...]:
    """Return ``name`` and the names of the matrices that vLLM joins with this matrix when it runs the model."""
    module, _, leaf = name.rpartition(".")
    parent, _, layer = module.rpartition(".")
    group = next((one for one in JOINED if layer in one), (layer,))
    return tuple(f"{parent}.{one}.{leaf}" if parent else f"{one}.{leaf}" for one in group)
