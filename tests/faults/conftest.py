"""The world of a test: inputs in the working directory, a hub to fetch from, and a place to write to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ..helpers.hub.server import Hub
from .disks import Disk, disk
from .outputs import World, write_inputs

Mount = Callable[..., Disk]


@pytest.fixture
def world(tmp_path: Path, hub: Hub) -> World:
    """A world whose place is a folder of the disk the tests run on."""
    write_inputs(hub)
    place = tmp_path / "place"
    place.mkdir()
    return World(place, hub)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mount a file system of a kind: ``mount("ext4", mb=64)``; all are unmounted after the test."""
    with ExitStack() as stack:

        def mounted(kind: str, *, mb: int, below: Path = tmp_path, options: str = "") -> Disk:
            return stack.enter_context(disk(kind, mb, below, options))

        yield mounted
