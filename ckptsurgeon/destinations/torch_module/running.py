"""Runs the code that a user's configuration names: where it is found, what it may not do, which file it lies in."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from ...util.text import brief_repr
from .._document import Document

__all__ = ["own_file", "user_code"]


@contextmanager
def user_code(document: Document) -> Iterator[None]:
    """Let modules be found in the working directory and the configuration's folder, for this time only.

    What the code prints goes to stderr: stdout is for answers. It may neither end the program nor leave it in
    another folder.
    """
    before, here = list(sys.path), os.getcwd()
    folder = os.path.abspath(document.folder)
    sys.path[:0] = list(dict.fromkeys([here, folder]))
    try:
        with redirect_stdout(sys.stderr):
            yield
    except SystemExit as error:
        raise document.fail(f"its code ended the program: sys.exit({brief_repr(error.code, 40)}).") from error
    finally:
        sys.path[:] = before
        os.chdir(here)


def own_file(module: Any) -> str:
    """Return the file of a module, '' where it is installed or part of Python."""
    path = getattr(module, "__file__", None)
    if not path:
        return ""
    installed = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    if any(os.path.realpath(path).startswith(f"{folder}{os.sep}") for folder in installed):
        return ""
    near = os.path.relpath(path)
    return str(path) if near.startswith("..") else near
