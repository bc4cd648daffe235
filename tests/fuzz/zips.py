"""zip archives as torch's: entries, headers, places; one with its pickle deflated."""

import io
import zipfile

from ..hostile.bombs import SIX_FLOATS, model_with, tensor, zipped
from .target import Files, Target, written


def deflated() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", model_with(tensor()), zipfile.ZIP_DEFLATED)
        archive.writestr("archive/data/0", bytes(24))
    return out.getvalue()


def make() -> Files:
    return {"stored.pth": zipped(model_with(tensor()), **SIX_FLOATS), "deflated.pth": deflated()}


TARGET = Target(written("x.pth"), make)
