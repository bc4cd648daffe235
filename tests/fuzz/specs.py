"""ESPnet's form of a source: file:src_key:dst_key:exclude_keys."""

from tests.fuzz.target import fuzz

# isort: split
# what is imported before atheris is not instrumented
from ckptsurgeon.sources.spec import parse_spec

SEEDS = [
    b"a.pth",
    b"a.pth:encoder:encoder",
    b"a.pth:encoder:encoder:encoder.out,x",
    b"hf://org/repo@main/a.pth:x:y",
    b"C:\\a.pth:x",
]

if __name__ == "__main__":
    fuzz(lambda data: parse_spec(data.decode("utf-8", "surrogateescape")), SEEDS)
