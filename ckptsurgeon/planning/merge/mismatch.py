"""What becomes of a model whose shape is another than the output's: everywhere, or by pattern."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import ConfigError
from ...util.text import brief_repr, escape
from ..keys.hints import matched
from ..transplant.options import Flag, with_equals

__all__ = ["MERGE_POLICIES", "MergeMismatch"]

MERGE_POLICIES = ("error", "skip", "slice", "overlap")


@dataclass(frozen=True)
class MergeMismatch:
    """The policy for all tensors, and scoped ones, of which the last that matches a key wins."""

    everywhere: str = "error"
    scoped: tuple[tuple[Flag, str], ...] = ()

    @staticmethod
    def of(given: str | Mapping[str, str] | Sequence[str]) -> MergeMismatch:
        """Read ``slice``, ``GLOB=slice``, several of them, or a map of patterns to policies; raises ConfigError."""
        pairs = (
            given.items() if isinstance(given, Mapping) else map(_pair, [given] if isinstance(given, str) else given)
        )
        everywhere, scoped = "", []
        for pattern, policy in pairs:
            if policy not in MERGE_POLICIES:
                hint = with_equals(str(policy), MERGE_POLICIES) or f"Use {', '.join(MERGE_POLICIES)}."
                raise ConfigError(f"--on-mismatch {escape(str(policy))} is unknown.", hint=hint)
            if pattern:
                scoped.append((Flag.of("--on-mismatch", pattern, f"={policy}"), policy))
            elif everywhere not in ("", policy):
                raise ConfigError(
                    f"--on-mismatch {everywhere} and --on-mismatch {policy} contradict each other.",
                    hint="Keep one, or scope one of them: --on-mismatch GLOB=POLICY.",
                )
            else:
                everywhere = policy
        return MergeMismatch(everywhere or "error", tuple(scoped))

    def by_key(self, keys: Sequence[str]) -> tuple[dict[str, str], list[str]]:
        """Return the policy of each key for which it is a scoped one, and notes on the patterns.

        Raises PatternError for one that matches none.
        """
        found: dict[str, str] = {}
        hits, notes = matched([(str(flag), flag.pattern) for flag, _ in self.scoped], keys, "output")
        for (_, policy), hit in zip(self.scoped, hits, strict=True):
            found.update(dict.fromkeys(hit, policy))
        return found, notes


def _pair(text: object) -> tuple[str, str]:
    if not isinstance(text, str):
        raise ConfigError(f"--on-mismatch takes texts, not {brief_repr(text)}.")
    pattern, _, policy = text.rpartition("=")
    return pattern, policy
