"""Finds tensors of weight norms that have torch's older names in one model, and its newer names in another."""

from __future__ import annotations

from collections.abc import Collection, Iterator

__all__ = ["weight_norm_names"]

_FIRST = ".original0"


Names = tuple[str, str]
"""The keys of the norm and of the direction of a weight."""


def weight_norm_names(keys: Collection[str], wanted: Collection[str]) -> Iterator[tuple[Names, Names]]:
    """Yield the names in ``keys`` and in ``wanted`` of each weight norm that has other names there.

    ``torch.nn.utils.weight_norm`` names the norm and the direction of a weight ``weight_g`` and ``weight_v``;
    ``torch.nn.utils.parametrizations.weight_norm`` names the same values ``parametrizations.weight.original0`` and
    ``original1``, and its hook makes ``load_state_dict`` accept the older names.
    """
    for older, newer in dict.fromkeys(_pairs(keys, wanted)):
        for here, there in ((older, newer), (newer, older)):
            if all(one in keys for one in here) and all(one in wanted for one in there):
                yield here, there


def _pairs(*models: Collection[str]) -> Iterator[tuple[Names, Names]]:
    """Yield the older and the newer names of the norm and the direction of each weight that has the newer names."""
    for key in (key for keys in models for key in keys if key.endswith(_FIRST)):
        path = key.removesuffix(_FIRST)
        module, _, weight = path.rpartition(".")
        if f".{module}".endswith(".parametrizations"):
            older = module.removesuffix("parametrizations") + weight
            yield (f"{older}_g", f"{older}_v"), (key, f"{path}.original1")
