"""Changes a checkpoint's layout as ``--layout`` asks: to llama.cpp's layout, or to another layout of its family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.wrappers import DDP, unwrap
from ...errors import PlanError
from ...planning.layouts.conversion import LayoutConversion, conversion
from ...planning.layouts.layout import Family, Layout
from ...planning.layouts.recognise import families, recognised
from ...planning.llama_cpp.names import in_llama_cpp
from ...util.text import escape, listing
from ..inputs.operations import OperatedCheckpoint
from ..model_folder.folder import ModelFolder
from .named_layout import AUTO, GGUF, TRANSFORMERS, NamedLayout
from .settings import settings_of

__all__ = ["changed_layout", "layout_named", "said_of"]


def layout_named(name: str, source: OperatedCheckpoint, folder: ModelFolder, heads: str = "") -> NamedLayout:
    """Return the change of a checkpoint's layout to the layout ``name``.

    ``heads`` is the value of ``--heads``, '' if it is not given. Raises PlanError if the layout of the checkpoint is
    not known, or cannot be changed to ``name``.
    """
    checkpoint = source.checkpoint
    if name in (AUTO, GGUF) or (name == TRANSFORMERS and _is_llama_cpp(checkpoint)):
        from ..gguf.llama_cpp_layout import llama_cpp_layout  # imports tokenisers, which other layouts do not need

        return llama_cpp_layout(name, checkpoint, folder)
    found = changed_layout(name, source, settings_of(checkpoint, folder.config, heads))
    return NamedLayout(found.change, None, (said_of(found), *found.notes), derived=found.derived)


def _is_llama_cpp(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.header.stored) or (in_llama_cpp(checkpoint) and not recognised(checkpoint))


def changed_layout(name: str, operated: OperatedCheckpoint, config: Mapping[str, Any]) -> LayoutConversion:
    """Return the conversion of a checkpoint to the layout ``name`` of its family.

    ``config`` has the fields of its configuration. Raises PlanError if its layout is not known, several fit, or its
    family has no layout of that name, and the errors of ``conversion``.
    """
    family, source = _family(name, operated.checkpoint)
    return conversion(family, source, family.named(name), operated.derived, config, operated.checkpoint.path)


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
            f"the layout {name}: models of the family {family.name} do not have it.",
            hint=f"Use one of the layouts {others}.",
        )
    raise PlanError(
        f"the layout of {escape(checkpoint.path)} is not known.",
        hint=_wrapped(checkpoint)
        or _of_llama_cpp(name, checkpoint)
        or f"The known families are {listing([one.name for one in families()], 40, where='')} (ckpt layouts); "
        "convert others with rules and --operations.",
    )


def _of_llama_cpp(name: str, checkpoint: Checkpoint) -> str:
    """Return the hint for a network with llama.cpp's names, which only ``ckpt convert`` changes; else ''."""
    if name != TRANSFORMERS or not in_llama_cpp(checkpoint):
        return ""
    path = escape(checkpoint.path)
    return f"It has llama.cpp's names: first run ckpt convert {path} --layout {TRANSFORMERS} -o NAME/, and use NAME/."


def _wrapped(checkpoint: Checkpoint) -> str:
    """Return the hint for a network in a known layout whose keys begin with wrapper prefixes (``module.``); else ''."""
    plain = unwrap(checkpoint)
    if not plain.stripped or not recognised({key: checkpoint[stored] for key, stored in plain.stored.items()}):
        return ""
    rulesets = dict.fromkeys("ddp" if wrapper == DDP else "compile" for wrapper in plain.stripped)
    options = " ".join(f"--ruleset {name}" for name in rulesets)
    return (
        f"The keys begin with {plain.stripped[0]}, a prefix that training added: first remove it with ckpt rename "
        f"{options}."
    )
