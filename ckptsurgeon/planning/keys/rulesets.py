"""Rules that many people need, by name. A ruleset's rules apply where they match; it is an error when none does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ...errors import PatternError
from ...util.text import count
from .matcher import KeyMatcher
from .rules import Rule, parse_rule

__all__ = ["RULESETS", "rules_of_sets"]

RULESETS: Mapping[str, tuple[str, ...]] = {
    # torch.nn.utils.weight_norm against torch.nn.utils.parametrizations.weight_norm (torch 2.0)
    "weight-norm": (
        "**.weight_g=**.parametrizations.weight.original0",
        "**.weight_v=**.parametrizations.weight.original1",
    ),
    "weight-norm-old": (
        "**.parametrizations.weight.original0=**.weight_g",
        "**.parametrizations.weight.original1=**.weight_v",
    ),
    # torch.nn.parallel.DistributedDataParallel
    "ddp": ("module=",),
    # a LightningModule that keeps its network as self.model or self.net
    "lightning": ("model=", "net="),
    # torch.compile, of any number of modules in each other
    "compile": ("**._orig_mod.**=**.**",),
    # ESPnet's DeepSpeed trainer wraps its model, which is wrapped again when it is compiled
    "espnet-deepspeed": ("module._orig_mod=", "module="),
    # the two misspelled names that SpeechBrain's parameter_transfer mends
    "speechbrain": (
        "**.mutihead_attn.**=**.multihead_attn.**",
        "**.convs_intermedite.**=**.convs_intermediate.**",
    ),
}

_AGAIN = frozenset({"compile"})
"""Sets whose rules strip one wrapper of several: each application makes the key shorter."""


def rules_of_sets(names: Iterable[str], keys: Sequence[str]) -> list[Rule]:
    """Return the rules of named sets that match any of ``keys``.

    Raises PatternError for a name that is not known, and for a set of which no rule matches.
    """
    found: list[Rule] = []
    for name in names:
        if name not in RULESETS:
            raise PatternError(f"there is no ruleset {name!r:.60}.", hint=f"There are {', '.join(RULESETS)}.")
        rules = [replace(parse_rule(text), lenient=True, again=name in _AGAIN) for text in RULESETS[name]]
        hits = KeyMatcher([rule.pattern for rule in rules if rule.pattern is not None]).hits(keys)
        matching = [rule for rule, hit in zip(rules, hits, strict=True) if hit]
        if not matching:
            raise PatternError(
                f"--ruleset {name} matches none of the {count(len(keys), 'source key')}.",
                hint=f"Its rules are {', '.join(RULESETS[name])}.",
            )
        found += matching
    return found
