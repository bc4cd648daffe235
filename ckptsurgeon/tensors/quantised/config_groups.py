"""Finds quantised tensors that match no config group of compressed-tensors, or that have no activation scales.

Activation scales are stored if the settings say that they are static. The method "fp8" says so in
``activation_scheme``, compressed-tensors in ``input_activations``, and ModelOpt by ``quant_algo``. Loaders compute all
other activation scales. Scales of a KV cache may be missing: loaders then use 1.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from .contradictions import TYPES
from .encoding import QuantisedTensor, QuantisedTensors
from .expressions import expression_of
from .methods import family
from .modules import GENERAL, Modules, module_of
from .needed_parts import NeededPart
from .settings import Settings, modelopt_of

__all__ = ["static_activations", "target_expressions", "untargeted"]

_OF_INPUTS = re.compile(
    r"[._](?:input_(?:global_|activation_)?scale(?:_inv)?|act(?:ivation)?_scale|qscale_act|scale_input|input_amax)$"
)
"""Matches the endings of keys of scales for the inputs of a module."""
_LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_AROUND = re.compile(r"[A-Z]\w*(?:Block|Layer|MLP|Attention|Model|ForCausalLM|ForConditionalGeneration)$")
"""Matches names of classes of modules that have no weights themselves, only submodules with weights."""
_STATIC_ALGORITHMS = ("FP8", "NVFP4", "NVFP4_AWQ")
"""With these values of ``quant_algo``, ModelOpt stores a scale for the inputs of each quantised layer."""
_MOST = 200
"""If the config groups have more targets than this, targets are not compared with modules."""


def static_activations(
    codes: QuantisedTensors, tensors: Iterable[str], settings: Settings, elsewhere: Collection[str]
) -> Iterator[NeededPart]:
    """Yield, for each setting that makes activation scales static, the quantised tensors that lack these scales.

    If some quantised tensors have activation scales, a tensor without them is yielded only if the same module of
    another layer has them: some kinds of modules may need none. In a model of ModelOpt, all may lack them: loaders can
    use its weights alone.
    """
    asked = _said_static(codes, settings)
    if not asked:
        return
    having = {_OF_INPUTS.sub("", key) for keys in (tensors, elsewhere) for key in keys if _OF_INPUTS.search(key)}
    forms = {_LAYER_NUMBER.sub("#", module) for module in having}
    for said, names in asked.items():
        lacking = [name for name in names if not having.intersection((name, module_of(name)))]
        if having:
            lacking = [name for name in lacking if _LAYER_NUMBER.sub("#", module_of(name)) in forms]
        if lacking and (having or not modelopt_of(settings)):
            yield NeededPart(said, "scales of activations", tuple(lacking), is_all=not having)


def _said_static(codes: QuantisedTensors, settings: Settings) -> dict[str, list[str]]:
    """Return {setting: quantised tensors whose activation scales are static according to it}."""
    modules, said, found = Modules(settings), dict[int, str](), dict[str, list[str]]()
    is_asking = settings.get("quant_method") in ("fp8", "compressed-tensors") or bool(modelopt_of(settings))
    asks = is_asking and modules.is_exact
    for one in codes.tensors if asks and (modules.has_sections or _static(modules.settings(GENERAL))) else ():
        place = modules.place(module_of(one.name))
        if place not in said:
            said[place] = _static(modules.settings(place))
        if said[place] and _is_layer(one, modules):
            found.setdefault(said[place], []).append(one.name)
    return found


def _static(settings: Settings) -> str:
    """Return the setting that says that activation scales are stored; "" if there is none.

    For compressed-tensors, all config groups must say so.
    """
    if modelopt := modelopt_of(settings):
        algorithm = modelopt.get("quant_algo")
        return f"quant_algo {algorithm}" if algorithm in _STATIC_ALGORITHMS else ""
    if settings.get("quant_method") == "fp8":
        return "activation_scheme static" if settings.get("activation_scheme") == "static" else ""
    inputs = [group.get("input_activations") for group in _groups(settings)]
    said = [one.get("dynamic") if isinstance(one, dict) else True for one in inputs]
    if not said or any(one is not False and one != "local" for one in said):
        return ""
    return f"dynamic {str(said[0]).lower()} of input_activations"


def _groups(settings: Settings) -> list[Mapping[str, Any]]:
    """Return the config groups of compressed-tensors that have settings for weights."""
    groups = settings.get("config_groups")
    found = [one for one in groups.values() if isinstance(one, dict)] if isinstance(groups, dict) else []
    return [one for one in found if isinstance(one.get("weights"), dict)]


def _is_layer(one: QuantisedTensor, modules: Modules) -> bool:
    """Return whether a quantised tensor is the weight of a layer that the settings quantise."""
    is_known = bool(one.codes) and family(one.method) in TYPES
    return is_known and "embed" not in one.name and not modules.left_out(module_of(one.name))


def untargeted(codes: QuantisedTensors, settings: Settings) -> list[str]:
    """Return the quantised tensors that no target in compressed-tensors' config groups matches.

    The list is empty if a target is a class that the modules could have, or if a target matches no module at all: then
    the targets may be names from another version of the model.
    """
    expressions = target_expressions(settings) if settings.get("quant_method") == "compressed-tensors" else None
    if expressions is None:
        return []
    modules = Modules(settings)
    names = [one.name for one in codes.tensors if _is_layer(one, modules)]
    found = {name: [modules.meets(one, module_of(name)) for one in expressions] for name in names}
    if modules.is_spent or not all(map(any, zip(*found.values(), strict=True))):
        return []
    return [name for name, by in found.items() if not any(by)]


def target_expressions(settings: Settings) -> list[re.Pattern[str]] | None:
    """Return the targets of all config groups as regular expressions for names of modules, or None.

    The result is None if a group has no targets, if a target may be a class of layers, or if a regular expression is
    invalid or could take long to match.
    """
    given = [group.get("targets") for group in _groups(settings)]
    lists = [one for one in given if isinstance(one, list) and one]
    if not lists or len(lists) < len(given) or sum(map(len, lists)) > _MOST:
        return None
    targets = [one for each in lists for one in each if not (isinstance(one, str) and _AROUND.match(one))]
    found = [_named(one) for one in targets]
    return None if None in found else [one for one in found if one is not None]


def _named(target: object) -> re.Pattern[str] | None:
    if not isinstance(target, str) or target[:1].isupper():
        return None
    return expression_of(target[3:] if target[:3] == "re:" else re.escape(target) + "$")
