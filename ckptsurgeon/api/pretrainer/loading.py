"""Loads each file that a ``Pretrainer`` collected: with a hook function, or, for modules, like ``load_into``."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from ...checkpoint.opening import open_checkpoint
from ...destinations._load import module_destination
from ...errors import ConfigError
from ...planning.keys.renaming import RULESETS
from ...planning.keys.rules import parse_rule
from ...planning.plan.plan import Plan
from ...planning.plan.step import CLASSES
from ...planning.transplant.options import Options
from ...storage.fetch.record import check_unchanged_since
from ...storage.read.spec import SourceSpec
from ...util.notes import is_serious, with_prefix
from ...util.short_repr import Brief
from ...util.text import brief_repr, count, escape, listing
from ..inputs.argument_types import rules_as_text
from ..transplant.load_into import ModuleLoading, load_all, naming

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Hook", "Pretrained", "hook_of", "load_pretrained"]

# Hooks load files into objects that are not modules. They are found as in SpeechBrain 1.1.2:
#
# ``speechbrain.utils.parameter_transfer.Pretrainer._call_load_hooks`` and ``speechbrain.utils.checkpoints``. The tables
# of hooks in ``checkpoints`` are read only if SpeechBrain is already imported; otherwise no hook has been registered.

Hook = Callable[[object, str], object]

_CHECKPOINTS = "speechbrain.utils.checkpoints"


def hook_of(name: str, thing: object, custom: Mapping[str, Any]) -> Hook | None:
    """Return the function that loads a file into the object ``thing``; None for a module (see ``load_into``).

    The hook for ``name`` in ``custom`` comes first. Otherwise it is the hook that SpeechBrain has registered for the
    object's class or a base class, else ``load`` of a SentencePieceProcessor, else ``load_state_dict``. Raises
    ConfigError if none of these exists.
    """
    if name in custom:
        given = custom[name]
        if not callable(given):
            what = escape(type(given).__name__)
            raise ConfigError(f"the custom hook for {escape(name)} is an object of type {what}, not a function.")
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
        f"there is no hook to load a file into {escape(name)}, an object of type {escape(type(thing).__name__)}.",
        hint=f"Give a function of the object and the file: custom_hooks={{{name!r}: lambda thing, path: …}}.",
    )


def _registered(table: str, kind: type) -> Any:
    return getattr(sys.modules.get(_CHECKPOINTS), table, {}).get(kind)


def _is_module_class(kind: type) -> bool:
    """Return whether a class is ``torch.nn.Module`` itself, without importing torch."""
    return kind.__module__ == "torch.nn.modules.module" and kind.__name__ == "Module"


def _plain(hook: Any) -> Hook:
    return lambda thing, path: hook(thing, path)


def _not_at_end_of_epoch(hook: Any) -> Hook:
    return lambda thing, path: hook(thing, path, False)


def _load_state_dict(thing: Any, path: str) -> None:
    """Load the state of an optimizer, scheduler or scaler; only plain data in the file is read."""
    import torch

    thing.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


_log = logging.getLogger(__name__)
_OPTIONS = ("include", "exclude", "map", "on_mismatch", "on_missing", "require", "strict", "root")
RENAMES = "speechbrain"
"""The ruleset with the two renames that SpeechBrain makes when it loads a checkpoint."""


@dataclass(frozen=True, repr=False)
class Pretrained(Brief):
    """The result of ``Pretrainer.load_collected``.

    ``plans`` has the plan of each module. ``hooked`` are the names of the objects that hooks loaded, and ``skipped``
    the names of those whose condition is false.
    """

    plans: Mapping[str, Plan] = field(default_factory=dict)
    hooked: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def __repr__(self) -> str:
        classes = ", ".join(f"{number} {kind}" for kind, number in self.counts.items()) or "no tensors"
        return f"<Pretrained {listing([*self.plans, *self.hooked, *self.skipped], where='')}: {classes}>"

    @property
    def counts(self) -> dict[str, int]:
        """The number of tensors in each class (copied, cast, kept and so on), over all modules."""
        found: Counter[str] = Counter()
        for plan in self.plans.values():
            found.update(plan.counts)
        return {kind: found[kind] for kind in CLASSES if found[kind]}

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes on each loaded or skipped object: missing and unused keys, wrappers, renames, casts."""
        said = [
            with_prefix(f"{name}: ", note)
            for name, plan in self.plans.items()
            for note in (*plan.notes, *_leftovers(plan))
        ]
        said += [f"{name}: loaded by its hook" for name in self.hooked]
        return (*said, *(f"{name}: not loaded, because its condition is false" for name in self.skipped))

    def summary(self) -> str:
        """Return a text with one line for each object that was loaded or skipped."""
        lines = {name: plan.summary() for name, plan in self.plans.items()}
        lines |= dict.fromkeys(self.hooked, "loaded by its hook")
        lines |= dict.fromkeys(self.skipped, "skipped, because its condition is false")
        return "\n".join(f"{name}: {line}" for name, line in lines.items())


