"""Converts a checkpoint to the layout that ``--layout`` names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.wrappers import DDP, unwrap
from ...errors import ConfigError, PlanError
from ...planning.layouts.families.parakeet import FAMILY as PARAKEET
from ...planning.layouts.families.parakeet import NOT_ESPNET
from ...planning.layouts.layout import Family, Layout
from ...planning.layouts.nearest import alone, nearest, prefix_of_all
from ...planning.layouts.parts.mlx import ALIKE
from ...planning.layouts.recognise import families, recognised
from ...planning.llama_cpp.names import in_llama_cpp
from ...tensors.quantised.settings import quantisation_of
from ...util.text import escape, listing
from ..inputs.operations import OperatedCheckpoint
from ..model_folder.folder import ModelFolder
from .mlx_form import FORMAT, MLX, left_of_mlx
from .named_layout import AUTO, GGUF, TRANSFORMERS, NamedLayout, settings_of
from .wrapped import without_wrappers

if TYPE_CHECKING:
    from ...planning.layouts.conversion import LayoutConversion

__all__ = ["changed_layout", "layout_named", "said_of"]

DESCRIBED = {TRANSFORMERS, "stacked", MLX}
"""Layouts with the same config.json: those of transformers' files and networks in memory, and that of MLX."""


def layout_named(name: str, source: OperatedCheckpoint, folder: ModelFolder, heads: str = "") -> NamedLayout:
    """Return the conversion of a checkpoint to the layout ``name``.

    ``heads`` is the value of ``--heads``, '' if it is not given. Raises PlanError if the layout of the checkpoint is
    not known, or cannot be converted to ``name``; ConfigError if ``heads`` has no effect.
    """
    checkpoint = source.checkpoint
    if name in (AUTO, GGUF) or (name == TRANSFORMERS and _is_llama_cpp(checkpoint)):
        from ..gguf.llama_cpp_layout import llama_cpp_layout

        if heads:
            raise ConfigError(
                "--heads has no effect on a conversion to or from llama.cpp's layout, which takes the numbers of heads "
                "from config.json or from the metadata.",
                hint="Leave it out.",
            )
        return llama_cpp_layout(name, checkpoint, folder)
    plain = without_wrappers(source)
    found = changed_layout(name, plain.operated, settings_of(checkpoint, folder.config, heads))
    change = replace(found.change, operations=(*plain.rows, *found.change.operations))
    notes = (said_of(found), *plain.notes, *found.notes)
    metadata = {FORMAT: MLX} if found.target.name == MLX else None
    return NamedLayout(
        change, metadata, notes, without=left_of_mlx(checkpoint.metadata),
        derived=found.derived, is_described=_is_described(found, folder),
    )  # fmt: skip


def _is_described(found: LayoutConversion, folder: ModelFolder) -> bool:
    """Return whether the folder's config.json describes the network both before and after a conversion.

    This is true for the layouts of transformers and MLX if config.json has no quantisation settings: these may name
    the modules of one of the layouts.
    """
    names = {found.source.name, found.target.name}
    return names <= DESCRIBED and not quantisation_of(folder.config)


def _is_llama_cpp(checkpoint: Checkpoint) -> bool:
    if checkpoint.header.stored:
        return True
    return in_llama_cpp(checkpoint) and not recognised(checkpoint) and nearest(checkpoint) is None


def changed_layout(name: str, operated: OperatedCheckpoint, config: Mapping[str, Any]) -> LayoutConversion:
    """Return the conversion of a checkpoint to the layout ``name`` of its family.

    ``config`` has the fields of its configuration. Raises PlanError if its layout is not known, if several layouts fit,
    or if its family has no layout ``name``. Also raises the errors of ``conversion``.
    """
    family, source = _family(name, operated.checkpoint)
    _check_written(family, name, source, operated.checkpoint)
    from ...planning.layouts.conversion import conversion

    return conversion(family, source, family.named(name), operated.derived, config, operated.checkpoint.path)


def _check_written(family: Family, name: str, source: Layout, checkpoint: Checkpoint) -> None:
    """Raise PlanError if ckpt only reads the layout ``name``, and ``source`` is another layout."""
    targets = family.named(name)
    if source.name != name and all(one.only_read for one in targets):
        raise PlanError(
            f"the tensors of {escape(checkpoint.path)} ({family.name}, layout {source.name}) cannot be converted to "
            f"the layout {name}: ckpt reads the layout of {targets[0].library}, and does not write it.",
            hint=f"Convert the model with {targets[0].library.partition(',')[0]} itself.",
        )


