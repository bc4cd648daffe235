"""Makes the modules of an adapter from the keys of their tensors: kind, factors and scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ...errors import ConfigError, FormatError
from ...tensors.info import TensorInfo
from ...util.text import count, escape, shape_text
from .adapter import AdapterModule
from .composed import composed_parts
from .config import AdapterConfig
from .kinds import MERGED
from .names import MID, KeyParts
from .rotated import ROTATED, rotation_kind
from .tucker import LOCON

__all__ = ["AdapterFile", "ModuleKeys", "Scales", "assumed_notes", "check_halves", "module_of"]

Scales = Callable[[str], float]
"""A function that returns the value of a tensor with one element, by the tensor's key."""


@dataclass(frozen=True)
class AdapterFile:
    """The headers of an adapter's file, its configurations, and ``number``, a function that reads an alpha.

    All fields except ``kernels`` are the arguments of ``read_adapter``. If ``kernels`` is true, a LoHa or LoKr may
    change the kernels of a convolution.
    """

    tensors: Mapping[str, TensorInfo]
    config: AdapterConfig | None
    name: str
    number: Scales
    metadata: Mapping[str, AdapterConfig]
    kernels: bool = False


@dataclass
class ModuleKeys:
    """The keys of an adapter's tensors for one module, by the role of the tensor: A, B, bias, magnitude or alpha.

    ``part`` is the ``KeyParts`` of one of the factors, A or B, or of a tensor of a LoHa, LoKr or OFT.
    """

    keys: dict[str, str] = field(default_factory=dict)
    part: KeyParts | None = None

    @property
    def is_composed(self) -> bool:
        """Whether the module is a LoHa, LoKr or OFT."""
        return any(role.startswith(MERGED) for role in self.keys)


def check_halves(found: Iterable[ModuleKeys], name: str) -> None:
    """Raise FormatError for a module with one of the factors A and B of a LoRA, but not the other."""
    for one in found:
        if one.is_composed:
            continue
        lacking = [side for side in ("A", "B") if side not in one.keys]
        if lacking:
            have = next(iter(one.keys.values()))
            raise FormatError(
                f"{escape(name)} has {escape(have)}, but no factor {' and '.join(lacking)} for the same module.",
                rule="half an adapter",
            )


def module_of(one: ModuleKeys, file: AdapterFile) -> AdapterModule:
    """Return a module of an adapter; raises FormatError or ConfigError if its tensors or its rank do not fit."""
    keys, part = one.keys, one.part
    assert part is not None  # ensured by check_halves
    if ROTATED in keys:
        return _rotated(keys, part, file)
    if one.is_composed:
        return _composed(keys, part, file)
    if MID in keys:
        return _with_core(keys, part, file)
    return _low_rank(keys, part, file)


def _low_rank(keys: Mapping[str, str], part: KeyParts, file: AdapterFile) -> AdapterModule:
    """Return a module of a LoRA.

    Raises FormatError if the factors do not fit each other, and ConfigError if the configuration does not fit them.
    """
    tensors, config, name = file.tensors, file.config, file.name
    a, b = tensors[keys["A"]], tensors[keys["B"]]
    rank = a.shape[0] if a.shape else 0
    if not rank:
        raise FormatError(f"the factor {escape(keys['A'])} of {escape(name)} has a rank of zero.", rule="rank")
    _check_grouped(b, rank, part.module, name)
    if len(b.shape) < 2 or b.shape[1] != rank:
        raise FormatError(
            f"the factor {escape(keys['A'])} of {escape(name)} has the shape {a.shape}, {escape(keys['B'])} has "
            f"{b.shape}: their ranks differ.",
            rule="rank",
        )
    scale = _scale(keys, part, rank, file)
    if config is not None and config.dora != ("magnitude" in keys):
        has = "has" if "magnitude" in keys else "lacks"
        raise ConfigError(
            f"the configuration of {escape(name)} has use_dora {str(config.dora).lower()}, but {escape(part.module)} "
            f"{has} magnitudes.",
            hint="Put the adapter_config.json that was saved with these weights into their folder.",
        )
    return AdapterModule(
        part.module, keys["A"], keys["B"], part.times * scale, part.embedding, keys.get("bias", ""),
        keys.get("magnitude", ""), part.joined, part.component,
    )  # fmt: skip


def _composed(keys: Mapping[str, str], part: KeyParts, file: AdapterFile) -> AdapterModule:
    """Return a module of a LoHa or LoKr."""
    kind, own, rank = composed_parts(keys, file.tensors, file.name, kernels=file.kernels)
    return AdapterModule(
        part.module, own[0], own[1], _scale(keys, part, rank, file),
        magnitude=keys.get("magnitude", ""), joined=part.joined, component=part.component, kind=kind,
        more=tuple(own[2:]),
    )  # fmt: skip


