"""Folders that are made on the way, and are taken away again where it was for nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ...errors import OutputError
from ...util.text import escape

__all__ = ["check_no_links", "making_folders"]


@contextmanager
def making_folders() -> Iterator[Callable[[str], None]]:
    """Give what makes a folder with its parents; when the block fails, those that it made are removed."""
    made: list[str] = []

    def make(folder: str) -> None:
        path = os.path.abspath(folder)
        while not os.path.lexists(path):
            made.append(path)
            path = os.path.dirname(path)
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {escape(folder)}: {error.strerror}.") from error

    try:
        yield make
    except BaseException:
        for path in sorted(made, key=len, reverse=True):
            with suppress(OSError):
                os.rmdir(path)
        raise


def check_no_links(folder: str, name: str) -> None:
    """Raise OutputError where the way from a folder to a file in it leads through a link: it may lead out of it."""
    parts = name.split("/")[:-1]
    for depth in range(1, len(parts) + 1):
        path = os.path.join(folder, *parts[:depth])
        if os.path.islink(path):
            raise OutputError(f"{escape(path)} is a link; nothing is written through it.", hint="Name another folder.")
