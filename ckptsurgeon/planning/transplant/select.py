"""Selects the keys of the sources, and determines their names in the destination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ...errors import PatternError, PlanError
from ...tensors.composition import is_decoded
from ...tensors.info import TensorInfo
from ...tensors.quantised.encoding import NO_CODES, QuantisedTensor, QuantisedTensors
from ...util.brief import Brief
from ...util.text import count, escape, listing
from ..keys.pattern import KeyPattern
from ..keys.pattern_hints import deeper_notes, matched, unmatched
from ..keys.renaming import KeyMatcher, Renaming, check_shadowed, rename, rule_matcher, rules_of_sets
from ..keys.rules import Rule
from ..operations.perform import Derivation
from ..plan.files import PlanSource
from ..target import TargetSpec
from .options import Options

__all__ = [
    "ExcludedKey",
    "PlanningInputs",
    "Selection",
    "SourceView",
    "TensorOrigin",
    "check_src_key",
    "excluded_by_prefix",
    "is_under",
    "operation_fields",
    "renamed_by_spec",
    "select",
    "without_names",
]

# Sources in ESPnet's form: the keys under src_key, renamed to dst_key, without those of exclude_keys.


def check_src_key(src: str, keys: Sequence[str]) -> None:
    """Raise PatternError if no key is in the module ``src``, the src_key of a source in ESPnet's form."""
    if not any(is_under(key, src) for key in keys):
        raise unmatched(f"src_key {src}", KeyPattern(_quoted(src)), keys, "source")


def excluded_by_prefix(prefix: str, keys: Sequence[str], *, of: str, notes: list[str]) -> dict[str, str]:
    """Return the keys that begin with ``prefix``, as a map from each key to the reason why it is excluded.

    ``prefix`` is one of the exclude_keys of a source in ESPnet's form: PATH:src_key:dst_key:exclude_keys. It may end
    within a name: "enc" also excludes "encoder2". Then a note is added to ``notes``. ``of`` is the source's name in
    messages. Raises PatternError if no key begins with the prefix.
    """
    hit = [key for key in keys if key.startswith(prefix)]
    if not hit:
        raise _unmatched_prefix(prefix, keys)
    module = prefix.rstrip(".")
    beyond = [key for key in hit if not is_under(key, module)]
    if beyond:
        others = list(dict.fromkeys(_module_at(key, prefix) for key in beyond))
        also, exact = ("also ", module) if len(beyond) < len(hit) else ("", others[0])
        notes.append(
            f"the exclude {prefix} of {of} {also}matches {listing(others)}, as a prefix; --exclude {exact} excludes "
            f"only {exact}"
        )
    return dict.fromkeys(hit, f"exclude {prefix} of {of}")


def _unmatched_prefix(prefix: str, keys: Sequence[str]) -> PatternError:
    deeper = list(dict.fromkeys(_module_at(key, prefix, inside=True) for key in keys if f".{prefix}" in key))
    if deeper:
        return PatternError(
            f"exclude {prefix} matches none of the {count(len(keys), 'source key')}.",
            hint=f"Did you mean {' or '.join(map(escape, deeper[:3]))}?",
        )
    return unmatched(f"exclude {prefix}", KeyPattern(_quoted(prefix)), keys, "source")


def _quoted(text: str) -> str:
    return "".join(f"\\{char}" if char in "\\*?[]{}" else char for char in text.strip(".")) or "\\*"


def _module_at(key: str, prefix: str, *, inside: bool = False) -> str:
    """Return the start of a key, up to the end of the segment in which ``prefix`` ends.

    The prefix is at the start of the key or, if ``inside`` is true, after a dot: its first occurrence there counts.
    """
    start = key.find(f".{prefix}") + 1 if inside else 0
    end = key.find(".", start + len(prefix))
    return key if end < 0 else key[:end]


def is_under(key: str, module: str) -> bool:
    """Return whether a key is in a module, or is the name of the module itself; '' contains every key."""
    return not module or key == module or key.startswith(f"{module}.")


