"""Recipes: YAML files with a verb and its arguments. A recipe makes the same plan as the verb with these arguments."""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ..destinations._load import code_named
from ..errors import CheckpointError, ConfigError, PlanError
from ..planning.keys.pattern import KeyPattern
from ..planning.keys.pattern_hints import deeper_notes, unmatched
from ..planning.keys.renaming import KeyMatcher
from ..planning.plan.plan import Plan
from ..planning.plan.step import CLASSES
from ..util.arguments import as_fields
from ..util.notes import reworded
from ..util.text import brief_repr, count, escape, grouped, listing
from .average import average
from .edit import convert, filter, rename
from .inputs.argument_types import OF_RECIPES, Path, check_types, checked
from .inputs.inputs import close_plan
from .inputs.recipe_files import VALUES_AGREE, is_recipe, read_recipe_file, recipe_notes, without_doubts
from .inputs.reopening import code_of, read_plan
from .lora.concat import lora_concat
from .lora.convert import lora_convert
from .lora.extract import lora_extract
from .lora.merge import lora_merge
from .lora.resize import lora_resize
from .merge.merge import merge
from .resize.resize import resize
from .transplant.transplant import transplant

__all__ = ["CompiledRecipe", "load_order", "load_plan", "plan_recipe", "with_absolute_paths"]

_VERBS: Mapping[str, Callable[..., Plan]] = {
    "transplant": transplant,
    "resize": resize,
    "rename": rename,
    "filter": filter,
    "convert": convert,
    "average": average,
    "merge": merge,
    "lora merge": lora_merge,
    "lora extract": lora_extract,
    "lora concat": lora_concat,
    "lora convert": lora_convert,
    "lora resize": lora_resize,
}
"""{verb on the command line: its function}"""
_OUTPUT = ("output", "to", "max_shard_size")
"""The fields of a recipe with the output and the options for writing it."""
_SHARED: dict[str, type] = {"ranks": int, "axis": list, "mesh": str}
"""The fields for formats that write one file for each rank, and their types."""
_PATHS = (
    "source", "sources", "destination", "map_file", "operations", "vocab", "tokens", "models", "base", "plugin",
    "adapters", "adapter", "tuned", "output", "config",
    "tokenizer", "trim", "donor", "by", "statistics", "align_groups", "optimizer",
)  # fmt: skip
"""The fields that may be paths, which are relative to the recipe's folder."""
PROVED, VERDICTS = "proved", ("EQUIVALENT", "SAME")
"""The assertion about the result of ``prove``, and its possible values."""
_DATA = ("operations", "align_groups")
"""The fields whose value is one path, or plain data; strings in the data are not paths."""
_NO_LISTS = ("union", "base", "place")
"""Values of the field ``vocab`` that are not file names."""


@dataclass(frozen=True)
class CompiledRecipe:
    """A compiled recipe: the plan and, if they are in the recipe, the output and the options for writing the output.

    ``shared`` has the options ``ranks``, ``axis`` and ``mesh``. ``proved`` is the verdict that ``prove`` must return
    for the output, '' if the recipe does not ask for a proof.
    """

    plan: Plan
    output: str | None = None
    to: str | None = None
    max_shard_size: str | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)
    proved: str = ""
    """The verdict of ``prove`` that the output must have, if the recipe asserts one."""

    def close(self) -> None:
        """Close the files that the plan keeps open."""
        close_plan(self.plan)