def said_of(found: LayoutConversion) -> str:
    """Return the note that says from which layout to which layout the tensors are converted."""
    if found.source is found.target:
        return f"the tensors already have the layout {found.target.name}"
    return f"the tensors are converted from the layout of {found.source.library} to that of {found.target.library}"


def _family(name: str, checkpoint: Checkpoint) -> tuple[Family, Layout]:
    found = recognised(checkpoint)
    known = [(family, layout) for family, layout in found if family.named(name)]
    if known and len({family.name for family, _ in known}) == 1:
        return known[0]
    if known:
        both = listing([f"{layout.name} of {family.name}" for family, layout in known], where="")
        raise PlanError(
            f"the tensors of {escape(checkpoint.path)} fit several layouts: {both}.",
            hint="Rename the tensors with --map and --operations instead.",
        )
    if found:
        family, layout = found[0]
        others = listing(sorted({one.name for one in family.layouts} - {layout.name}), where="")
        raise PlanError(
            f"the tensors of {escape(checkpoint.path)} ({family.name}, layout {layout.name}) cannot be converted to "
            f"the layout {name}: the family {family.name} has no such layout.",
            hint=_alike(name, family) or _of_espnet(name, family) or f"Use one of the layouts {others}.",
        )
    if only := alone(checkpoint):
        raise PlanError(
            f"{escape(checkpoint.path)} cannot be converted to the layout {name}: {only}.",
            hint="If its tensors fit another network, rename them with --map and --operations.",
        )
    near = nearest(checkpoint)
    if near is not None:
        raise PlanError(
            f"the layout of {escape(checkpoint.path)} is not known: {near.text}.",
            hint=_wrapped(checkpoint) or "Complete the model, or rename these tensors first, with ckpt rename --map.",
            details=[*near.lacking, *near.odd],
        )
    raise PlanError(
        f"the layout of {escape(checkpoint.path)} is not known.",
        hint=_wrapped(checkpoint)
        or _prefixed(checkpoint)
        or _of_llama_cpp(name, checkpoint)
        or f"The known families are {listing([one.name for one in families()], 40, where='')} (ckpt layouts); "
        "convert other networks with rules and --operations.",
    )


def _of_espnet(name: str, family: Family) -> str:
    """Return the hint for a conformer of NeMo that should get ESPnet's names; else ''."""
    return f"{NOT_ESPNET}." if family.name == PARAKEET.name and name.startswith("espnet") else ""


def _alike(name: str, family: Family) -> str:
    """Return the hint for a network that has the same tensors in mlx-lm as in transformers; else ''."""
    if name != MLX or family.name not in ALIKE:
        return ""
    return f"mlx-lm reads this network with the names of transformers: use --layout {TRANSFORMERS}."


def _of_llama_cpp(name: str, checkpoint: Checkpoint) -> str:
    """Return the hint for a network with llama.cpp's names, which only ``ckpt convert`` changes; else ''."""
    if name != TRANSFORMERS or not in_llama_cpp(checkpoint):
        return ""
    path = escape(checkpoint.path)
    return f"It has llama.cpp's names: first run ckpt convert {path} --layout {TRANSFORMERS} -o NAME/, and use NAME/."


def _prefixed(checkpoint: Checkpoint) -> str:
    """Return the hint for a network in a known layout whose keys all begin with some prefix; else ''."""
    found = prefix_of_all(checkpoint)
    if found is None:
        return ""
    prefix, family, layout = found
    return (
        f"Without the prefix {escape(prefix)} of all keys, it has the layout {layout.name} of {family.name}: first "
        f"remove the prefix with ckpt rename --map '{escape(prefix)}**=**'."
    )


def _wrapped(checkpoint: Checkpoint) -> str:
    """Return the hint for a network in a known layout whose keys begin with wrapper prefixes (``module.``); else ''."""
    plain = unwrap(checkpoint)
    if not plain.stripped or not recognised({key: checkpoint[stored] for key, stored in plain.stored.items()}):
        return ""
    if plain.aside:
        return (
            f"{listing(plain.aside, where='')} does not belong to the network, whose keys begin with "
            f"{plain.stripped[0]}: first leave it out with ckpt filter --exclude {plain.aside[0]}."
        )
    rulesets = dict.fromkeys("ddp" if wrapper == DDP else "compile" for wrapper in plain.stripped)
    options = " ".join(f"--ruleset {name}" for name in rulesets)
    return (
        f"The keys begin with {plain.stripped[0]}, a prefix that training added: first remove it with ckpt rename "
        f"{options}."
    )
