"""ESPnet's form of a source, file:src_key:dst_key:exclude_keys, as the command line has it."""

from ckptsurgeon.storage.read.spec import parse_spec

from .target import Files, Target

SPECS = (
    "a.pth",
    "a.pth:encoder:enc",
    "a.pth:encoder.:enc:encoder.out, x,",
    "hf://org/repo@main/a.pth:x:y",
    "https://u:p@host:80/a:b",
)


def run(data: bytes) -> None:
    parse_spec(data.decode("utf-8", "surrogateescape"))


def make() -> Files:
    return {f"{number}.txt": spec.encode() for number, spec in enumerate(SPECS)}


TARGET = Target(run, make)
