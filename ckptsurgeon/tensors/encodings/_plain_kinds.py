"""Finds kinds of modules that are unquantised in every layer, although the settings say that they are quantised."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ..info import TensorInfo
from ._encoding import QuantisedTensors
from ._modules import SKIPPED, Modules, module_of
from ._settings import QuantisationSettings, Settings
from ._unlike import MODELOPT, WHOLE, is_number, method_of, targets_of, without_numbers

__all__ = ["by_kind", "leaves_out", "plain_kinds"]

_IN_LAYER = re.compile(r"(.*?)\.\d+\.")
_LINEAR = re.compile(
    r"\.(?:[qkvo]_proj|out_proj|qkv_proj|gate_proj|up_proj|down_proj|gate_up_proj|query_key_value|fc[12]|w[123]"
    r"|dense_h_to_4h|dense_4h_to_h)\.weight$"
)
"""Matches weights of layers whose class is Linear in every model; routers and gates may have other classes."""
_EXPERTS = re.compile(r"\.experts\.(?:gate_up_proj|down_proj)(?:\.weight)?$")
"""Matches tensors with the weights of all experts of a layer."""
_OF_EXPERTS = ("fp8", "mxfp4")
"""Methods that quantise all experts of a layer in one tensor; mxfp4 quantises nothing else."""
_TOGETHER = (re.compile(r"\b[qkv]_proj$"), "qkv_proj"), (re.compile(r"\b(?:gate|up)_proj$"), "gate_up_proj")
"""Modules that vLLM joins, and the name of the joined module: settings may contain either name."""


def by_kind(settings: Settings) -> bool:
    """Return whether the method quantises all linear layers except those that its settings exclude.

    This is false for compressed-tensors if there are other targets than "Linear", or if an expression in ``ignore`` is
    not evaluated because it could take long to match.
    """
    method = method_of(settings)
    if method == "compressed-tensors":
        return targets_of(settings) == {"Linear"} and not Modules(settings).unread
    if method == MODELOPT and Modules(settings).unread:
        return False
    has_sections = "dynamic" not in settings or Modules(settings).has_sections
    return method in WHOLE and has_sections


def plain_kinds(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Settings) -> list[str]:
    """Return the plain weights of linear layers (such as ``q_proj``) that are not quantised in any layer of the model.

    They are returned only if other weights in the same stack of layers are quantised. Weights that the settings exclude
    from quantisation are not returned.
    """
    if not codes.tensors or not by_kind(settings):
        return []
    plain = [key for key in _plain(tensors, QuantisationSettings(settings).method) if key not in codes.by_key]
    if not plain:
        return []
    forms = {without_numbers(one.name) for one in codes.tensors}
    stacks = {match[1] for one in codes.tensors if one.codes and (match := _IN_LAYER.match(one.name))}
    modules = Modules(settings)
    found = [
        key
        for key in plain
        if (match := _IN_LAYER.match(key)) is not None and match[1] in stacks
        and without_numbers(key) not in forms and not leaves_out(modules, settings, module_of(key))
    ]  # fmt: skip
    return [] if modules.is_spent else found


def _plain(tensors: Mapping[str, TensorInfo], method: str) -> Iterator[str]:
    """Yield the keys of plain weights in layers of a class that ``method`` quantises."""
    for key, info in tensors.items():
        if is_number(info):
            is_linear = len(info.shape) == 2 and method != "mxfp4" and bool(_LINEAR.search(key))
            if is_linear or (len(info.shape) == 3 and method in _OF_EXPERTS and _EXPERTS.search(key)):
                yield key


def leaves_out(modules: Modules, settings: Settings, module: str) -> bool:
    """Return whether the settings may leave a module unquantised, possibly under another name of the module.

    The settings list modules under the names of transformers or vLLM. A name may have another prefix than in the file,
    or be the name of a module that vLLM makes by joining several modules.
    """
    names = [module, *(joined.sub(name, module) for joined, name in _TOGETHER if joined.search(module))]
    words = [name.split(".") for name in names]
    if any(modules.left_out(".".join(one[start:])) for one in words for start in range(len(one))):
        return True
    if any(map(modules.may_leave_out, names)):
        return True
    ends = {re.sub(r"^.*?\.(?=\d+(?:\.|$))", "", entry) for entry in _entries(settings)}
    return any(f".{end}." in f".{name}." for end in ends for name in names)


def _entries(settings: Settings) -> Iterator[str]:
    for field in (*SKIPPED, "ignore"):
        value = settings.get(field)
        yield from (one for one in value if isinstance(one, str) and one) if isinstance(value, list) else ()
