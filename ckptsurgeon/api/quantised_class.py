"""Compares a quantised model with its transformers class: modules, vectors, and layers that are not quantised."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ..checkpoint.checkpoint import Checkpoint
from ..destinations.hf.ignored_keys import ignored_keys
from ..planning.operations.operation import parse_operations
from ..planning.operations.perform import perform
from ..planning.target import TargetSpec
from ..tensors.info import TensorInfo
from ..tensors.quantised.exclusions import PossibleExclusions
from ..tensors.quantised.modules import module_of
from ..tensors.quantised.parts import OF_CACHE
from ..tensors.quantised.plain_weights import by_kind
from ..tensors.quantised.unlike import MODELOPT, method_of
from ..util.note_kind import NoteKind
from ..util.notes import Note
from ..util.text import count, escape, listing, shape_text
from .layouts.mlx_form import is_of_mlx, named_by_transformers, without_other_forms

__all__ = ["ClassFinding", "Kind", "has_names_of", "kept_plain", "quantised_findings"]

Kind: TypeAlias = Literal["missing", "optional", "shape", "unused", "plain", "unbuilt", "refused"]
"""The kind of a finding.

"missing": tensors that the weights lack; "optional": the same, but many models lack these tensors. "shape": tensors
that have another shape than in the class. "unused": tensors that the class does not use. "plain": layers that are not
quantised but should be. "unbuilt": a class that cannot be built. "refused": a configuration class that refuses the
fields of config.json, although no newer version of transformers wrote this file.
"""


@dataclass(frozen=True)
class ClassFinding:
    """A difference between a model and its transformers class: its kind, and a text."""

    kind: Kind
    said: str

    @property
    def note(self) -> Note:
        """The text as a note; it is serious if transformers initialises tensors that are missing."""
        return Note(NoteKind.MISSING_TENSORS if self.kind in ("missing", "optional") else NoteKind.OTHER, self.said)


NOT_BY_CLASS = ("mxfp4", MODELOPT)
"""Methods whose weights are not in layers of the class Linear: mxfp4 is only used for experts."""
NAMES = {"awq": "AWQ", "gptq": "GPTQ"}
"""{``quant_method`` of config.json: name of the method in messages}, if they differ."""


def quantised_findings(checkpoint: Checkpoint, target: TargetSpec, name: str, settings: object) -> list[ClassFinding]:
    """Return findings on modules and vectors that a quantised checkpoint lacks, and on layers that should be quantised.

    ``target`` has the tensors of the class ``name`` without quantisation. ``settings`` is the ``quantization_config``
    of config.json. If ``has_names_of`` returns False, there are only findings on layers that should be quantised.
    """
    named = _by_class_name(checkpoint, target)
    known = _is_known(named, target)
    other = (
        (*_other_modules(checkpoint, named, target, name), *_plain_tensors(checkpoint, named, target, name))
        if known
        else ()
    )
    return [*other, *_left_plain(checkpoint, target, settings)]


def has_names_of(checkpoint: Checkpoint, target: TargetSpec) -> bool:
    """Return whether a quantised checkpoint has at least half of a class's modules; if not, no names are compared."""
    return _is_known(_by_class_name(checkpoint, target), target)


def _is_known(named: Mapping[str, str], target: TargetSpec) -> bool:
    every = {_module(key) for key in target.tensors}
    return len({_module(key) for key in named} & every) * 2 >= len(every)


