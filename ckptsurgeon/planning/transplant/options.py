"""The options of a transplant, parsed and checked before any source is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...errors import ConfigError, PatternError
from ...tensors.dtypes import dtype_named
from ...util.text import brief_repr, escape
from ..keys.pattern import OptionPattern, with_equals
from ..keys.rules import Rule, parse_rule
from ..mismatch.policy_text import MISMATCH_POLICIES, parse_policy
from .vocabulary import VocabularyOptions

__all__ = ["MismatchPolicies", "Options", "parse_mismatch"]

MISSING_POLICIES = ("init", "error")


@dataclass(frozen=True)
class MismatchPolicies:
    """The policies for tensors whose shapes differ: ``everywhere`` applies to all tensors, ``scoped`` to some.

    ``scoped`` has pairs of a pattern and a policy. If several patterns match a tensor, the last pair decides.
    """

    everywhere: str = "error"
    scoped: tuple[tuple[OptionPattern, str], ...] = ()


@dataclass(frozen=True)
class Options:
    """The options of a transplant, parsed and checked.

    ``has_own_rules`` is true if ckpt made the ``rules``, for a layout: then there are no notes on patterns that match
    few keys.
    """

    include: tuple[OptionPattern, ...] = ()
    exclude: tuple[OptionPattern, ...] = ()
    rules: tuple[Rule, ...] = ()
    rulesets: tuple[str, ...] = ()
    mismatch: MismatchPolicies = MismatchPolicies()
    reinit: tuple[OptionPattern, ...] = ()
    drop_last: int = 0
    require: tuple[OptionPattern, ...] = ()
    on_missing: str = "init"
    strict: bool = False
    dtype: str = ""
    vocabulary: VocabularyOptions | None = None
    has_own_rules: bool = False

    @staticmethod
    def of(
        *,
        include: Iterable[str] | None = (),
        exclude: Iterable[str] | None = (),
        rules: Iterable[str] | None = (),
        rulesets: Iterable[str] | None = (),
        on_mismatch: str | Mapping[str, str] | Sequence[str] | None = (),
        reinit: Iterable[str] | None = (),
        drop_last: int = 0,
        require: Iterable[str] | None = (),
        on_missing: str = "init",
        strict: bool = False,
        dtype: str | None = None,
    ) -> Options:
        """Return the options from what a user wrote; raises PatternError or ConfigError for wrong values."""
        if on_missing not in MISSING_POLICIES:
            raise ConfigError(f"--on-missing {escape(str(on_missing))} is unknown.", hint="Use init or error.")
        return Options(
            include=_flags("--include", include),
            exclude=_flags("--exclude", exclude),
            rules=tuple(parse_rule(rule) for rule in _texts(rules)),
            rulesets=tuple(_texts(rulesets, "--ruleset")),
            mismatch=parse_mismatch(on_mismatch),
            reinit=_flags("--reinit", reinit),
            drop_last=_number("--drop-last", drop_last),
            require=_flags("--require", require),
            on_missing=on_missing,
            strict=strict,
            dtype=dtype_named(dtype) if dtype and dtype != "keep" else dtype or "",
        )


def _texts(values: Iterable[str] | None, option: str = "rules") -> list[str]:
    """Return the given string or strings as a list, empty for None; raises ConfigError for other types."""
    try:
        found = [values] if isinstance(values, str) else list(values or ())
    except TypeError:
        found = [values]  # type: ignore[list-item]
    for value in found:
        if not isinstance(value, str):
            raise ConfigError(f"{option} must be strings, not {brief_repr(value)}.")
    return found


def _number(option: str, value: int) -> int:
    if type(value) is not int or value < 0:
        raise ConfigError(
            f"{option} {brief_repr(value)} is not a valid number of layers.", hint="Use a whole number of 1 or more."
        )
    return value


def _flags(option: str, patterns: Iterable[str] | None, behind: str = "") -> tuple[OptionPattern, ...]:
    found = []
    for text in _texts(patterns, option):
        if not text:
            raise PatternError(f"{option} is empty.", hint="Write a key, a module or a pattern after the option.")
        found.append(OptionPattern.of(option, text, behind))
    return tuple(found)


def parse_mismatch(policies: str | Mapping[str, str] | Sequence[str] | None) -> MismatchPolicies:
    """Return the policies for shapes that differ, from the value that the user gave.

    ``init`` applies to all tensors, ``ctc.**=init`` or ``{"ctc.**": "init"}`` to those that the pattern matches. Raises
    ConfigError for unknown policies, or for two different policies for all tensors.
    """
    if isinstance(policies, Mapping):
        pairs = [(_one_text(pattern) or None, _one_text(policy)) for pattern, policy in policies.items()]
    else:
        pairs = [_scoped(text) for text in _texts(policies, "--on-mismatch")]
    everywhere, scoped = "", []
    for pattern, policy in pairs:
        try:
            policy = str(parse_policy(policy))
        except ConfigError as error:
            written = policy if pattern is None else f"{pattern}={policy}"
            hint = with_equals(written, MISMATCH_POLICIES) or error.hint
            raise ConfigError(f"--on-mismatch {escape(written)}: {error.message}", hint=hint) from None
        if pattern is None:
            if everywhere not in ("", policy):
                raise ConfigError(
                    f"--on-mismatch {everywhere} and --on-mismatch {policy} contradict each other.",
                    hint="Keep one, or scope one of them: --on-mismatch GLOB=POLICY.",
                )
            everywhere = policy
        else:
            scoped.append((_flags("--on-mismatch", [pattern], f"={policy}")[0], policy))
    return MismatchPolicies(everywhere or "error", tuple(scoped))


def _one_text(value: object) -> str:
    return _texts([value], "--on-mismatch")[0]  # type: ignore[list-item]


def _scoped(text: str) -> tuple[str | None, str]:
    """Return the pattern and the policy in ``GLOB=POLICY``; the pattern is None if the text is only a policy.

    The text is split at the last "=" with the name of a policy after it, since arguments of a policy also contain "=".
    """
    places = [at for at, char in enumerate(text) if char == "="]
    known = [at for at in places if re.split("[^a-z0-9-]", text[at + 1 :])[0] in MISMATCH_POLICIES]
    if text.partition(":")[0] in MISMATCH_POLICIES or not places:
        return None, text
    if known:
        return text[: known[-1]], text[known[-1] + 1 :]
    head, colon, arguments = text.rpartition(":")  # a misspelled policy, perhaps with arguments
    pattern, equals, policy = head.rpartition("=") if colon else ("", "", "")
    if equals:
        return pattern, f"{policy}:{arguments}"
    pattern, _, policy = text.rpartition("=")
    return pattern, policy
