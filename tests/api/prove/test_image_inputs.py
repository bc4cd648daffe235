"""Images as inputs: the values of the model's own image processor, and errors for what cannot be read or processed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.api.prove.inputs import given_inputs
from ckptsurgeon.api.prove.media import folder_files, image_files, image_inputs
from ckptsurgeon.api.prove.media.image_files import read_images
from tests import ROOT

transformers = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
    "patch_size": 16,
}  # fmt: skip
OF_VIT = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 32, "width": 32},
    "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7],
}  # fmt: skip
OF_CLIP = {
    "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32},
    "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7],
}  # fmt: skip
OF_DETR = {"image_processor_type": "DetrImageProcessor"}


def settings(**fields: Any) -> None:
    Path("a").mkdir(exist_ok=True)
    Path("a/preprocessor_config.json").write_text(json.dumps(fields))


def vit(**fields: Any) -> Any:
    """A ViT in the folder ``a``, with its image processor."""
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, num_labels=3))
    model.save_pretrained("a")
    settings(**{**OF_VIT, **fields})
    return model


def clip_vision() -> Any:
    torch.manual_seed(0)
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES))
    model.save_pretrained("a")
    settings(**OF_CLIP)
    return model


def picture(width: int = 40, height: int = 50, seed: int = 0) -> Any:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def photos(names: Sequence[str] = ("2.png", "10.jpg", "1.webp", "3.bmp")) -> None:
    """Images of several sizes in the folder ``photos``."""
    Path("photos").mkdir()
    for number, name in enumerate(names):
        picture(40 + number, 50, number).save(f"photos/{name}")


def wanted(*paths: str) -> Any:
    """What the model's users get."""
    processor = transformers.AutoImageProcessor.from_pretrained("a")
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(transformers.image_utils.load_image(image))
    return processor(images, return_tensors="pt")["pixel_values"]


@pytest.mark.costly
@pytest.mark.parametrize("make", [vit, clip_vision])
def test_a_folder_of_images_is_one_batch_in_natural_order(make: Any) -> None:
    model = make()
    photos()
    found = given_inputs("photos", model, "a")
    assert list(found.arguments) == ["pixel_values"]
    assert torch.equal(
        found.arguments["pixel_values"], wanted(*(f"photos/{one}" for one in ("1.webp", "2.png", "3.bmp", "10.jpg")))
    )
    assert (found.said, found.notes) == ("pixel_values (4, 3, 32, 32) from photos", ())


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp", "bmp", "gif", "tif"])
def test_one_image_has_the_values_of_the_image_processor(suffix: str) -> None:
    model = vit()
    name = f"image.{suffix}"
    picture().save(name)
    assert torch.equal(given_inputs(name, model, "a").arguments["pixel_values"], wanted(name))


def test_settings_of_the_processor_count() -> None:
    model = vit()
    picture().save("a.png")
    first = given_inputs("a.png", model, "a").arguments["pixel_values"]
    settings(**{**OF_VIT, "image_mean": [0, 0, 0]})
    second = given_inputs("a.png", model, "a").arguments["pixel_values"]
    assert not torch.equal(first, second)
    assert torch.equal(second, wanted("a.png"))