def _by_class_name(checkpoint: Checkpoint, target: TargetSpec) -> dict[str, str]:
    """Return a dict that maps names of tensors in the class to their names in the checkpoint.

    The stored parts of a quantised weight count as one tensor, under the name of the weight. Scales of the KV cache are
    left out: attention modules have them only if they are quantised. In many models, the names in the checkpoint differ
    from those in the class; transformers renames and joins tensors when loading. A joined tensor, such as the experts
    of a layer, is mapped to itself.
    """
    coded = {one.name: one.shape or (1, 1) for one in checkpoint.codes.tensors}
    ends = tuple(OF_CACHE)
    tensors: Mapping[str, TensorInfo] = {
        key: info for key, info in checkpoint.items() if key not in checkpoint.codes.by_key and not key.endswith(ends)
    }
    tensors = named_by_transformers(
        {**tensors, **{name: TensorInfo("bfloat16", shape) for name, shape in coded.items()}}
    )
    names: Mapping[str, str] = {}
    with suppress(Exception):  # conversions fail if a header does not contain the shape of a quantised weight
        if target.recognise is not None:
            found = target.recognise(tensors)
            names = found.names
            tensors = perform([tensors], parse_operations(found.operations))[0].tensors
    return {names.get(key, key): key for key in tensors}


def _other_modules(
    checkpoint: Checkpoint, named: Mapping[str, str], target: TargetSpec, name: str
) -> Iterator[ClassFinding]:
    """Yield findings on modules of the class that the checkpoint lacks, and on modules that only the checkpoint has.

    Modules are compared instead of tensors, because quantised tensors have other names and shapes than the tensors of
    the class. All experts of a layer are one module.
    """
    own = {_module(key) for key in named}
    wanted = {_module(key) for key in target.tensors if key not in target.implied}
    every = {_module(key) for key in target.tensors}
    ignored = ignored_keys(name, target.cache_key)
    missing = [one for one in sorted(wanted - own) if not any(re.search(pattern, one) for pattern in ignored)]
    unused = [one for one in sorted(own - every) if not any(re.search(pattern, one) for pattern in ignored)]
    if is_of_mlx(checkpoint.metadata):
        lost = _sizes({key: one.shape for key, one in target.tensors.items()}, missing)
        missing, unused = without_other_forms(lost, _sizes(_shapes_in(checkpoint, named), unused))
    if missing:
        has = f"{escape(name)} has {count(len(missing), 'module')} that the weights lack"
        said = f"{has}: {listing(missing, 3, where='')}: transformers initialises what is missing"
        yield ClassFinding("missing", said)
    if unused:
        lacks = f"{escape(name)} does not use {count(len(unused), 'module')} of the weights"
        yield ClassFinding("unused", f"{lacks}: {listing(unused, 3, where='')}")


