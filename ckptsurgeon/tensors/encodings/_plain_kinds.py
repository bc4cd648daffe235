"""Finds kinds of modules that are plain in every layer, though the settings of quantisation do not leave them out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ..info import TensorInfo
from ._encoding import QuantisedTensors
from ._modules import SKIPPED, Modules, module_of
from ._settings import QuantisationSettings, Settings
from ._unlike import WHOLE, is_number, targets_of, without_numbers

__all__ = ["by_kind", "leaves_out", "plain_kinds"]

_IN_LAYER = re.compile(r"(.*?)\.\d+\.")
_LINEAR = re.compile(
    r"\.(?:[qkvo]_proj|out_proj|qkv_proj|gate_proj|up_proj|down_proj|gate_up_proj|query_key_value|fc[12]|w[123]"
    r"|dense_h_to_4h|dense_4h_to_h)\.weight$"
)
"""Weights of layers that are of the class Linear in every model; routers and gates may be of others."""
_EXPERTS = re.compile(r"\.experts\.(?:gate_up_proj|down_proj)(?:\.weight)?$")
"""Weights of all experts of a layer, in one tensor."""
_OF_EXPERTS = ("fp8", "mxfp4")
"""Methods that quantise experts as a whole; the second quantises nothing else."""
_TOGETHER = (re.compile(r"\b[qkv]_proj$"), "qkv_proj"), (re.compile(r"\b(?:gate|up)_proj$"), "gate_up_proj")
"""Modules that vLLM joins, and the name of the joined one, which settings may have."""


def by_kind(settings: Settings) -> bool:
    """Return whether a method quantises all layers of some classes that its settings do not leave out.

    compressed-tensors may name other targets, and expressions that are not evaluated.
    """
    method = QuantisationSettings(settings).method
    if method == "compressed-tensors":
        return targets_of(settings) == {"Linear"} and not Modules(settings).unread
    has_sections = "dynamic" not in settings or Modules(settings).has_sections
    return method in WHOLE and has_sections


def plain_kinds(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Settings) -> list[str]:
    """Return the plain weights of linear layers (such as ``q_proj``) that are stored as codes in no layer of the model.

    They are only returned if other weights of the same stack of layers are codes. Weights that the settings exclude
    from quantisation are not among them.
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
    """Yield the plain weights that are of a class of layers which ``method`` quantises."""
    for key, info in tensors.items():
        if is_number(info):
            is_linear = len(info.shape) == 2 and method != "mxfp4" and bool(_LINEAR.search(key))
            if is_linear or (len(info.shape) == 3 and method in _OF_EXPERTS and _EXPERTS.search(key)):
                yield key


def leaves_out(modules: Modules, settings: Settings, module: str) -> bool:
    """Return whether settings may leave a module unquantised, under its name or that in another version of the model.

    Entries have the names of the module in transformers or in vLLM, which may begin otherwise or be of joined modules.
    """
    names = [module, *(joined.sub(name, module) for joined, name in _TOGETHER if joined.search(module))]
    words = [name.split(".") for name in names]
    if any(modules.left_out(".".join(one[start:])) for one in words for start in range(len(one))):
        return True
    ends = {re.sub(r"^.*?\.(?=\d+(?:\.|$))", "", entry) for entry in _entries(settings)}
    return any(f".{end}." in f".{name}." for end in ends for name in names)


def _entries(settings: Settings) -> Iterator[str]:
    for field in (*SKIPPED, "ignore"):
        value = settings.get(field)
        yield from (one for one in value if isinstance(one, str) and one) if isinstance(value, list) else ()
