"""Compares a model's folder with the class of transformers that its config.json names: keys and shapes."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..checkpoint.checkpoint import Checkpoint
from ..destinations._document import read_document
from ..destinations.hf.files import ADAPTER, CONFIG
from ..destinations.transformers import TOOLKIT as TRANSFORMERS
from ..errors import CheckpointError, PlanError
from ..planning.plan.plan import Plan
from ..planning.target import TargetSpec
from ..storage.read.uri import scheme_of
from ..tensors.encodings._modules import Modules
from ..util.text import count, escape, listing, shape_text
from .model_folder.folder import ModelFolder, model_folder
from .transplant.transplant import transplant

__all__ = ["class_notes", "comparison_notes"]

QUANTISATION = "quantization_config"
BY_MODULE = ("awq", "gptq")
"""Methods that transformers applies to every linear layer that the settings do not leave out."""
PACKAGES = ("torch", "transformers")


def class_notes(checkpoint: Checkpoint) -> list[str]:
    """Return notes on keys and shapes of a model that are not those of the class in its config.json.

    The class is built without values, as ``transplant`` builds a destination. There are no notes if ``not_compared``
    gives a reason.
    """
    folder = model_folder(checkpoint)
    if not_compared(checkpoint, folder):
        return []
    path, is_quantised = os.path.join(folder.path, CONFIG), bool(checkpoint.codes.tensors)
    try:
        if is_quantised or QUANTISATION in folder.config:
            plain = _plain_class(path)
            other = _other_modules(checkpoint, plain, _architecture(folder))
            return [*other, *_left_plain(checkpoint, plain, folder.config.get(QUANTISATION))]
        plan = transplant(checkpoint, path, on_mismatch="init")
    except CheckpointError as error:
        if isinstance(error, PlanError) and error.message.startswith("nothing would be loaded"):
            none = f"the weights have no key of {escape(_architecture(folder))}: transformers initialises all of it"
            return [f"{none}. {error.hint.partition(' Rename')[0]}".rstrip(". ")]
        said = error.said.removeprefix("config.json: ").removesuffix(".")
        return [f"the model that config.json describes cannot be built: {said}"]
    return list(_differences(plan, checkpoint, _architecture(folder)))


def comparison_notes(checkpoint: Checkpoint) -> list[str]:
    """Return the ``class_notes``, or one that says why there are none."""
    folder = model_folder(checkpoint)
    why = not_compared(checkpoint, folder)
    if why:
        return [f"keys and shapes are not compared with those of a class: {why}"]
    found = class_notes(checkpoint)
    what = "modules" if checkpoint.codes.tensors else "keys and shapes"
    return found or [f"{what} are those of {escape(_architecture(folder))} in transformers"]


def not_compared(checkpoint: Checkpoint, folder: ModelFolder) -> str:
    """Return why a model cannot be compared with its class; '' if it can."""
    names, config = {one.name for one in folder.files}, folder.config
    lacking = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if ADAPTER in names:
        return "this is an adapter, not a whole model"
    if CONFIG not in names:
        return "there is no config.json beside the weights"
    if checkpoint.elsewhere:
        return "this is one of several shards"
    if scheme_of(folder.path):
        return "the folder is not a local one"
    if "auto_map" in config:
        return "config.json names code of its own (auto_map), which is not run"
    if not isinstance(config.get("model_type"), str) or not _architecture(folder):
        return "config.json does not name one class (model_type, architectures)"
    return f"{lacking[0]} is not installed" if lacking else ""


def _architecture(folder: ModelFolder) -> str:
    """Return the only class that a configuration names, else ''."""
    names = folder.config.get("architectures")
    return names[0] if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) else ""


def _differences(plan: Plan, checkpoint: Checkpoint, name: str) -> Iterator[str]:
    ignored = _ignored(name)
    name = escape(name)
    missing = [step.key for step in plan.steps if step.reason == "missing" and not step.tied_to]
    missing = [key for key in missing if not any(re.search(pattern, key) for pattern in ignored)]
    unused = sorted(key for _, key in plan.unexpected)
    unused = [key for key in unused if not any(re.search(pattern, key) for pattern in ignored)]
    others = [step for step in plan.steps if step.reason == "mismatch" and not step.tied_to]
    if missing:
        has = f"{name} has {count(len(missing), 'tensor')} that the weights lack"
        yield f"{has}: {listing(missing, 3, where='')}: transformers initialises what is missing"
    if others:
        one = others[0]
        own = f"is {shape_text(checkpoint[one.key].shape)}" if one.key in checkpoint else "has another shape"
        rest = f"; the shapes of {count(len(others) - 1, 'other')} differ too" if others[1:] else ""
        yield f"{escape(one.key)} {own}, but {name}, built from config.json, has {shape_text(one.shape)}{rest}"
    if unused:
        yield f"{name} has no place for {count(len(unused), 'tensor')}: {listing(unused, 3, where='')}: it ignores them"


def _plain_class(path: str) -> TargetSpec:
    """Return the tensors of the class in a config.json without its quantisation."""
    document = read_document(path)
    content = {name: value for name, value in document.content.items() if name != QUANTISATION}
    return TRANSFORMERS.load(replace(document, content=content))


def _other_modules(checkpoint: Checkpoint, target: TargetSpec, name: str) -> Iterator[str]:
    """Yield notes on modules that quantised weights or the class lack: codes have other names and shapes than numbers.

    Experts count as one module. There are no notes if the names are too different to be compared.
    """
    own = {_module(key) for key in checkpoint}
    wanted = {_module(key) for key in target.tensors if key not in target.implied}
    every = {_module(key) for key in target.tensors}
    if len(own & every) * 2 < len(every):
        return
    ignored = _ignored(name)
    missing = [one for one in sorted(wanted - own) if not any(re.search(pattern, one) for pattern in ignored)]
    unused = [one for one in sorted(own - every) if not any(re.search(pattern, one) for pattern in ignored)]
    if missing:
        has = f"{escape(name)} has {count(len(missing), 'module')} that the weights lack"
        yield f"{has}: {listing(missing, 3, where='')}: transformers initialises what is missing"
    if unused:
        has = f"{escape(name)} has no place for {count(len(unused), 'module')}"
        yield f"{has}: {listing(unused, 3, where='')}: it ignores them"


def _left_plain(checkpoint: Checkpoint, target: TargetSpec, settings: object) -> Iterator[str]:
    """Yield a note on linear layers with plain weights that AWQ or GPTQ quantises, by the settings in config.json.

    Only modules beside quantised ones are compared: a tower for images may be left plain as a whole.
    """
    import torch

    if not isinstance(settings, dict) or settings.get("quant_method") not in BY_MODULE or target.build is None:
        return
    with suppress(Exception), torch.device("meta"):
        model: Any = target.build()
        linear = [name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)]
        beside = {_before_layer(key) for key in checkpoint if key.endswith(".qweight")} - {""}
        modules = Modules(settings)
        own = [name for name in linear if f"{name}.weight" in checkpoint and _before_layer(name) in beside]
        found = [name for name in own if not modules.left_out(name)]
        if found:
            plain = f"{count(len(found), 'linear layer')} with plain weights: {listing(found, 3, where='')}"
            method = str(settings["quant_method"]).upper()
            yield f"{plain}: the settings of {method} do not leave them out, so that transformers looks for codes there"


def _before_layer(name: str) -> str:
    """Return what is before the number of a layer; '' if there is none."""
    found = re.match(r"(.*?)\.\d+\.", name)
    return found[1] if found else ""


def _module(key: str) -> str:
    """Return the module of a tensor or of a part of its codes (``q_proj.weight.absmax`` of bitsandbytes)."""
    experts = re.match(r"(.*?\bexperts)\b", key)
    if experts is not None:
        return experts[1]
    return key.partition(".weight.")[0] if ".weight." in key else key.rpartition(".")[0]


def _ignored(name: str) -> list[str]:
    """Return patterns of keys that a class of transformers neither misses nor minds."""
    import transformers

    made = getattr(transformers, name, None)
    fields = ("_keys_to_ignore_on_load_missing", "_keys_to_ignore_on_load_unexpected")
    own = [pattern for field in fields for pattern in getattr(made, field, None) or ()]
    return [*own, r"rotary_emb\.inv_freq$"]
