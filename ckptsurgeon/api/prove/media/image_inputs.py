"""Images as inputs of a network: prepared by the model's own image processor."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ....errors import ConfigError
from ....util.text import escape, listing
from .image_files import read_images
from .processors import open_processor

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["NEEDS_TEXT", "image_inputs"]

TAKEN = ("pixel_values", "flattened_patches", "image_pixel_values")
"""The names that models of transformers give to images in the arguments of their forward."""
SETTINGS = "preprocessor_config.json"
FILES = (SETTINGS, "processor_config.json")
"""The files that say how images are prepared; newer models have the second."""
SIDE = 1 << 16
"""A size of an image processor above this is a number of pixels, not a length, as Qwen2-VL's ``longest_edge``."""
MOST = 1 << 29
"""The largest number of values that images may have after processing; in float32, they take 2 GiB."""
NEEDS_TEXT = (
    "If the network needs text beside images, give both as tensors: --inputs FILE.safetensors, with input_ids and "
    "pixel_values."
)
"""The hint if a network that takes texts and images does not run on images."""


def image_inputs(path: str, module: nn.Module, folder: str) -> tuple[dict[str, Tensor], str]:
    """Return the arguments of ``forward`` for the images at ``path``, and a text on unused parts; "" if there are none.

    ``path`` is a file, or a folder with images, which make one batch. The values are those of AutoImageProcessor, with
    the settings in the model's ``folder``. Raises ConfigError if the model takes no images, if it has no image
    processor, or if the images cannot be read or processed.
    """
    known = inspect.signature(module.forward).parameters
    processor = _processor(path, module, folder)
    found = read_images(path)
    made = _processed(path, processor, found.images)
    arguments = {name: value for name, value in made.items() if name in known and isinstance(value, Tensor)}
    if not arguments:  # beside what forward takes, processors may return the sizes of the images, for their users
        raise _takes_none(path, module)
    return arguments, found.said


def _processor(path: str, module: nn.Module, folder: str) -> Any:
    """Return the image processor of a model; raises ConfigError if there is none, or if the model takes no images."""
    try:
        return open_processor(folder, "AutoImageProcessor")
    except ConfigError as error:
        if not set(TAKEN) & inspect.signature(module.forward).parameters.keys():
            raise _takes_none(path, module) from error
        if not any(os.path.isfile(os.path.join(folder, name)) for name in FILES):
            raise ConfigError(
                f"the folder {escape(folder)} has no {SETTINGS}, which says how images are prepared.",
                hint="Copy this file from the original model into the folder, or give pixel_values: --inputs "
                "FILE.safetensors.",
            ) from error
        raise


def _takes_none(path: str, module: nn.Module) -> ConfigError:
    names = listing(list(inspect.signature(module.forward).parameters), 8, where="")
    return ConfigError(
        f"{type(module).__name__} does not take the images of --inputs {escape(path)}.",
        hint=f"The arguments of its forward are {names}.",
    )


def _check_result(path: str, processor: Any, images: Sequence[Image]) -> None:
    """Raise ConfigError if the processed images would have too many values."""
    for step, name in (("do_resize", "size"), ("do_center_crop", "crop_size"), ("do_pad", "pad_size")):
        size = getattr(processor, name, None) if getattr(processor, step, None) is not False else None
        fields: Mapping[str, Any] = {key: one for key, one in dict(size).items() if one} if size else {}
        values = 3 * sum(_pixels(fields, image) for image in images)
        if values > MOST:
            raise ConfigError(
                f"the processed images of {escape(path)} would have {values:,} values, but at most {MOST:,} are "
                f"allowed: {name} of {SETTINGS} is {escape(str(dict(fields)))}.",
                hint=f"Give fewer images, or set a smaller {name}. If it has shortest_edge, images that are less long "
                "and narrow also help.",
            )


def _pixels(fields: Mapping[str, Any], image: Image) -> int:
    """Return the number of pixels of an image after it is resized by the settings ``fields``, or an upper limit."""
    longest = fields.get("longest_edge") or fields.get("max_width") or fields.get("max_height")
    if "height" in fields and "width" in fields:
        return int(fields["height"]) * int(fields["width"])
    if longest:
        return int(longest) if longest > SIDE else int(longest) ** 2
    short, long = sorted(image.size)
    edge = int(fields.get("shortest_edge", 0))
    return edge * max(edge, edge * long // short)


def _processed(path: str, processor: Any, images: Sequence[Image]) -> Mapping[str, Any]:
    """Return the result of an image processor for a batch of images, as tensors.

    Raises ConfigError if the result would be too large, or if the processor fails.
    """
    try:
        _check_result(path, processor, images)
        return _run(processor, images)
    except ConfigError:
        raise
    except Exception as error:  # a processor may raise anything, if its settings are wrong
        sizes = sorted({image.size for image in images})
        if len(sizes) > 1 and _runs_alone(processor, images[0]):
            shown = listing([f"{width} x {height}" for width, height in sizes], 3, where="")
            raise ConfigError(
                f"the images of {escape(path)} do not make one batch: their sizes are {shown}, and the model's image "
                "processor does not resize them to one size.",
                hint="Give images of one size.",
            ) from error
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"{type(processor).__name__} cannot process the images of {escape(path)}: {escape(said, 300)}",
            hint=f"Correct {SETTINGS}, or give pixel_values: --inputs FILE.safetensors.",
        ) from error


def _run(processor: Any, images: Sequence[Image]) -> Mapping[str, Any]:
    with torch.no_grad():
        return dict(processor(images=list(images), return_tensors="pt"))


def _runs_alone(processor: Any, image: Image) -> bool:
    try:
        return bool(_run(processor, [image]))
    except Exception:  # a processor may raise anything, as for a batch
        return False
