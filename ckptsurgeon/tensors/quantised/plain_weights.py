"""Finds weights that are plain in one layer, or in all layers, although the settings say that they are quantised."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ..info import TensorInfo
from .autoround import blocks_of, is_autoround
from .config_groups import target_expressions
from .encoding import QuantisedTensors
from .exclusions import PossibleExclusions
from .modules import Modules, module_of
from .settings import QuantisationSettings, Settings, modelopt_of
from .unlike import WHOLE, is_number, method_of, targets_of, without_numbers

__all__ = ["PlainWeights", "by_kind", "plain_among_codes", "plain_kinds"]

_IN_LAYER = re.compile(r"(.*?)\.\d+\.")
_LINEAR = re.compile(
    r"\.(?:[qkvo]_proj|out_proj|qkv_proj|gate_proj|up_proj|down_proj|gate_up_proj|query_key_value|fc[12]|w[123]"
    r"|dense_h_to_4h|dense_4h_to_h)\.weight$"
)
"""Matches weights of layers whose class is Linear in every model; routers and gates may have other classes."""
_EXPERTS = re.compile(r"\.experts\.(?:gate_up_proj|down_proj)(?:\.weight)?$")
"""Matches tensors with the weights of all experts of a layer."""
_FBGEMM = "fbgemm_fp8"
"""A method that may quantise only some kinds of modules, but each kind in all layers that the settings allow."""
_PLAIN_ALGORITHMS = ("NONE", "BF16", "FP16", "FP32")
"""With these values of ``quant_algo`` in ModelOpt's ``quantized_layers``, a module is not quantised."""
_ONE_EXPERT = re.compile(r"\.experts\.\d+\.")
"""Matches tensors of single experts. bitsandbytes leaves them plain: transformers 5 joins all experts of a layer."""
_OF_EXPERTS = ("fp8", "mxfp4")
"""Methods that quantise all experts of a layer in one tensor; mxfp4 quantises nothing else."""


def by_kind(settings: Settings) -> bool:
    """Return whether the method quantises all linear layers except those that its settings exclude.

    This is false for compressed-tensors if there are other targets than "Linear".
    """
    method = method_of(settings)
    return method in WHOLE and (method != "compressed-tensors" or targets_of(settings) == {"Linear"})


class PlainWeights(NamedTuple):
    """Weights that are not quantised although the settings say that they are.

    ``names`` are those that the settings do not exclude. For the weights ``undecided``, this is not known, because some
    regular expressions in the settings were not evaluated.
    """

    names: list[str]
    undecided: list[str]


def _within(settings: Settings, quantised: Iterable[str]) -> Callable[[str], bool] | None:
    """Return a function that returns whether a module is in one of AutoRound's blocks; None if they are not known.

    Also returns None if no quantised module is in a block, because the settings then have names from another version of
    the model.
    """
    blocks = blocks_of(settings)
    if blocks and not any(name.startswith(blocks) for name in quantised):
        return None
    return None if blocks is None else lambda module: not blocks or module.startswith(blocks)


def _quantises(settings: Settings, quantised: Iterable[str]) -> Callable[[str], bool] | None:
    """Return a function that returns whether the settings quantise a module, unless they exclude it.

    The result is None if the settings do not say which modules are quantised. ``quantised`` are the names of quantised
    weights.
    """
    if isinstance(listed := modelopt_of(settings).get("quantized_layers"), dict):
        kinds = {name: one.get("quant_algo") for name, one in listed.items() if isinstance(one, dict)}
        return lambda module: isinstance(kind := kinds.get(module), str) and kind.upper() not in _PLAIN_ALGORITHMS
    if is_autoround(settings) or settings.get("block_name_to_quantize"):  # AutoRound, also with GPTQ's method
        return _within(settings, quantised)
    method, targets = method_of(settings), targets_of(settings)
    if method == "compressed-tensors" and targets and "Linear" not in targets:
        modules, expressions = Modules(settings), target_expressions(settings)
        if expressions is None:
            return None
        return lambda module: any(modules.meets(one, module) for one in expressions)
    return (lambda module: True) if method in (*WHOLE, _FBGEMM) else None


def plain_among_codes(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Settings) -> PlainWeights:
    """Return the weights that are stored plainly, although the same module of another layer is quantised.

    Weights that the settings exclude from quantisation, or may exclude, are left out.
    """
    quantises = _quantises(settings, (one.name for one in codes.tensors if one.codes))
    if quantises is None:
        return PlainWeights([], [])
    named = {one.name for one in codes.tensors}
    plain = [key for key, info in tensors.items() if key not in codes.by_key and key not in named and is_number(info)]
    patterns = {key: without_numbers(key) for key in plain}
    ends = tuple({pattern.rpartition("#")[2] for pattern in patterns.values()})  # saves time: few codes have these ends
    forms = {without_numbers(one.name) for one in codes.tensors if one.codes and one.name.endswith(ends)}
    found = [key for key in plain if patterns[key] in forms and quantises(module_of(key))]
    return _not_excluded(found, codes, tensors, settings)


def plain_kinds(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Settings) -> PlainWeights:
    """Return the plain weights of linear layers (such as ``q_proj``) that are not quantised in any layer of the model.

    They are returned only if other weights in the same stack of layers are quantised. Weights that the settings exclude
    from quantisation are left out.
    """
    if not codes.tensors or not by_kind(settings):
        return PlainWeights([], [])
    plain = [key for key in _plain(tensors, QuantisationSettings(settings).method) if key not in codes.by_key]
    if not plain:
        return PlainWeights([], [])
    forms = {without_numbers(one.name) for one in codes.tensors}
    stacks = {match[1] for one in codes.tensors if one.codes and (match := _IN_LAYER.match(one.name))}
    found = [
        key
        for key in plain
        if (match := _IN_LAYER.match(key)) is not None and match[1] in stacks and without_numbers(key) not in forms
    ]
    return _not_excluded(found, codes, tensors, settings)


def _not_excluded(
    plain: Sequence[str], codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Settings
) -> PlainWeights:
    """Return the keys in ``plain`` without those that the settings exclude, or may exclude, from quantisation.

    Keys are ``undecided`` if some regular expressions of the settings were not evaluated.
    """
    if not plain:
        return PlainWeights([], [])
    quantised = [module_of(one.name) for one in codes.tensors if one.codes]
    exclusions = PossibleExclusions(settings, tensors, quantised)
    found = [key for key in plain if not any(map(exclusions.may_exclude, _modules_of(key)))]
    return PlainWeights([], found) if exclusions.unread or exclusions.is_spent else PlainWeights(found, [])


def _modules_of(key: str) -> list[str]:
    """Return the modules that settings may name to exclude a weight; all experts of a layer may be one module."""
    module = module_of(key)
    return [module, module.rpartition(".")[0]] if _EXPERTS.search(key) else [module]


def _plain(tensors: Mapping[str, TensorInfo], method: str) -> Iterator[str]:
    """Yield the keys of plain weights in layers of a class that ``method`` quantises."""
    for key, info in tensors.items():
        if is_number(info):
            is_linear = len(info.shape) == 2 and method != "mxfp4" and bool(_LINEAR.search(key))
            if method == "bitsandbytes" and _ONE_EXPERT.search(key):
                continue
            if is_linear or (len(info.shape) == 3 and method in _OF_EXPERTS and _EXPERTS.search(key)):
                yield key