def _with_core(keys: Mapping[str, str], part: KeyParts, file: AdapterFile) -> AdapterModule:
    """Return a module of a LoCon with a Tucker decomposition: a core between B and A.

    Raises FormatError if the tensors do not fit each other.
    """
    own = [keys[MID], keys["B"], keys["A"]]
    tensors, name = file.tensors, file.name
    core, up, down = (tensors[key].shape for key in own)
    if len(core) < 3 or not all(core) or core[:1] != up[1:2] or core[1:2] != down[:1]:
        given = ", ".join(f"{escape(key)} {shape_text(tensors[key].shape)}" for key in own)
        raise FormatError(f"the factors of a module of {escape(name)} do not fit each other: {given}.", rule="rank")
    scale = _scale(keys, part, core[0], file)
    return AdapterModule(
        part.module, own[0], own[1], part.times * scale, magnitude=keys.get("magnitude", ""), joined=part.joined,
        component=part.component, kind=LOCON, more=(own[2],),
    )  # fmt: skip


def _rotated(keys: Mapping[str, str], part: KeyParts, file: AdapterFile) -> AdapterModule:
    """Return a module of an OFT, whose scale is always 1.

    Raises FormatError if the module also has other tensors, and ConfigError if the configuration is not of an OFT.
    """
    config, name = file.config, file.name
    other = next((key for role, key in keys.items() if role != ROTATED), "")
    if other:
        raise FormatError(
            f"{escape(name)} has {escape(other)} and {escape(keys[ROTATED])} for the same module: an OFT has only "
            "the second of these tensors.",
            rule="two adapters",
        )
    settings = config.data if config is not None else {}
    terms = settings.get("num_cayley_neumann_terms") if settings.get("use_cayley_neumann") else 0
    if type(terms) is not int:
        raise ConfigError(
            f"{escape(name)} has {escape(keys[ROTATED])}, but its adapter_config.json is not of an OFT adapter.",
            hint="Put the adapter_config.json that was saved with these weights into their folder.",
        )
    return AdapterModule(part.module, keys[ROTATED], "", 1.0, part.embedding, kind=rotation_kind(terms))


def _check_grouped(b: TensorInfo, rank: int, module: str, name: str) -> None:
    """Raise ConfigError for the LoRA of a convolution with groups.

    Its factor B has groups, too: its second dimension is the rank divided by the number of groups
    (``_ConvNd.update_layer`` of https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/lora/layer.py).
    """
    is_part = len(b.shape) > 2 and 0 < b.shape[1] < rank and rank % b.shape[1] == 0
    if is_part and all(size == 1 for size in b.shape[2:]):
        raise ConfigError(
            f"{escape(module)} of {escape(name)} is the LoRA of a convolution with {rank // b.shape[1]} groups, which "
            "ckpt cannot use; PEFT does not merge it either.",
            hint="Load the adapter with PEFT, without merging it; or leave the module out with ckpt filter --exclude.",
        )


def _scale(keys: Mapping[str, str], part: KeyParts, rank: int, file: AdapterFile) -> float:
    """Return the scale of a module: its alpha in the file divided by ``rank``, or the scale in the configuration.

    The scale is 1 if the file has an alpha but no matrix is factorised (``rank`` 0), and if there is neither an alpha
    nor a configuration. Raises ConfigError if the configuration has another rank.
    """
    config = file.config
    configured = config if config is not None else file.metadata.get(part.component)
    module = part.module if config is not None else part.module.removeprefix(f"{part.component}.")
    if configured is None or "alpha" in keys:
        return file.number(keys["alpha"]) / rank if "alpha" in keys and rank else 1.0
    if rank and configured.rank_of(module) != rank:
        raise _other_rank(configured.rank_of(module), part.module, rank, file.name)
    return configured.scale_of(module)


def assumed_notes(found: Iterable[ModuleKeys], metadata: Mapping[str, AdapterConfig]) -> Iterator[str]:
    """Yield a note on modules of LoHa, LoKr, or LoCon with a core, that have a rank, but no alpha."""
    assumed = [
        one
        for one in found
        if (MID in one.keys or (one.is_composed and any(role.endswith("_a") for role in one.keys)))
        and "alpha" not in one.keys
        and (one.part is None or one.part.component not in metadata)
    ]
    if assumed:
        yield f"no alpha: scale 1 is assumed for {count(len(assumed), 'module')}"


def _other_rank(configured: int, module: str, rank: int, name: str) -> ConfigError:
    return ConfigError(
        f"the configuration of {escape(name)} has the rank {configured} for {escape(module)}, but its factors have "
        f"the rank {rank}.",
        hint="Put the adapter_config.json that was saved with these weights into their folder.",
    )
