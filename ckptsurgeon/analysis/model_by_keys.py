"""Finds the family and sizes of a model from its keys and shapes."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from ..checkpoint.checkpoint import Checkpoint
from ..tensors.info import TensorInfo
from ..tensors.quantised.encoding import QuantisedTensors
from .family_by_keys import family_by_keys
from .model_summary import ModelSummary, summary_of_metadata, with_weights

__all__ = ["summary_of_file", "summary_of_keys"]

OTHERS = ("lora_", "hada_", "lokr_", "exp_avg")
"""Parts of the keys of adapters and of the states of optimizers, which are not networks."""
NORM = re.compile(r"(^|[._])(ln|norm|layernorm|layer_norm)|norm\d*\.", re.IGNORECASE)
INNER = re.compile(
    r"\bmixer\.|(^|[._])(added_)?([qk]|query|key)_?(norm|layernorm)|norm_(added_)?[qk]\b|\.linear\.|_a_layernorm"
)
"""Norms within a mixer, norms of queries and keys, and the linear layers of adaptive norms."""
LEVELS = re.compile(r"(^|[._])((input|output|down|up)_blocks|(encoder|decoder)\.(down|up))$")
"""Matches the lists of the levels and blocks of a U-Net or an autoencoder, which are no layers."""
NUMBER = re.compile(r"(?:^|\.)(\d+)\.")


def summary_of_file(checkpoint: Checkpoint, codes: QuantisedTensors) -> ModelSummary | None:
    """Return the summary of a model from the metadata of its file (GGUF, whisper.cpp), else from keys and shapes.

    ``codes`` are the quantised tensors of the checkpoint. The result is None if the keys are not those of a network,
    and for a single shard of a model, because it does not contain the other layers.
    """
    if checkpoint.elsewhere:
        return None
    found = summary_of_metadata(checkpoint.format, checkpoint.metadata)
    if found is None:
        found = summary_of_keys(checkpoint, (*checkpoint, *checkpoint.codes.names.values()))
    return None if found is None else with_weights(found, checkpoint, checkpoint.ties, codes)


def summary_of_keys(tensors: Mapping[str, TensorInfo], names: Iterable[str]) -> ModelSummary | None:
    """Return the family, number of layers and width of a model from its keys and shapes; None if it is no network.

    ``names`` are the names of the weights: the keys, and the names of the quantised weights. The number of layers is
    the length of the list of modules with the most tensors, or of two such lists: encoder and decoder. It is not known
    if these lists have at most half of the tensors, or for the levels of a U-Net.
    """
    text = "\n".join(tensors)  # one search in the text of all keys takes a tenth of the time of one in each key
    if any(mark in text for mark in OTHERS):
        return None
    name, lists = family_by_keys(names), _lists(tensors)
    main = max(lists, key=lambda path: (len(lists[path].keys), path), default="")
    sides = [main.replace("decoder", "encoder"), main.replace("encoder", "decoder")]
    chosen = [lists[path] for path in dict.fromkeys(sides) if path in lists]
    layers = [len(one.numbers) for one in chosen]
    keys = [key for one in chosen for key in one.keys]
    if 2 * len(keys) <= len(tensors) or any(map(LEVELS.search, sides)):
        return ModelSummary(name, is_by_keys=True) if name else None
    if not name and max(layers) < 2:
        return None
    decoders = layers[1] if len(layers) > 1 else None
    return ModelSummary(name, layers[0], decoders, _width(tensors, keys), is_by_keys=True)


class _Modules:
    """A list of modules: the numbers of its modules, and the keys of its tensors."""

    def __init__(self) -> None:
        self.numbers: set[str] = set()
        self.keys: list[str] = []


def _lists(keys: Iterable[str]) -> dict[str, _Modules]:
    """Return the lists of modules of a state dict, by their paths."""
    found: dict[str, _Modules] = defaultdict(_Modules)
    for key in keys:
        match = NUMBER.search(key)
        if match is not None and match.start():
            one = found[key[: match.start()]]
            one.numbers.add(match[1])
            one.keys.append(key)
    return dict(found)


def _width(tensors: Mapping[str, TensorInfo], keys: Iterable[str]) -> int | None:
    """Return the size that most norms of layers have; None if the layers have no norms.

    Norms inside a mixer such as attention, and norms of queries and keys, are left out, because they have other sizes.
    A size that embeddings have, too, is preferred.
    """
    vectors = [key for key in keys if len(tensors[key].shape) == 1]
    found = Counter(tensors[key].shape[0] for key in vectors if NORM.search(key) and not INNER.search(key))
    rows = {info.shape[-1] for key, info in tensors.items() if len(info.shape) == 2 and "embed" in key.lower()}
    return max(found, key=lambda size: (size in rows, found[size], size), default=None)
