"""Adds the saved step, and the command that continues the run, to the hint of an error that ends a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import OutputError, SourceError
from ...util.text import escape
from ..folder.run_folder import RunFolder

__all__ = ["hint_at_saved"]


@contextmanager
def hint_at_saved(folder: RunFolder) -> Iterator[None]:
    """If the block raises an error about a sound or the disk, make its hint say how the run can continue."""
    try:
        yield
    except (SourceError, OutputError) as error:
        saved, goes_on = folder.saved_steps, f"ckpt train --run {escape(folder.path)} --resume goes on"
        if saved and isinstance(error, OutputError):
            error.hint = f"{error.hint} Step {saved[-1]} is saved, and {goes_on}.".lstrip()
        elif saved:
            error.hint = (
                f"Replace it by a valid sound of the same length: step {saved[-1]} is saved, and {goes_on} with the "
                "same clips. To train without this clip, start another run."
            )
        raise
