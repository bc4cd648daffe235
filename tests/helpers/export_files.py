"""Archives of torch.export made record by record, sound ones and others."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["archive", "entry", "integers", "program"]


def integers(numbers: Sequence[Any]) -> list[dict[str, Any]]:
    """Sizes or strides as torch.export writes them."""
    return [{"as_int": one} for one in numbers]


def entry(path: Any, sizes: Sequence[Any] = (2, 3), strides: Sequence[Any] = (3, 1), **other: Any) -> dict[str, Any]:
    """The description of a tensor; ``other`` has entries of the metadata, and ``use_pickle``."""
    meta = {
        "dtype": 7, "sizes": integers(sizes), "requires_grad": True, "device": {"type": "cpu", "index": None},
        "strides": integers(strides), "storage_offset": {"as_int": 0}, "layout": 7,
    }  # fmt: skip
    pickled = other.pop("use_pickle", False)
    return {"path_name": path, "is_param": True, "use_pickle": pickled, "tensor_meta": {**meta, **other}}


def archive(records: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of these records."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as made:
        for name, data in records.items():
            made.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


def program(
    weights: Mapping[str, Any],
    records: Mapping[str, bytes],
    constants: Mapping[str, Any] | None = None,
    method: int = zipfile.ZIP_STORED,
) -> bytes:
    """An archive with one program; ``records`` has its further records, in the folder ``m``."""
    own = {
        "data/weights/model_weights_config.json": json.dumps({"config": weights}).encode(),
        "data/constants/model_constants_config.json": json.dumps({"config": constants or {}}).encode(),
        "models/model.json": b"{}",
        "archive_format": b"pt2",
        "archive_version": b"0",
        "byteorder": b"little",
    }
    return archive({f"m/{name}": data for name, data in {**own, **records}.items()}, method)