def test_the_processor_of_newer_models_is_in_processor_config_json() -> None:
    model = vit()
    os.remove("a/preprocessor_config.json")
    Path("a/processor_config.json").write_text(json.dumps({"image_processor": OF_VIT}))
    picture().save("a.png")
    assert torch.equal(given_inputs("a.png", model, "a").arguments["pixel_values"], wanted("a.png"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_images_of_8_bits_become_rgb(mode: str) -> None:
    model = vit()
    picture().convert(mode).save("a.tif")
    with Image.open("a.tif") as image:
        assert image.mode == mode
    assert torch.equal(given_inputs("a.tif", model, "a").arguments["pixel_values"], wanted("a.tif"))


def test_16_bits_of_colour_become_8() -> None:
    """Of a PNG with three channels of 16 bits, Pillow reads the high bytes."""
    high = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    rows = b"".join(b"\0" + np.stack([row, 255 - row], -1).tobytes() for row in high)
    Path("a.png").write_bytes(png(5, 6, rows, depth=16))
    assert np.array_equal(np.asarray(read_images("a.png").images[0]), high)


def png(width: int, height: int, rows: bytes, depth: int = 8) -> bytes:
    """The bytes of a PNG in colour; ``rows`` are those of the filtered rows."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("mode", "dtype"), [("I;16", np.uint16), ("I", np.int32), ("F", np.float32)])
def test_grey_of_over_8_bits_is_an_error(mode: str, dtype: Any) -> None:
    model = vit()
    Image.fromarray(np.full((4, 4), 1000, dtype)).save("a.tif")
    with pytest.raises(cs.ConfigError, match=rf"a.tif has more than 8 bits per channel \(mode {mode}\)") as caught:
        given_inputs("a.tif", model, "a")
    assert "pixel_values: --inputs FILE.safetensors" in caught.value.hint


def test_a_photo_is_turned_upright() -> None:
    model = vit()
    exif = Image.Exif()
    exif[0x112] = 6
    picture(40, 50).save("a.jpg", exif=exif)
    assert read_images("a.jpg").images[0].size == (50, 40)
    assert torch.equal(given_inputs("a.jpg", model, "a").arguments["pixel_values"], wanted("a.jpg"))


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_an_animation_the_first_frame_is_used_and_said(suffix: str) -> None:
    model = vit()
    frames = [picture(seed=seed) for seed in range(3)]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    found = given_inputs(f"a.{suffix}", model, "a")
    assert found.said == f"pixel_values (1, 3, 32, 32) from a.{suffix} (only the first frame of a.{suffix})"
    assert torch.equal(found.arguments["pixel_values"], wanted(f"a.{suffix}"))
    if suffix != "gif":  # which has 256 colours
        assert np.array_equal(np.asarray(read_images(f"a.{suffix}").images[0]), np.asarray(frames[0]))


def test_other_files_and_folders_are_left_out_and_said() -> None:
    model = vit()
    photos(["a.png", "b.png"])
    for name in ("readme.md", "labels.csv", ".hidden.png"):
        Path("photos", name).write_text("")
    Path("photos/more.png").mkdir()
    found = given_inputs("photos/", model, "a")
    assert found.said == "pixel_values (2, 3, 32, 32) from photos (without 2 other files)"
    plan = cs.stats("a", inputs="photos/")
    assert f"the inputs are {found.said}" in plan.notes


@pytest.mark.long
def test_verbs_run_on_images(ckpt: Any) -> None:
    vit()
    photos()
    done = ckpt("prove", "a", "a", "--inputs", "photos")
    assert done.code == 0
    assert "pixel_values (4, 3, 32, 32) from photos" in done.out
    assert ckpt("prove", "a", "a", "--barrier", "--inputs", "photos").code == 0
    assert ckpt("stats", "a", "--inputs", "photos", "--gram", "--fisher", "-o", "stats.safetensors").code == 0
    others = "a=photos/2.png"
    assert (
        ckpt("stats", "a", "--inputs", "photos", "--gram", "--merged-with", others, "-o", "both.safetensors").code == 0
    )


def test_statistics_are_those_of_the_pixel_values() -> None:
    from safetensors.torch import save_file

    vit()
    photos(["1.png", "2.png"])
    save_file({"pixel_values": wanted("photos/1.png", "photos/2.png")}, "in.safetensors")
    for number, inputs in enumerate(["photos", "in.safetensors"]):
        cs.apply(cs.stats("a", inputs=inputs, gram=True), f"{number}.safetensors")
    assert cs.diff("0.safetensors", "1.safetensors").same


@pytest.mark.long
def test_a_decoder_gets_its_start_token() -> None:
    torch.manual_seed(0)
    decoder = transformers.TrOCRConfig(
        vocab_size=50, d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32,
        max_position_embeddings=40,
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**SIZES), decoder
    )
    config.decoder_start_token_id, config.pad_token_id = 2, 1
    transformers.VisionEncoderDecoderModel(config).save_pretrained("a")
    settings(**OF_VIT)
    photos()
    found = cs.prove("a", "a", inputs="photos")
    assert (found.verdict, "decoder_input_ids (4, 1)" in found.inputs) == ("SAME", True)


@pytest.mark.long
def test_a_network_that_needs_text_too_names_the_tensors() -> None:
    text = {
        "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=SIZES, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained("a")
    settings(**OF_CLIP)
    picture().save("a.png")
    with pytest.raises(cs.ConfigError, match="the network of a does not run") as caught:
        cs.prove("a", "a", inputs="a.png")
    assert "with input_ids and pixel_values" in caught.value.hint


@pytest.mark.parametrize("has_processor", [True, False])
def test_a_model_that_takes_no_images_is_an_error(has_processor: bool) -> None:
    sizes = {name: value for name, value in SIZES.items() if name not in ("image_size", "patch_size")}
    transformers.BertModel(transformers.BertConfig(vocab_size=8, **sizes)).save_pretrained("a")
    if has_processor:
        settings(**OF_VIT)
    picture().save("a.png")
    with pytest.raises(cs.ConfigError, match="BertModel does not take the images of inputs=.a.png.") as caught:
        cs.stats("a", inputs="a.png")
    assert caught.value.hint.startswith("The arguments of its forward are input_ids, attention_mask")


def test_a_folder_without_an_image_processor_is_an_error() -> None:
    vit()
    os.remove("a/preprocessor_config.json")
    picture().save("a.png")
    with pytest.raises(cs.ConfigError, match=r"the folder a has no preprocessor_config.json, which says how") as caught:
        cs.prove("a", "a", inputs="a.png")
    assert "or give pixel_values: --inputs FILE.safetensors" in caught.value.hint


@pytest.mark.parametrize(
    "fields",
    [
        {"size": "abc"},
        {"size": {"height": -5, "width": 3}},
        {"size": {"height": None, "width": "9"}},
        {"image_mean": [1, 2]},
        {"image_processor_type": "WhisperFeatureExtractor"},
        {"image_processor_type": "NoSuchImageProcessor"},
    ],
)
def test_wrong_settings_are_an_error(fields: dict[str, Any]) -> None:
    model = vit(**fields)
    photos()
    with pytest.raises(cs.ConfigError, match="cannot p"):  # prepare these inputs, or process the images
        given_inputs("photos", model, "a")


@pytest.mark.parametrize("text", ["{", "[]", "null", "1"])
def test_settings_that_are_no_object_are_an_error(text: str) -> None:
    model = vit()
    Path("a/preprocessor_config.json").write_text(text)
    picture().save("a.png")
    with pytest.raises(cs.ConfigError, match="AutoImageProcessor cannot prepare these inputs"):
        given_inputs("a.png", model, "a")


def test_no_code_of_the_folder_runs() -> None:
    """transformers has an image processor for the model: that is used."""
    model = vit(auto_map={"AutoImageProcessor": "own.Own"}, image_processor_type="Own")
    Path("a/own.py").write_text("open('ran', 'w').close()\nclass Own: ...\n")
    picture().save("a.png")
    try:
        given_inputs("a.png", model, "a")
    except cs.ConfigError as error:
        assert "AutoImageProcessor cannot prepare" in str(error)  # noqa: PT017 - either will do
    assert not Path("ran").exists()


def test_images_that_do_not_make_one_batch_are_an_error() -> None:
    model = vit(do_resize=False)
    photos(["1.png", "2.png"])
    said = "their sizes are 40 x 50, 41 x 50, and the model's image processor does not resize them to one size"
    with pytest.raises(cs.ConfigError, match=said):
        given_inputs("photos", model, "a")
    assert given_inputs("photos/1.png", model, "a").arguments["pixel_values"].shape == (1, 3, 50, 40)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_image_is_an_error(suffix: str, share: float) -> None:
    model = vit()
    picture().save(f"a.{suffix}")
    content = Path(f"a.{suffix}").read_bytes()
    Path(f"a.{suffix}").write_bytes(content[: int(share * len(content))])
    with pytest.raises(cs.ConfigError, match=rf"a\.{suffix} cannot be read as an image: \w+"):
        given_inputs(f"a.{suffix}", model, "a")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"hello", "it has none of the formats PNG, JPEG"),
        (png(0, 0, b""), "cannot be read as an image"),
    ],
)
def test_a_file_that_is_no_image_is_an_error(content: bytes, why: str) -> None:
    model = vit()
    photos(["1.png"])
    Path("photos/2.png").write_bytes(content)
    with pytest.raises(cs.ConfigError, match=f"photos/2.png .*{why}"):
        given_inputs("photos", model, "a")


def test_formats_that_are_not_listed_are_not_opened() -> None:
    """Pillow could read this PPM."""
    Path("a.png").write_bytes(b"P6 1 1 255\n\0\0\0")
    with pytest.raises(cs.ConfigError, match="a.png cannot be read as an image: it has none of the formats PNG, JPEG"):
        read_images("a.png")


def test_an_image_without_pixels_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (1, 1)).save("a.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.width", 0)
    with pytest.raises(cs.ConfigError, match=r"a.png has no pixels: its size is 0 x 1"):
        read_images("a.png")


@pytest.mark.parametrize("limit", [1500, 900])
def test_a_decompression_bomb_is_an_error(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow only warns below twice its limit."""
    model = vit()
    picture().save("a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(cs.ConfigError, match=f"a.png has too many pixels: Pillow's limit is {limit:,}"):
        given_inputs("a.png", model, "a")


def test_a_small_file_with_a_large_size_is_not_decoded() -> None:
    Path("a.png").write_bytes(png(50_000, 50_000, b""))
    with pytest.raises(cs.ConfigError, match="a.png has too many pixels: Pillow's limit is 89,478,485"):
        read_images("a.png")


def test_many_images_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    photos(["1.png", "2.png", "3.png"])
    monkeypatch.setattr(image_files, "MOST_PIXELS", 40 * 50 + 41 * 50)
    with pytest.raises(cs.ConfigError, match="the images in photos have more pixels than the limit of 4,050"):
        read_images("photos")
    monkeypatch.setattr(folder_files, "MOST", 2)
    with pytest.raises(cs.ConfigError, match="the folder photos has 3 images, but at most 2 are allowed"):
        read_images("photos")


@pytest.mark.parametrize(
    ("fields", "size", "values"),
    [
        ({"size": {"height": 200, "width": 300}}, (4, 4), 3 * 200 * 300),
        ({**OF_CLIP, "size": {"shortest_edge": 20}}, (1, 400), 3 * 20 * 20 * 400),
        ({**OF_CLIP, "crop_size": {"height": 200, "width": 200}}, (40, 50), 3 * 200**2),
        ({**OF_DETR, "size": {"shortest_edge": 20, "longest_edge": 200}}, (40, 50), 3 * 200**2),
    ],
)
def test_a_result_that_would_be_large_is_an_error(
    fields: dict[str, Any], size: tuple[int, int], values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vit(**fields)
    picture(*size).save("a.png")
    monkeypatch.setattr(image_inputs, "MOST", values - 1)
    said = f"the processed images of a.png would have {values:,} values, but at most {values - 1:,} are allowed"
    with pytest.raises(cs.ConfigError, match=said):
        given_inputs("a.png", model, "a")
    monkeypatch.setattr(image_inputs, "MOST", values)
    assert "pixel_values" in given_inputs("a.png", model, "a").arguments


def test_hostile_sizes_are_an_error() -> None:
    model = vit(size={"height": 10**6, "width": 10**6})
    picture().save("a.png")
    with pytest.raises(
        cs.ConfigError, match="would have 3,000,000,000,000 values, but at most 536,870,912 are allowed"
    ):
        given_inputs("a.png", model, "a")


def test_a_number_of_pixels_is_no_side() -> None:
    """Qwen2-VL states numbers of pixels as ``shortest_edge`` and ``longest_edge``."""
    fields = {"shortest_edge": 3136, "longest_edge": 12_845_056}
    assert image_inputs._pixels(fields, picture()) == 12_845_056


@pytest.mark.parametrize(
    ("path", "why"),
    [("none", "the folder none has neither images nor sounds"), ("a.png", "inputs=.a.png. does not exist")],
)
def test_missing_images_are_an_error(path: str, why: str) -> None:
    model = vit()
    Path("none/inner").mkdir(parents=True)
    picture().save("none/inner/a.png")
    with pytest.raises(cs.ConfigError, match=why):
        given_inputs(path, model, "a")


def test_what_is_no_regular_file_is_not_opened() -> None:
    os.mkfifo("a.png")
    with pytest.raises(cs.ConfigError, match="a.png cannot be read as an image: it is a FIFO, not a regular file"):
        read_images("a.png")


def test_without_pillow_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    picture().save("a.png")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(cs.ConfigError, match="images need the package pillow, which cannot be imported") as caught:
        read_images("a.png")
    assert caught.value.hint == "Run pip install 'ckptsurgeon[images]'."


@pytest.mark.long
def test_pillow_is_imported_for_images_alone() -> None:
    code = "import sys, ckptsurgeon.api.prove.inputs; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