def renamed_by_spec(key: str, src: str, dst: str) -> str:
    """Return a key with the module ``src`` renamed to ``dst``; keys outside ``src`` are returned unchanged.

    Without ``src``, ``dst`` is put before the key; without ``dst``, ``src`` is removed.
    """
    if not (src or dst) or not is_under(key, src):
        return key
    rest = key[len(src) :].lstrip(".") if src else key
    return f"{dst}.{rest}".strip(".") if dst else rest or key


LOOKED_DEEPER = 20
"""With more rules than this, there are no notes on rules that would match many more keys with ``**.`` before them."""


@dataclass(frozen=True, repr=False)
class SourceView(Brief):
    """A source of a plan: the headers of its tensors, and the settings that the user gave for it.

    The user may give a source in ESPnet's form: PATH:src_key:dst_key:exclude_keys. ``src`` and ``dst`` are the src_key
    and the dst_key, ``prefixes`` the exclude_keys. ``made`` maps keys of tensors to the operations that made them.
    ``known`` maps older or foreign keys to the destination's keys; ``known_by`` says whose keys they are. ``codes`` are
    the quantised tensors. ``decoded_dtype`` is the dtype in which decoded weights are written if no option sets another
    dtype.
    """

    source: PlanSource
    tensors: Mapping[str, TensorInfo]
    src: str = ""
    dst: str = ""
    prefixes: tuple[str, ...] = ()
    made: Mapping[str, Derivation] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)
    known_by: str = ""
    codes: QuantisedTensors = NO_CODES
    decoded_dtype: str = ""

    @property
    def names(self) -> list[str]:
        """All keys, then the names of quantised tensors, under which nothing is stored: their parts have other keys."""
        return [*self.tensors, *(one.name for one in self.codes.tensors if one.name not in self.tensors)]

    def dtype_of(self, key: str) -> str:
        """Return the dtype in which a tensor is written if no option sets another dtype."""
        info = self.tensors[key]
        return self.decoded_dtype if self.decoded_dtype and is_decoded(info) else info.dtype


class TensorOrigin(NamedTuple):
    """The origin of a tensor: the index of its source, its key there, and the rule that renamed it.

    ``made`` says which operations made it; None without operations. ``coded`` is the quantised tensor that it is a part
    of, None for a plain tensor. ``dtype`` is the dtype in which it is written if no option sets another dtype.
    """

    source: int
    key: str
    info: TensorInfo
    rule: str = ""
    made: Derivation | None = None
    coded: QuantisedTensor | None = None
    dtype: str = ""

    @property
    def is_description(self) -> bool:
        """Whether the tensor is a ``quant_state`` of bitsandbytes: a text of any length that describes codes."""
        parts = self.coded.parts if self.coded is not None else {}
        return any(key == self.key and end.startswith(".quant_state.") for end, key in parts.items())


@dataclass(frozen=True)
class ExcludedKey:
    """A key of a source that was left out, and the option that excluded it."""

    source: int
    key: str
    why: str


@dataclass
class Selection:
    """The selected tensors of all sources, by their names in the destination.

    ``origins`` maps each name to the tensors that have it: at most one of each source, in the order of the sources.
    ``excluded`` has the excluded keys by the names that they would have had, ``excluded_keys`` is their number.
    """

    origins: dict[str, list[TensorOrigin]] = field(default_factory=dict)
    excluded: dict[str, list[ExcludedKey]] = field(default_factory=dict)
    excluded_keys: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, repr=False)
class PlanningInputs(Brief):
    """The sources, the destination and the options of a transplant, kept to explain its plan later."""

    views: Sequence[SourceView]
    target: TargetSpec
    options: Options

    def selection(self) -> Selection:
        """Return the selected and renamed tensors of the sources, computed again."""
        return select(self.views, self.options)


