"""Reads one image, or all images of a folder, as transformers' ``load_image`` does, with limits on number and size."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ....errors import ConfigError
from ....storage.small_files import open_file
from ....util.text import count, escape, listing
from .folder_files import files_of

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SUFFIXES", "Images", "read_images"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""The formats that Pillow may read: for others, it runs programs, such as Ghostscript for EPS."""
MOST_PIXELS = 1 << 29
"""The largest number of pixels of all images; decoded, they take 1.5 GiB."""
CLIPPED = ("I", "F")
"""The first letters of modes with more than 8 bits per channel: their values over 255 become white in RGB."""


@dataclass(frozen=True)
class Images:
    """Images in RGB; ``left_out`` counts other files of the folder, ``animated`` names files with several frames."""

    images: Sequence[Image]
    left_out: int = 0
    animated: Sequence[str] = ()

    @property
    def said(self) -> str:
        """The parts of the file or folder that are not used, as text; '' if all parts are used."""
        several = f"only the first frame of {listing(self.animated, 3, where='')}" if self.animated else ""
        others = f"without {count(self.left_out, 'other file')}" if self.left_out else ""
        return ", ".join(filter(None, (several, others)))


def read_images(path: str) -> Images:
    """Return the image in a file, or the images in a folder in natural order; subfolders are not read.

    Images are turned upright (EXIF) and converted to RGB, and transparency is dropped, as in transformers'
    ``load_image``: https://github.com/huggingface/transformers/blob/main/src/transformers/image_utils.py. Raises
    ConfigError if Pillow is missing, if a file is not a complete image with 8 bits per channel, or if there are more
    images or pixels than the limits allow.
    """
    _check_pillow()
    names, left_out = files_of(path, SUFFIXES, "images")
    images, animated, pixels = [], [], 0
    for name in names:
        with _opened(name) as image:
            pixels += image.width * image.height
            _check_pixels(path, pixels)
            images.append(_upright(image))
            animated += [os.path.basename(name)] if getattr(image, "is_animated", False) else []
    return Images(images, left_out, animated)


def _check_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"images need the package pillow, which cannot be imported: {error}.",
            hint="Run pip install 'ckptsurgeon[images]'.",
        ) from error


def _check_pixels(path: str, pixels: int) -> None:
    if pixels > MOST_PIXELS:
        raise ConfigError(
            f"the images in {escape(path)} have more pixels than the limit of {MOST_PIXELS:,}.",
            hint="Give fewer or smaller images.",
        )


@contextmanager
def _opened(path: str) -> Iterator[Image]:
    """Open an image for a ``with`` block; any exception in the block, such as a decoding error, becomes ConfigError."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as damaged EXIF fields
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with open_file(path) as file, Image.open(file, formats=FORMATS) as image:
                _check_kind(path, image)
                yield image
    except ConfigError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ConfigError(
            f"{escape(path)} has too many pixels: Pillow's limit is {Image.MAX_IMAGE_PIXELS:,}.",
            hint="Give a smaller image.",
        ) from error
    except Exception as error:  # decoders raise many kinds of errors for damaged files
        raise ConfigError(
            f"{escape(path)} cannot be read as an image: {_reason(path, error)}.",
            hint="Give a complete image file, or convert it to PNG.",
        ) from error


def _reason(path: str, error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, OSError) and error.strerror:  # it cannot be opened
        return escape(error.strerror)
    if not os.path.getsize(path):
        return "it is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"it has none of the formats {', '.join(FORMATS)}"
    return escape(" ".join(str(error).split()).rstrip(".") or type(error).__name__, 200)


def _check_kind(path: str, image: Image) -> None:
    """Raise ConfigError if an image has no pixels, or more than 8 bits per channel."""
    if not image.width * image.height:
        raise ConfigError(f"{escape(path)} has no pixels: its size is {image.width} x {image.height}.")
    if image.mode.startswith(CLIPPED):
        raise ConfigError(
            f"{escape(path)} has more than 8 bits per channel (mode {image.mode}), which ckpt cannot convert.",
            hint="Convert the image to 8 bits as for training, or give pixel_values: --inputs FILE.safetensors.",
        )


def _upright(image: Any) -> Image:
    from PIL import ImageOps

    found: Image = ImageOps.exif_transpose(image).convert("RGB")
    return found
