"""torch's tar archives: as they come, and each member in turn in an archive that is sound otherwise."""

from ..helpers.tar_files import archive, parts
from .target import Files, Target, kept, written

LOOK = written("x.pt")


def run(data: bytes) -> None:
    """The first byte says which member; one beyond them, that it is the archive."""
    members = sorted(name for name in kept("tars") if name != "archive")
    if data and data[0] < len(members):
        files = {name: kept("tars")[name] for name in members}
        LOOK(archive({**files, members[data[0]]: data[1:]}))
    else:
        LOOK(data[1:])


def make() -> Files:
    return {"archive": archive(parts()), **parts()}


def inputs(files: Files) -> list[bytes]:
    members = sorted(name for name in files if name != "archive")
    return [b"\xff" + files["archive"], *(bytes([number]) + files[name] for number, name in enumerate(members))]


TARGET = Target(run, make, inputs)
