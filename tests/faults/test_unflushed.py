"""What was written into memory and cannot be put on the disk: the disk under the file system fills up."""

from __future__ import annotations

import pytest

from ..promises.clauses import UNFLUSHED, clause
from .conftest import Mount
from .outputs import OUTPUTS, Output, World, each

pytestmark = [pytest.mark.faults, clause(UNFLUSHED)]


@each([one for one in OUTPUTS if one.name != "cache of the hub"])
def test_what_cannot_be_flushed_is_not_put_in_place(output: Output, world: World, mount: Mount) -> None:
    under = mount("tmpfs", mb=20)
    disk = mount("ext4 without journal", mb=64, below=under.place)
    cut = world.at(disk.place)
    if output.before:
        cut.written(output, output.before)
    filler = under.fill(left=200_000)
    done = cut.run(output, "new")
    assert done.returncode == 5, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    filler.unlink()
    assert output.state(cut) in (output.before, "old")
    cut.settle(output)