def _leftovers(plan: Plan) -> list[str]:
    missing = [step.key for step in plan.steps if step.reason == "missing"]
    unused = [key for _, key in plan.unexpected]
    said = (
        [f"{count(len(missing), 'tensor')} kept their values, because they are not in the file: {_listed(missing)}"]
        if missing
        else []
    )
    return said + ([f"{count(len(unused), 'key')} not used: {_listed(unused)}"] if unused else [])


def _listed(keys: list[str]) -> str:
    return listing(keys, where="")


def load_pretrained(
    loadables: Mapping[str, object],
    paths: Mapping[str, str],
    *,
    hooks: Mapping[str, Any],
    skipped: tuple[str, ...],
    options: Mapping[str, Mapping[str, Any]] | None,
) -> Pretrained:
    """Load each file in ``paths`` into the object in ``loadables`` that has the same name; return a report.

    ``hooks`` are custom hooks by name, ``skipped`` the names of objects whose condition is false, and ``options`` has
    arguments of ``load_into`` for modules, by the name of the module. If a file cannot be loaded, no module is changed.
    Raises ConfigError for invalid ``options`` and a missing file, the errors of ``load_into``, and the exceptions of
    hooks.
    """
    given = _checked(options, paths)
    by_hook = {name: hook_of(name, loadables[name], hooks) for name in paths}
    for path in paths.values():
        _check_there(path)
    modules = [name for name, hook in by_hook.items() if hook is None]
    loadings = [_loading(name, loadables[name], paths[name], given.get(name, {})) for name in modules]
    hooked = {name: hook for name, hook in by_hook.items() if hook is not None}
    unfit = [name for name in given if name in hooked]
    if unfit:
        raise ConfigError(f"options apply only to modules that load_into loads, but hooks load {listing(unfit)}.")
    plans = load_all(loadings, before_writing=lambda: _call(hooked, loadables, paths))
    report = Pretrained(dict(zip(modules, plans, strict=True)), tuple(hooked), skipped)
    for name, plan in report.plans.items():
        for text in (*filter(is_serious, plan.notes), *_leftovers(plan)):
            _log.warning("%s: %s", name, text)
    return report


def _checked(options: Any, paths: Mapping[str, str]) -> Mapping[str, Mapping[str, Any]]:
    """Return the checked options; raises ConfigError for the name of an unknown object or option."""
    given = options or {}
    if not isinstance(given, Mapping) or not all(isinstance(value, Mapping) for value in given.values()):
        raise ConfigError(
            f"the argument options is {brief_repr(given)}, not a map of maps.",
            hint="Write options={'head': {'on_mismatch': 'init'}}.",
        )
    for name, chosen in given.items():
        if name not in paths:
            raise ConfigError(
                f"options has an entry for {brief_repr(name)}, which is not loaded.", hint=f"Use {_listed([*paths])}."
            )
        unknown = [option for option in chosen if option not in _OPTIONS]
        if unknown:
            raise ConfigError(f"load_into has no option {brief_repr(unknown[0])}.", hint=f"Use {', '.join(_OPTIONS)}.")
    return given


def _check_there(path: str) -> None:
    if not os.path.exists(path):
        raise ConfigError(
            f"{escape(path)} does not exist: the file was not collected, or was removed since.",
            hint="Call collect_files first.",
        )
    check_unchanged_since(path)


def _loading(name: str, model: object, path: str, options: Mapping[str, Any]) -> ModuleLoading:
    """Return the module, the source and the rules for loading the file ``path``; ``options`` are the user's options.

    If the keys of the file show that it needs them, the rules include the two renames of SpeechBrain.
    """
    module = cast("nn.Module", model)
    chosen = {key: value for key, value in options.items() if key not in ("map", "root")}
    rulesets = (RENAMES,) if _renames(name, module, path, options.get("root")) else ()
    parsed = Options.of(**chosen, rules=rules_as_text(options.get("map", ())), rulesets=rulesets)
    return ModuleLoading(module, [SourceSpec(path)], parsed, options.get("root"), name)


def _renames(name: str, module: nn.Module, path: str, root: str | None) -> bool:
    rules = [parse_rule(text) for text in RULESETS[RENAMES]]
    with naming(name), open_checkpoint(path, root) as checkpoint:
        wanted = module_destination(module).tensors
        return any(rule.apply(key) in wanted for key in checkpoint for rule in rules)


def _call(hooked: Mapping[str, Hook], loadables: Mapping[str, object], paths: Mapping[str, str]) -> None:
    """Call the hooks, which are the user's code; an exception of a hook gets a note with the hook's name."""
    for name, hook in hooked.items():
        try:
            hook(loadables[name], paths[name])
        except Exception as error:
            error.add_note(f"the hook of {name!r} raised this while it loaded {paths[name]}; no module has changed")
            raise