def select(views: Sequence[SourceView], options: Options) -> Selection:
    """Return the tensors of all sources that the options select, by their new names.

    Raises PatternError for a pattern, prefix or rule that matches nothing, or if earlier rules rename all keys that a
    rule matches; PlanError if two keys of one source get the same name.
    """
    selection = Selection()
    keys = [key for view in views for key in view.names]
    flags = [(str(flag), flag.pattern) for flag in (*options.include, *options.exclude)]
    if flags:
        selection.notes += matched(flags, keys, "source")[1]
    if options.rules:
        _check_rules(options, views, keys, selection)
    if options.rulesets:
        options = replace(options, rules=(*options.rules, *rules_of_sets(options.rulesets, keys)))
    renamings = [_select_one(index, view, options, selection) for index, view in enumerate(views)]
    if options.rules:
        check_shadowed(options.rules, renamings)
    return selection


def _check_rules(options: Options, views: Sequence[SourceView], keys: Sequence[str], selection: Selection) -> None:
    """Add notes on rules that match fewer keys than meant, or that are not needed; raises PatternError."""
    matching_rules = rule_matcher(options.rules)
    used = {index for key in keys for index in matching_rules(key)}
    for index, rule in enumerate(options.rules):
        if index not in used:
            _check_unused(rule, views, keys, selection)
    if len(options.rules) <= LOOKED_DEEPER and not options.has_own_rules:
        rules = [(f"--map {rule.text}", rule.pattern) for rule in options.rules if rule.pattern is not None]
        selection.notes += deeper_notes(rules, keys)


def _check_unused(rule: Rule, views: Sequence[SourceView], keys: Sequence[str], selection: Selection) -> None:
    """Add a note on a rule that matches no key, if the rule is not needed; otherwise raise PatternError.

    It is not needed if it only strips a prefix that is stripped automatically.
    """
    if rule.pattern is None:
        return
    for view in views:
        heads = [part for part in view.source.stripped if "*" not in part]
        for end in range(len(heads), 0, -1):
            head = ".".join(heads[:end])
            if any(rule.apply(f"{head}.{key}") == key for key in list(view.tensors)[:1]):
                selection.notes.append(f"--map {rule.text} is not needed: its prefix is stripped automatically")
                return
    raise unmatched(f"--map {rule.text}", rule.pattern, keys, "source")


def _select_one(index: int, view: SourceView, options: Options, selection: Selection) -> Renaming:
    dropped = _dropped(view, options, selection)
    chosen = [key for key in view.tensors if key not in dropped and is_under(key, view.src)]
    renaming = (
        _with_parts(rename(chosen, options.rules), view, options.rules)
        if options.rules
        else Renaming({key: (key,) for key in chosen}, dict.fromkeys(chosen), ())
    )
    landed: dict[str, str] = {}
    for key, by in renaming.by.items():
        for name in renaming.names[key] if by is not None else (_moved(key, view),):
            other = landed.setdefault(name, key)
            if other != key:
                raise PlanError(
                    f"{escape(other)} and {escape(key)} of {escape(view.source.name)} both become {escape(name)}.",
                    hint="Leave one of the two out with --exclude, or rename them differently with --map.",
                )
            rule = f"--map {options.rules[by].text}" if by is not None else _spec_rule(view, key, name)
            origin = TensorOrigin(
                index, key, view.tensors[key], rule, view.made.get(key), view.codes.by_key.get(key), view.dtype_of(key)
            )
            selection.origins.setdefault(name, []).append(origin)
    if dropped:
        matching_rules = rule_matcher(options.rules)
        selection.excluded_keys += len(dropped)
    for key, why in dropped.items():
        for name in _names_of(key, view, [options.rules[place] for place in matching_rules(key)]):
            selection.excluded.setdefault(name, []).append(ExcludedKey(index, key, why))
    return renaming