def plan_recipe(path: Path, *, run_code: bool = True) -> CompiledRecipe:
    """Compile a recipe, and check its assertions about the plan.

    A recipe has the fields ``verb``, the arguments of the verb by name, ``output``, ``assert``, ``notes`` and
    ``values_agree``. Paths are relative to the recipe's folder. ``notes`` are sentences that become notes of the plan;
    if ``values_agree`` is true, no note says that a matrix may be transposed. ``assert`` maps "count" to
    the number of tensors, and a pattern of output keys to the class of the matching tensors (copied, cast and others)
    or to their number. It maps "proved" to the verdict that ``prove`` must return for the output and its source. If
    ``run_code`` is false, a recipe that refers to code (a plugin, a destination with ``_target_``) raises ConfigError,
    and nothing is run.

    Raises ConfigError for an unknown or malformed field, PlanError if an assertion is not met, and the errors of the
    verb.
    """
    name = os.fspath(path)
    fields = _read(name)
    document = _with_paths(fields, os.path.dirname(name))
    verb = document.pop("verb", "transplant" if "destination" in document else None)
    if not isinstance(verb, str) or verb not in _VERBS:
        said = f"the verb {brief_repr(verb, 40)} is unknown" if verb is not None else "it has no verb"
        near = difflib.get_close_matches(str(verb).replace("_", " ").replace("-", " "), _VERBS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Use one of the verbs {', '.join(_VERBS)}."
        if verb is None and "merge_method" in document:
            hint = f"To run a recipe of mergekit, use ckpt merge {escape(name)}."
        raise ConfigError(f"{escape(name)}: {said}.", hint=hint)
    wanted = document.pop("assert", None)
    stated = recipe_notes(name, document.pop("notes", []))
    agree = document.pop(VALUES_AGREE, False)
    without_doubts(name, agree, ())  # checks the type of the value before the verb opens files
    proved = _proved(name, wanted)
    own = inspect.signature(_VERBS[verb]).parameters  # lora convert has its own ``to``
    written = {one: _text(name, one, document.pop(one, None)) for one in _OUTPUT if one not in own}
    shared = _shared(name, document)
    with _naming_paths(name, fields):
        if not run_code:
            _check_runs_nothing(name, document)
        plan = _planned(name, verb, document)
    try:
        notes = _check_asserted(name, {} if wanted is None else wanted, plan)
        if proved:
            from .prove.output import check_provable

            try:
                check_provable(plan)
            except ConfigError as error:
                hint = error.hint.replace("Leave --prove out", f"Leave {PROVED} out of assert")
                raise ConfigError(f"{escape(name)}: {error.message}", hint=hint) from error
    except BaseException:
        close_plan(plan)
        raise
    planned = (reworded(note, as_fields(note, own)) for note in without_doubts(name, agree, plan.notes))
    return CompiledRecipe(
        replace(plan, notes=(*stated, *planned, *notes)),
        **written,
        shared=shared,
        proved=proved,
    )


@checked
def load_plan(path: Path, *, run_code: bool = True) -> Plan:
    """Return the plan in a file: a plan as JSON, or the plan of a recipe (YAML), which is compiled.

    Compiling runs the code that the recipe refers to. If ``run_code`` is false, ConfigError is raised instead, and its
    message lists this code.
    """
    return load_order(path, run_code=run_code).plan


def load_order(path: Path, *, run_code: bool = True) -> CompiledRecipe:
    """Return the plan in a file and, for a recipe, its output and the options for writing it.

    For a plan as JSON, notes list the code that applying it will run.
    """
    if is_recipe(path):
        return plan_recipe(path, run_code=run_code)
    plan = read_plan(path)
    return CompiledRecipe(replace(plan, notes=tuple(dict.fromkeys([*plan.notes, *_notes_of_code(plan)]))))


def _notes_of_code(plan: Plan) -> Iterator[str]:
    """Yield a note that lists the user's code that applying a plan runs, or says why applying the plan will fail."""
    try:
        code = code_of(plan)
    except ConfigError as error:
        yield f"applying the plan will fail: {error.message.rstrip('.')}"
    else:
        if code:
            yield f"applying the plan runs code: {listing(code, where='')} of {escape(plan.target.config)}"


def _check_runs_nothing(name: str, given: Mapping[str, Any]) -> None:
    """Raise ConfigError if planning the recipe ``name`` with the fields ``given`` would run code."""
    code: list[str] = []
    if isinstance(destination := given.get("destination"), str):
        code += [f"{one} of {escape(destination)}" for one in code_named(destination)]
    if (plugin := given.get("plugin")) is not None:
        code.append(f"the plugin {escape(str(plugin))}")
    if code:
        raise ConfigError(
            f"planning the recipe {escape(name)} would run {listing(code, where='')}; nothing was run.",
            hint=f"Read this code; to run it, write ckpt apply -n --run-code {escape(name)}.", details=code,
        )  # fmt: skip


def _read(name: str) -> dict[str, Any]:
    document = read_recipe_file(name)
    if not isinstance(document, dict):
        raise ConfigError(
            f"{escape(name)} is not a valid recipe: it is not a map of fields.",
            hint="Write a verb and its arguments, as in verb: filter.",
        )
    return document


def with_absolute_paths(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return ``document``, the content of the recipe ``name``, with absolute paths, so that it works in any folder."""
    return _with_paths(document, os.path.dirname(os.path.abspath(name)))


def _with_paths(document: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Return the fields of a recipe in ``folder``, with paths that are valid outside of this folder."""
    found = {key: _resolved(folder, value) if _is_path(key, value) else value for key, value in document.items()}
    listed = document.get("models")
    given = (*(listed if isinstance(listed, list) else ()), document.get("base"))
    models = {one for one in given if isinstance(one, str)}
    for name in ("statistics", "tokens"):
        if isinstance(by_model := document.get(name), dict):
            keys = {key: _resolved(folder, key) if key in models else key for key in by_model}
            places = {key: os.path.normpath(str(path)) for key, path in keys.items()}
            times = Counter(places.values())
            if twice := [str(key) for key, place in places.items() if times[place] > 1]:
                raise ConfigError(
                    f"{name} of a recipe names one model twice: {listing(twice, where='')}.",
                    hint="Leave one of the two out.",
                )
            found[name] = {keys[key]: _resolved(folder, value) for key, value in by_model.items()}
    texts = document.get("tokens")
    texts = [texts] if isinstance(texts, str) else texts
    if isinstance(texts, list):
        found["tokens"] = [_model_and_list(folder, one, models) if isinstance(one, str) else one for one in texts]
    lists = document.get("vocab")
    if document.get("verb", "transplant") == "transplant" and isinstance(lists, str) and "://" not in lists:
        pairs = [[_resolved(folder, one) for one in pair] for pair in _cuts(lists, ":")]
        found["vocab"] = next((one for one in pairs if all(map(os.path.exists, one))), [*pairs, found["vocab"]][0])
    return found


def _model_and_list(folder: str, text: str, models: Collection[str]) -> str:
    """Return MODEL=LIST with resolved paths; MODEL may also be a name, which stays."""
    cuts = _cuts(text, "=")
    model, path = next((cut for cut in cuts if cut[0] in models), [*cuts, (text, "")][0])
    return f"{_resolved(folder, model) if model in models else model}={_resolved(folder, path)}" if path else text


def _cuts(text: str, sign: str) -> list[tuple[str, str]]:
    """Return the two parts of a text for each ``sign`` at which it can be split into two parts that are not empty."""
    cuts = [(text[:at], text[at + 1 :]) for at, char in enumerate(text) if char == sign]
    return [cut for cut in cuts if all(cut)]


def _is_path(field: str, value: Any) -> bool:
    if field in _DATA and not isinstance(value, str):
        return False
    return field in _PATHS and not (field == "vocab" and value in _NO_LISTS)


def _resolved(folder: str, value: Any) -> Any:
    """Return ``value`` with paths that are valid outside of the recipe's folder.

    ``value`` is one path, or a list or dict of paths, relative to ``folder``, the folder of the recipe. The result has
    the same form; its paths are relative to the working directory, or absolute if ``folder`` is. URLs are not changed.
    """
    if isinstance(value, list):
        return [_resolved(folder, one) for one in value]
    if isinstance(value, dict):  # token lists by model
        return {key: _resolved(folder, one) for key, one in value.items()}
    if not isinstance(value, str) or "://" in value or not folder:
        return value
    slash = "/" if value.endswith("/") else ""
    return os.path.normpath(os.path.join(folder, value)) + slash


@contextmanager
def _naming_paths(name: str, fields: Mapping[str, Any]) -> Iterator[None]:
    """Add to the hint of an error in the block how the recipe ``name`` writes a path that does not exist.

    ``fields`` are the fields of the recipe, with paths relative to its folder.
    """
    try:
        yield
    except CheckpointError as error:
        for path in _written_paths(fields):
            found = _resolved(os.path.dirname(name), path).rstrip("/")
            named = rf"(?<![\w./-]){re.escape(escape(found))}(?![\w-]|\.\w|/\w)"
            if not os.path.isabs(path) and not os.path.lexists(found) and re.search(named, error.message):
                error.add_hint(
                    f"The recipe says {escape(path)}: its paths are relative to the folder of {escape(name)}."
                )
                break
        raise


def _written_paths(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paths in the fields of a recipe, as they are written; URLs are left out."""
    waiting = [value for key, value in fields.items() if key != "output" and _is_path(key, value)]
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, list | dict):
            waiting += value.values() if isinstance(value, dict) else value
        elif isinstance(value, str) and "://" not in value:
            yield value


def _text(name: str, field: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{escape(name)}: the field {field} is {brief_repr(value)}, not a string.")
    return value


def _shared(name: str, document: dict[str, Any]) -> dict[str, Any]:
    """Remove the fields ``ranks``, ``axis`` and ``mesh`` from a recipe, and return them.

    Raises ConfigError for a wrong type; ``name`` is the recipe's name in the message.
    """
    found = {one: document.pop(one) for one in _SHARED if one in document}
    for one, value in found.items():
        texts = value if isinstance(value, list) else ()
        if not isinstance(value, _SHARED[one]) or isinstance(value, bool) or not all(isinstance(t, str) for t in texts):
            what = {"ranks": "a number", "axis": "a list of strings", "mesh": "a string"}[one]
            raise ConfigError(f"{escape(name)}: the field {one} is {brief_repr(value)}, not {what}.")
    return found


def _planned(name: str, verb: str, given: Mapping[str, Any]) -> Plan:
    """Call a verb with the arguments of a recipe; raises ConfigError for a wrong argument."""
    call = _VERBS[verb]
    known = {n: p for n, p in inspect.signature(call).parameters.items() if p.kind is not p.VAR_KEYWORD}
    for one in given:
        if one not in known:
            near = difflib.get_close_matches(
                str(one), [*known, *_OUTPUT, *_SHARED, "assert", "notes", "verb", VALUES_AGREE], n=1
            )
            hint = f"Did you mean {near[0]}?" if near else f"Its arguments are {', '.join(known)}."
            raise ConfigError(f"{escape(name)}: the verb {verb} has no argument {brief_repr(one)}.", hint=hint)
    needed = [p.name for p in known.values() if p.default is p.empty and p.name not in given]
    if needed:
        raise ConfigError(
            f"{escape(name)}: the verb {verb} needs {', '.join(needed)}.", hint="Add these fields to the recipe."
        )
    check_types(name, call, given, OF_RECIPES)
    try:
        return call(**given)
    except CheckpointError as error:
        said, error.hint = as_fields(error.message, known), as_fields(error.hint, known)
        error.message = error.message if said == error.message else f"{escape(name)}: {said}"
        raise


def _proved(name: str, wanted: Any) -> str:
    """Remove the entry "proved" from the assertions ``wanted``, and return its verdict; '' if there is none.

    Raises ConfigError if the value is not a verdict; ``name`` is the recipe's name in the message.
    """
    verdict = wanted.pop(PROVED, "") if isinstance(wanted, dict) else ""
    if verdict not in ("", *VERDICTS):
        raise ConfigError(
            f"{escape(name)}: assert proved: {brief_repr(verdict, 40)} is not a verdict.",
            hint=f"Use {' or '.join(VERDICTS)}.",
        )
    return str(verdict)


def _check_asserted(name: str, wanted: Any, plan: Plan) -> list[str]:
    """Raise PlanError if the plan does not meet an assertion in ``wanted``.

    Returns notes on patterns that probably match fewer keys than the user meant. Raises ConfigError for an invalid
    assertion, PatternError for a pattern that matches no key.
    """
    if not isinstance(wanted, dict):
        raise ConfigError(f"{escape(name)}: the field assert is {brief_repr(wanted)}, not a map.")
    keys = [step.key for step in plan.steps]
    faults: list[tuple[str, str]] = []
    patterns: list[tuple[str, KeyPattern]] = []
    for pattern, expected in wanted.items():
        if pattern == "count":
            if not _is_number(expected):
                raise ConfigError(f"{escape(name)}: assert count: {brief_repr(expected, 40)} is not a number.")
            if expected != len(keys):
                faults.append(("count", f"{len(keys)}, not {brief_repr(expected, 20)}"))
            continue
        parsed = KeyPattern.given(str(pattern), "assert ")
        patterns.append((f"assert {pattern}", parsed))
        hits = set(KeyMatcher([parsed]).hits(keys)[0])
        if not hits and expected != 0:
            raise unmatched(f"assert {pattern}", parsed, keys, "output")
        faults += _unmet(str(pattern), expected, plan, hits)
    if faults:
        raise PlanError(
            f"{escape(name)} has assertions that fail: {grouped(faults, '{names} {are} {why}')}.",
            hint="Change the options of the recipe, or its section assert.",
            details=[f"{key} is {why}" for key, why in faults],
        )
    return deeper_notes(patterns, keys)


def _unmet(pattern: str, expected: Any, plan: Plan, hits: set[str]) -> Sequence[tuple[str, str]]:
    """Return the differences between a plan and an assertion, as pairs (keys, difference); [] if the plan meets it.

    Examples of a pair are ("ctc.*", "3 tensors, not 2") and ("ctc.bias", "copied, not initialised").

    ``hits`` are the keys that the pattern matches. ``expected`` is the number or the class that the recipe asserts for
    them; raises ConfigError for any other value.
    """
    if _is_number(expected):
        return [] if len(hits) == expected else [(pattern, f"{count(len(hits), 'tensor')}, not {expected}")]
    if not isinstance(expected, str) or expected not in CLASSES:
        raise ConfigError(
            f"assert {pattern}: {brief_repr(expected, 40)} is not a valid value.",
            hint=f"Use a number of tensors, or one of {', '.join(CLASSES)}.",
        )
    return [
        (step.key, f"{step.kind}, not {expected}") for step in plan.steps if step.key in hits and step.kind != expected
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
