"""Tells the linear layers of a model from its other matrices: by its class in transformers, or else by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...errors import CheckpointError
from ..class_check import class_without_codes
from ..model_folder.folder import ModelFolder
from ..quantised_class import kept_plain

__all__ = ["EMBEDDING", "HEAD", "ROUTER", "LinearLayers", "linear_layers"]

EMBEDDING, HEAD, ROUTER = "embedding", "output layer", "router of experts"

_HEADS = {
    "lm_head", "embed_out", "output", "output_projection", "proj_out", "score", "classifier", "qa_outputs", "head",
    "ctc", "ctc_head", "cls", "decoder_output",
}  # fmt: skip
_ROUTERS = re.compile(r"^(?:gate|router|wg|shared_expert_gate|moe_gate|gate_network|switch)$")
_EMBEDDINGS = re.compile(r"embed|^(?:wte|wpe|shared|relative_attention_bias|rotary|pos_emb|position_ids)$")
_EXPERT = re.compile(r"\.experts\.\d+\.")
_LAYER = re.compile(r"\.\d+\.")
_TURNED = {"c_attn", "c_fc", "c_proj", "q_attn"}
"""Layers of GPT-2, whose weights are (in, out)."""
_GPT2 = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")


@dataclass(frozen=True)
class LinearLayers:
    """What each matrix of a model is: ``why`` has, by key, why a matrix is not the weight of a linear layer.

    ``known_by`` is the class of transformers that says so, '' if names do. ``absent`` are linear layers of the class
    whose weights the checkpoint lacks, as a tied output layer.
    """

    why: Mapping[str, str]
    known_by: str = ""
    absent: tuple[str, ...] = ()


def linear_layers(checkpoint: Checkpoint, folder: ModelFolder) -> LinearLayers:
    """Return which matrices of a model are weights of linear layers, and what the others are."""
    keys = [key for key, info in checkpoint.items() if len(info.shape) == 2]
    with suppress(CheckpointError):
        found = class_without_codes(checkpoint, folder)
        if found is not None:
            target, name = found
            facts = _Facts.of(target.build)
            named: Mapping[str, str] = {}
            with suppress(Exception):  # keys that no class has are told by their names
                named = target.recognise(dict(checkpoint)).names if target.recognise is not None else {}
            return _by_class(keys, named, facts, name)
    turned = folder.config.get("model_type") in _GPT2
    return LinearLayers({key: _by_name(key, turned=turned) for key in keys}, absent=_tied_head(checkpoint, folder))


@dataclass
class _Facts:
    """The modules of a model that was built without values, by name."""

    kinds: dict[str, str] = field(default_factory=dict)
    heads: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)

    @staticmethod
    def of(build: Callable[[], object] | None) -> _Facts:
        """Return the facts of the model that ``build`` makes, without memory for its values; none if it cannot."""
        import torch

        facts, model, output = _Facts(), None, None
        with suppress(Exception), torch.device("meta"):
            made: Any = build() if build is not None else None
            model = made
            output = made.get_output_embeddings()
        if model is None:
            return facts
        for name, one in model.named_modules():
            linear = type(one) is torch.nn.Linear
            embedding = isinstance(one, torch.nn.Embedding)
            facts.kinds[name] = "" if linear else EMBEDDING if embedding else type(one).__name__
            if output is not None and one is output:
                facts.heads.add(name)
        facts.kept = kept_plain(model)
        return facts


def _by_class(keys: Iterable[str], named: Mapping[str, str], facts: _Facts, name: str) -> LinearLayers:
    why: dict[str, str] = {}
    present: set[str] = set()
    for key in keys:
        module, _, leaf = named.get(key, key).rpartition(".")
        present.add(module)
        kind = facts.kinds.get(module)
        if leaf != "weight" or kind is None or _EXPERT.search(key):
            why[key] = _by_name(key)
        elif kind == EMBEDDING:
            why[key] = EMBEDDING
        elif module in facts.heads:
            why[key] = HEAD
        elif module in facts.kept:
            why[key] = "kept in float32 by its class"
        else:
            own = _by_name(key)
            why[key] = own if own in (ROUTER, HEAD) else f"{kind} is not Linear" if kind else ""
    absent = tuple(sorted(facts.heads - present))
    return LinearLayers(why, name, absent)


def _by_name(key: str, *, turned: bool = False) -> str:
    """Return what a matrix is, by its key, if it is not the weight of a linear layer; '' if it is."""
    *path, leaf = key.split(".")
    layer = path[-1] if path else ""
    if leaf != "weight":
        return "not the weight of a layer"
    if any(_EMBEDDINGS.search(part) for part in path[-2:]) and layer not in _HEADS:
        return EMBEDDING
    if layer in _HEADS and not _LAYER.search(key):
        return HEAD
    if _ROUTERS.search(layer):
        return ROUTER
    if "norm" in layer.lower():
        return "norm"
    if turned and layer in _TURNED:
        return "Conv1D is not Linear"
    return ""


def _tied_head(checkpoint: Checkpoint, folder: ModelFolder) -> tuple[str, ...]:
    """Return the usual name of an output layer if the checkpoint has none of its own."""
    has_one = any(key.split(".")[-2:-1] == ["lm_head"] for key in checkpoint)
    return () if has_one or not folder.config else ("lm_head",)
