"""Notes and errors on patterns, prefixes and rules that match no keys of the sources, or other keys than meant."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import PatternError, PlanError
from ...tensors.quantised.encoding import QuantisedTensor
from ...util.text import count, escape, listing
from ..keys.pattern import KeyPattern
from ..keys.pattern_hints import deeper_notes, unmatched
from ..keys.renaming import rule_matcher
from ..keys.rules import Rule
from ..plan.files import SourceView, is_under
from .options import Options
from .selection import Selection

__all__ = ["check_rules", "check_src_key", "excluded_by_prefix", "without_names"]

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


# Rules.

LOOKED_DEEPER = 20
"""With more rules than this, there are no notes on rules that would match many more keys with ``**.`` before them."""


def check_rules(options: Options, views: Sequence[SourceView], keys: Sequence[str], selection: Selection) -> None:
    """Add notes on rules that match fewer keys than meant, or that are not needed; raises PatternError."""
    matching_rules = rule_matcher(options.rules)
    used = {index for key in keys for index in matching_rules(key)}
    for index, rule in enumerate(options.rules):
        if index not in used:
            _check_unused(rule, views, keys, selection)
    if len(options.rules) <= LOOKED_DEEPER and not options.has_own_rules:
        rules = [(rule.given, rule.pattern) for rule in options.rules if rule.pattern is not None]
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
                selection.notes.append(f"{rule.given} is not needed: its prefix is stripped automatically")
                return
    raise unmatched(rule.given, rule.pattern, keys, "source")


def without_names(coded: QuantisedTensor, name: str) -> PlanError:
    """Return the error for a quantised tensor whose parts cannot get names that fit its new ``name``."""
    mark = "." if "." in coded.name or "/" not in coded.name else "/"
    return PlanError(
        f"the tensor {escape(coded.name)} is quantised ({coded.method}), and its parts have no names that fit "
        f"{escape(name)}.",
        hint=f"Give the tensor a name that ends with {mark}{escape(coded.name.rpartition(mark)[2])}.",
        details=list(coded.keys),
    )
