"""Finds what ``load_state_dict`` of a module does apart from copying tensors: extra state, own methods and hooks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.module import _WrappedHook

from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import count, listing

__all__ = ["extra_states", "notes_beyond_tensors"]

_SHOWN = 3
_KNOWN = frozenset((
    "ckptsurgeon", "espnet", "espnet2", "peft", "speechbrain", "torch", "torchvision", "transformers"
))  # fmt: skip
"""Packages whose methods and hooks get no note: most of them only rename or drop older keys."""
_HOOKS = ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")


def notes_beyond_tensors(model: nn.Module) -> Iterator[Note]:
    """Yield notes on what ``load_state_dict`` of a module would do, but copying tensors into it does not."""
    states = extra_states(model)
    if states:
        number = f"{count(len(states), 'extra state')} of modules {'is' if len(states) == 1 else 'are'} not loaded"
        where = listing(states, _SHOWN, where="")
        yield Note(NoteKind.SERIOUS, f"{number}, as set_extra_state is not called: {where}")
    own = [name or type(model).__name__ for name, module in model.named_modules() if _loads_itself(module, name)]
    if own:
        has = (
            "a module has its own method or hook" if len(own) == 1 else f"{len(own)} modules have own methods or hooks"
        )
        where = listing(own, _SHOWN, where="")
        yield Note(NoteKind.SERIOUS, f"{has} for load_state_dict, not called here: {where}")
    empty = [key for key, one in model.named_buffers() if one.is_meta]
    if empty:
        have = "a buffer that is in no checkpoint has" if len(empty) == 1 else "buffers that are in no checkpoint have"
        yield Note(NoteKind.SERIOUS, f"{have} no values (meta device): {listing(empty, _SHOWN, where='')}")


def extra_states(model: nn.Module) -> list[str]:
    """Return the keys of the extra state that ``load_state_dict`` would give to ``set_extra_state`` of modules."""
    plain = nn.Module.set_extra_state
    return [
        f"{name}._extra_state" if name else "_extra_state"
        for name, module in model.named_modules()
        if type(module).set_extra_state is not plain
    ]


def _loads_itself(module: nn.Module, name: str) -> bool:
    """Return whether ``load_state_dict`` calls a method of the module's class, or a hook, of a user's package.

    The method ``load_state_dict`` itself is only called for the whole model, whose ``name`` is empty.
    """
    methods = ["_load_from_state_dict", *(["load_state_dict"] if not name else [])]
    found = [getattr(type(module), method) for method in methods]
    found = [one for one in found if one not in (nn.Module._load_from_state_dict, nn.Module.load_state_dict)]
    found += [hook for hooks in _HOOKS for hook in getattr(module, hooks, {}).values()]
    return any(_package(one) not in _KNOWN for one in found)


def _package(function: Any) -> str:
    """Return the name of the package that defines a function, a partial, or a hook as torch keeps it."""
    while isinstance(function, (partial, _WrappedHook)):
        function = function.hook if isinstance(function, _WrappedHook) else function.func
    name = getattr(function, "__module__", None) or type(function).__module__
    return str(name).partition(".")[0]
