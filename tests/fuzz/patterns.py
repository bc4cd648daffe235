"""Patterns over keys and renaming rules: what is asked for, and a few keys."""

from tests.fuzz.target import fuzz

# isort: split
# what is imported before atheris is not instrumented
from ckptsurgeon.keys import KeyPattern, parse_rule, rename

KEYS = ["encoder.layers.0.w", "encoder.layers.11.b", "decoder.w", "a", "", "a..b", "x[0].y", "\u00e9.w"]


def run(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")[:400]
    pattern = KeyPattern(text.partition("=")[0])
    for key in KEYS:
        pattern.captures(key)
    if "=" in text:
        rename(KEYS, [parse_rule(text)])


if __name__ == "__main__":
    fuzz(
        run,
        [
            b"encoder.layers.*.w",
            b"**.w",
            b"{a,b}.*=c.{1}",
            b"encoder.layers.{n:0-5}.*=x.{n+1}.*",
            b"re:a(.*)=b\\1",
            b"[!a]*",
        ],
    )
