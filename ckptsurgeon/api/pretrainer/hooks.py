"""How an object that is no module takes a file: by a hook of its own, as SpeechBrain's Pretrainer finds them.

``speechbrain.utils.parameter_transfer.Pretrainer._call_load_hooks`` and ``speechbrain.utils.checkpoints`` (1.1.2). The
tables there are only looked at where SpeechBrain was imported already: nobody else can have put anything into them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import ConfigError
from ...util.text import escape

__all__ = ["Hook", "hook_of"]

Hook = Callable[[object, str], object]

_CHECKPOINTS = "speechbrain.utils.checkpoints"


def hook_of(name: str, thing: object, custom: Mapping[str, Any]) -> Hook | None:
    """Return what loads a file into an object, None where it is a module that the planner loads.

    In order: the custom hook, the hooks that its class or one above it registered with SpeechBrain, ``load`` of a
    SentencePieceProcessor, ``load_state_dict``. Raises ConfigError where there is none of these.
    """
    if name in custom:
        given = custom[name]
        if not callable(given):
            raise ConfigError(f"the custom hook of {escape(name)} is a {escape(type(given).__name__)}, not a function.")
        return _plain(given)
    for kind in type(thing).__mro__:
        if _is_module_class(kind):
            return None
        transfer = _registered("DEFAULT_TRANSFER_HOOKS", kind)
        if transfer is not None:
            return _plain(transfer)
        if (kind.__module__.partition(".")[0], kind.__name__) == ("sentencepiece", "SentencePieceProcessor"):
            return lambda thing, path: thing.load(path)  # type: ignore[attr-defined]
    for kind in type(thing).__mro__:
        loader = _registered("DEFAULT_LOAD_HOOKS", kind)
        if loader is not None:
            return _not_at_end_of_epoch(loader)
    if callable(getattr(thing, "load_state_dict", None)) and not isinstance(thing, type):
        return _load_state_dict
    raise ConfigError(
        f"{escape(name)} is a {escape(type(thing).__name__)}, and nothing says how a file is loaded into it.",
        hint=f"Give a hook, called with the object and the file: custom_hooks={{{name!r}: lambda thing, path: …}}.",
    )


def _registered(table: str, kind: type) -> Any:
    return getattr(sys.modules.get(_CHECKPOINTS), table, {}).get(kind)


def _is_module_class(kind: type) -> bool:
    """Whether a class is ``torch.nn.Module`` itself, without importing torch to know it."""
    return kind.__module__ == "torch.nn.modules.module" and kind.__name__ == "Module"


def _plain(hook: Any) -> Hook:
    return lambda thing, path: hook(thing, path)


def _not_at_end_of_epoch(hook: Any) -> Hook:
    return lambda thing, path: hook(thing, path, False)


def _load_state_dict(thing: Any, path: str) -> None:
    """Load optimizers, schedulers and scalers: plain data alone, as ``torch.load`` reads it."""
    import torch

    thing.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
