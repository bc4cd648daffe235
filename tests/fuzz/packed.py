"""Archives with a checkpoint among other files: ESPnet's zip, NeMo's tar."""

import io
import tarfile
import zipfile

from ..hostile.bombs import SIX_FLOATS, model_with, tensor, zipped
from .target import Files, Target, written

META = b"espnet: '1'\nfiles:\n  asr_model_file: exp/asr.pth\n"


def make() -> Files:
    weights = zipped(model_with(tensor()), **SIX_FLOATS)
    packed, nemo = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in (("meta.yaml", META), ("exp/asr.pth", weights)):
            archive.writestr(zipfile.ZipInfo(name), data)
    with tarfile.open(fileobj=nemo, mode="w") as made:
        for name, data in (("./model_config.yaml", b"a: 1"), ("./model_weights.ckpt", weights)):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), {"mtime": "1.5"}
            made.addfile(info, io.BytesIO(data))
    return {"espnet.zip": packed.getvalue(), "model.nemo": nemo.getvalue()}


TARGET = Target(written("x.zip"), make)