def _with_parts(renaming: Renaming, view: SourceView, rules: Sequence[Rule]) -> Renaming:
    """Return ``renaming`` with new names for the parts of quantised tensors, too, if a rule renames the tensor itself.

    If another rule matches the key of a part, the first of the two rules decides. Raises PlanError if a part has no
    name that fits.
    """
    parts = {key: coded for key in renaming.names if (coded := view.codes.by_key.get(key)) and coded.name != key}
    if not parts:
        return renaming
    whole = rename(list(dict.fromkeys(coded.name for coded in parts.values())), rules)
    names, by = dict(renaming.names), dict(renaming.by)
    for key, coded in parts.items():
        own, rule = by[key], whole.by[coded.name]
        if rule is None or (own is not None and own <= rule):
            continue
        found = [(name, coded.part_named(name, coded.ending(key))) for name in whole.names[coded.name]]
        lacking = next((name for name, part in found if part is None), None)
        if lacking is not None:
            raise without_names(coded, lacking)
        names[key], by[key] = tuple(part for _, part in found if part is not None), rule
    return Renaming(names, by, tuple(sorted({*renaming.used, *whole.used})), {**whole.shadowed, **renaming.shadowed})


def without_names(coded: QuantisedTensor, name: str) -> PlanError:
    """Return the error for a quantised tensor whose parts cannot get names that fit its new ``name``."""
    mark = "." if "." in coded.name or "/" not in coded.name else "/"
    return PlanError(
        f"the tensor {escape(coded.name)} is quantised ({coded.method}), and its parts have no names that fit "
        f"{escape(name)}.",
        hint=f"Give the tensor a name that ends with {mark}{escape(coded.name.rpartition(mark)[2])}.",
        details=list(coded.keys),
    )


def _dropped(view: SourceView, options: Options, selection: Selection) -> dict[str, str]:
    """Return the keys that are left out, each with the option that excluded it."""
    if not (options.include or options.exclude or view.prefixes or view.src):
        return {}
    excludes = KeyMatcher([flag.pattern for flag in options.exclude])
    includes = KeyMatcher([flag.pattern for flag in options.include])
    dropped: dict[str, str] = {}
    for key in view.tensors:
        names = (key,) if key not in view.codes.by_key else (key, view.codes.by_key[key].name)
        hits = [hit for name in names for hit in excludes.match(name)]
        if hits:
            dropped[key] = str(options.exclude[min(hits)])
        elif options.include and not any(map(includes.match, names)):
            dropped[key] = "not in --include"
        elif not is_under(key, view.src):
            dropped[key] = f"not under src_key {view.src}"
    for prefix in view.prefixes:
        dropped.update(excluded_by_prefix(prefix, list(view.tensors), of=view.source.name, notes=selection.notes))
    if view.src:
        check_src_key(view.src, list(view.tensors))
    return dropped


def _spec_rule(view: SourceView, key: str, name: str) -> str:
    """Return the reason why a key has the new name ``name`` although no rule renames it; '' if it keeps its name.

    The reason is the source's PATH:src_key:dst_key, or the view's ``known_by`` if ``known`` has the key.
    """
    if key in view.known:
        return view.known_by
    return f"{view.source.name}:{view.src}:{view.dst}" if name != key else ""


def _moved(key: str, view: SourceView) -> str:
    """Return the new name of a key that no rule renames: its name in ``view.known``, else by src_key and dst_key."""
    return view.known[key] if key in view.known else renamed_by_spec(key, view.src, view.dst)


def _names_of(key: str, view: SourceView, rules: Sequence[Rule]) -> tuple[str, ...]:
    """Return the names that an excluded key would have had; its own name if a rule that matches it cannot be applied.

    ``rules`` are the rules that match the key.
    """
    for rule in rules:
        try:
            names = rule.names(key)
        except PatternError:
            return (key,)
        if names:
            return names
    return (_moved(key, view),)


def operation_fields(origin: TensorOrigin) -> dict[str, Any]:
    """Return the fields of a step that name the operations that made the source's tensor; {} without operations."""
    return {} if origin.made is None else {"operation": origin.made.operation, "made_of": origin.made.of}
