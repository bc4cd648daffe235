"""Patterns over keys, and rules: what a command or a line of a map file says."""

from ckptsurgeon.planning.keys.pattern import KeyPattern
from ckptsurgeon.planning.keys.pattern_hints import unmatched
from ckptsurgeon.planning.keys.renaming import KeyMatcher, rename
from ckptsurgeon.planning.keys.rules import parse_rule, rules_from_lines

from .target import Files, Target

KEYS = ["encoder.layers.0.w", "encoder.layers.11.b", "decoder.w", "a", "x[0].y", "\u00e9.w", "aaaaaaaaaaaaaaaa.b"]
SAID = {
    "patterns": "encoder.layers.*.w\n**.w\n{a,b}.*\nencoder.layers.{0..11}\n[!a]*\nre:enc(.*)\\.w\n\\*.?\n",
    "rules": "# names\nencoder.layers.{n}.*=x.{n+1}.*\ndecoder=\n=model\nre:a(.*)=b{1}\nx={y,z}\n**.w=**.{1}\n",
}


def run(data: bytes) -> None:
    """Each line is a pattern, or a rule where it has an equals sign."""
    for line in rules_from_lines(data.decode("utf-8", "surrogateescape").splitlines()[:20]):
        if "=" in line:
            rename(KEYS, [parse_rule(line)])
        elif not any(KeyMatcher([pattern := KeyPattern(line)]).hits(KEYS)):
            unmatched("--include", pattern, KEYS, "source")


def make() -> Files:
    """Each of the patterns and rules, and all of them."""
    whole = {f"{name}.txt": text.encode() for name, text in SAID.items()}
    return {
        **whole,
        **{f"{name}-{i}.txt": line.encode() for name, text in SAID.items() for i, line in enumerate(text.splitlines())},
    }


TARGET = Target(run, make)
