"""What is fuzzed: a reader, and sound inputs for it, which ``fixtures/fuzz`` keeps.

A reader is one file of this folder with a ``TARGET``. ``make fuzz`` mutates its inputs guided by coverage (atheris),
``tests/hostile/test_mutated.py`` at random; whatever comes of that is read or refused with an error of ours.
"""

from __future__ import annotations

import importlib
import io
import os
import pkgutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import ckptsurgeon as cs

from ..helpers.torch_files import rezipped

KEPT = Path(__file__).parents[2] / "fixtures/fuzz"
"""A folder of sound files for each target, written by ``python -m tests.fuzz.seeds``."""

ARCHIVES = (".pt", ".pth", ".ckpt", ".pt2")
"""Sound files that are changed record by record: a zip's checksums keep changes of its bytes from its readers."""

Files = Mapping[str, bytes]
_MADE: list[tempfile.TemporaryDirectory[str]] = []
NOT_READERS = ("target", "seeds", "report")


@dataclass(frozen=True)
class Target:
    """``run`` reads one input; ``make`` makes sound files, of which ``inputs`` makes inputs."""

    run: Callable[[bytes], object]
    make: Callable[[], Files]
    inputs: Callable[[Files], Sequence[bytes]] = lambda files: [files[name] for name in sorted(files)]


def names() -> list[str]:
    """What there is to fuzz."""
    found = [module.name for module in pkgutil.iter_modules([os.path.dirname(__file__)])]
    return [name for name in found if name not in NOT_READERS and not name.startswith("_")]


def target_of(name: str) -> Target:
    found = importlib.import_module(f"tests.fuzz.{name}").TARGET
    assert isinstance(found, Target)
    return found


@cache
def kept(name: str) -> Files:
    """The sound files of a target, by their names."""
    return {path.name: path.read_bytes() for path in sorted((KEPT / name).iterdir())}


def inputs_of(name: str) -> Sequence[bytes]:
    return target_of(name).inputs(kept(name))


def read(path: str) -> None:
    """Open a checkpoint and read its first tensors."""
    with cs.open_checkpoint(path) as found:
        for key in list(found)[:3]:
            found.tensor(key)


def written(name: str, use: Callable[[str], object] = read) -> Callable[[bytes], None]:
    """Read an input as a file of this name."""

    @cache
    def path() -> Path:
        return Path(_made_folder(), name)

    def run(data: bytes) -> None:
        path().write_bytes(data)
        use(str(path()))

    return run


def beside(target: str, name: str, use: Callable[[str], object]) -> Callable[[bytes], None]:
    """Read an input as a file of this name, in a folder with the sound files of a target, where ``use`` runs."""

    def run(data: bytes) -> None:
        with chdir(_folder(target)):
            Path(name).write_bytes(data)
            use(name)

    return run


def in_parts(target: str, use: Callable[[str], object] = read, path: str = ".") -> Callable[[bytes], None]:
    """Read the sound files of a target with one part replaced: a file, or a record of an archive of torch's.

    The first byte says which. ``use`` is given the path, as seen from their folder.
    """

    def run(data: bytes) -> None:
        files = kept(target)
        parts = parts_of(files)
        name, record = parts[data[0] % len(parts)] if data else parts[0]
        with chdir(_folder(target)):
            Path(name).write_bytes(_with_record(files[name], record, data[1:]) if record else data[1:])
            try:
                use(path)
            finally:
                Path(name).write_bytes(files[name])

    return run


def _made_folder() -> str:
    """A folder that goes when Python ends."""
    _MADE.append(tempfile.TemporaryDirectory())
    return _MADE[-1].name


@cache
def _folder(target: str) -> str:
    folder = _made_folder()
    for name, data in kept(target).items():
        Path(folder, name).write_bytes(data)
    return folder


def parts_of(files: Files) -> list[tuple[str, str]]:
    """The parts of sound files: (file, "") or (file, record), in order."""
    return [(name, record) for name in sorted(files) for record in _records(name, files[name])]


def _records(name: str, data: bytes) -> Sequence[str]:
    if not (name.endswith(ARCHIVES) and data.startswith(b"PK")):
        return [""]
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        return found.namelist()


def _with_record(archive: bytes, record: str, content: bytes) -> bytes:
    """An archive with other content in one record, its checksum made anew."""
    return rezipped(archive, lambda name, old: content if name == record else old)


def numbered(files: Files) -> Sequence[bytes]:
    """The inputs for parts of a whole: behind the number of a part, its content."""
    return [bytes([number]) + _content(files[name], record) for number, (name, record) in enumerate(parts_of(files))]


def _content(data: bytes, record: str) -> bytes:
    if not record:
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        return found.read(record)


def ending(*suffixes: str) -> Callable[[Files], Sequence[bytes]]:
    """The inputs among sound files: those of these suffixes."""
    return lambda files: [files[name] for name in sorted(files) if name.endswith(suffixes)]


def files_of(folder: str) -> Files:
    """The files that lie in a folder."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