def _shapes_in(checkpoint: Checkpoint, named: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Return {name in the class: shape in the checkpoint} for all tensors in ``named``.

    The shape of a quantised tensor is that of its decoded weight.
    """
    coded = {one.name: one.shape or () for one in checkpoint.codes.tensors}
    own = {key: one.shape for key, one in checkpoint.items()}
    return {key: found for key, name in named.items() if (found := coded.get(name, own.get(name))) is not None}


def _sizes(shapes: Mapping[str, tuple[int, ...]], modules: Collection[str]) -> dict[str, int]:
    """Return the number of parameters of each of ``modules``; ``shapes`` has the shapes of all tensors."""
    found = dict.fromkeys(modules, 0)
    for key, shape in shapes.items():
        if (module := _module(key)) in found:
            found[module] += math.prod(shape)
    return found


def _plain_tensors(
    checkpoint: Checkpoint, named: Mapping[str, str], target: TargetSpec, name: str
) -> Iterator[ClassFinding]:
    """Yield findings on biases, norms and other vectors of a class that the checkpoint lacks, or whose shapes differ.

    No method quantises such tensors, so they must have the names and shapes of the class. Modules without a tensor in
    the checkpoint are not reported here: ``_other_modules`` reports them.
    """
    own, coded = {_module(key) for key in named}, {one.name for one in checkpoint.codes.tensors}
    ignored = ignored_keys(name, target.cache_key)
    vectors = {
        key: one.shape
        for key, one in target.tensors.items()
        if _is_vector(key, len(one.shape), coded) and _module(key) in own and key not in target.implied
        and not any(re.search(pattern, key) for pattern in ignored)
    }  # fmt: skip
    missing = [key for key in vectors if key not in named]
    if missing:
        has = f"{escape(name)} has {count(len(missing), 'tensor')} that the weights lack"
        said = f"{has}: {listing(missing, 3, where='')}: transformers initialises what is missing"
        yield ClassFinding("missing", said)
    for key, shape in vectors.items():
        plain = named.get(key, "")
        if plain in checkpoint and plain not in checkpoint.codes.by_key and checkpoint[plain].shape != shape:
            is_own = f"is {shape_text(checkpoint[plain].shape)}"
            has = f"but {escape(name)}, built from config.json, has {shape_text(shape)}"
            yield ClassFinding("shape", f"{escape(plain)} {is_own}, {has}")
            return


def _is_vector(key: str, dimensions: int, coded: Collection[str]) -> bool:
    """Return whether the tensor ``key`` of a class is of a kind that is never quantised: a vector, or stacked biases.

    ``coded`` are the names of the quantised weights. The stacked biases for a quantised weight ``NAME`` have the key
    ``NAME_bias``.
    """
    return dimensions == 1 or (key.endswith("_bias") and key.removesuffix("_bias") in coded)


def _left_plain(checkpoint: Checkpoint, target: TargetSpec, settings: object) -> Iterator[ClassFinding]:
    """Yield a finding on linear layers that are not quantised although the settings in config.json say that they are.

    Only layers in lists of layers that also contain quantised layers are reported: for example, an image encoder may
    have no quantised layer at all.
    """
    import torch

    if not isinstance(settings, dict) or not by_kind(settings) or method_of(settings) in NOT_BY_CLASS:
        return
    if target.build is None:
        return
    with suppress(Exception), torch.device("meta"):
        model: Any = target.build()
        kept = kept_plain(model)
        linear = [name for name, one in model.named_modules() if type(one) is torch.nn.Linear and name not in kept]
        beside = {_before_layer(one.name) for one in checkpoint.codes.tensors if one.codes} - {""}
        codes = checkpoint.codes.by_key
        quantised = [module_of(one.name) for one in checkpoint.codes.tensors if one.codes]
        exclusions = PossibleExclusions(settings, checkpoint, quantised)
        plain = [name for name in linear if f"{name}.weight" in checkpoint and f"{name}.weight" not in codes]
        own = [name for name in plain if _before_layer(name) in beside]
        found = [name for name in own if not exclusions.may_exclude(name)]
        if found:
            said = (
                f"{count(len(found), 'linear layer')} with weights that are not quantised: "
                f"{listing(found, 3, where='')}"
            )
            method = NAMES.get(str(settings["quant_method"]), escape(str(settings["quant_method"])))
            why = f"the settings of {method} do not exclude them, so transformers expects them to be quantised"
            if exclusions.unread or exclusions.is_spent:
                why = f"some expressions of the settings of {method}, which may exclude them, are not evaluated"
            yield ClassFinding("plain", f"{said}: {why}")


def kept_plain(model: Any) -> set[str]:
    """Return the names of the linear layers that transformers never quantises, because it keeps them in float32."""
    words = getattr(model, "_keep_in_fp32_modules", None) or ()
    return {name for name, _ in model.named_modules() for word in words if f".{word}." in f".{name}."}


def _before_layer(name: str) -> str:
    """Return the part of a module's name before its first number (``model.layers``); '' if it has no number."""
    found = re.match(r"(.*?)\.\d+\.", name)
    return found[1] if found else ""


def _module(key: str) -> str:
    """Return the module that a key belongs to: ``q_proj`` for ``q_proj.weight`` and ``q_proj.weight.absmax``.

    All experts of a layer count as one module: ``mlp.experts`` for ``mlp.experts.0.up_proj.weight``.
    """
    experts = re.match(r"(.*?\bexperts)\b", key)
    if experts is not None:
        return experts[1]
    return key.partition(".weight.")[0] if ".weight." in key else key.rpartition(".")[0]
