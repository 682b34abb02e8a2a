"""Preprocessing: the same pixels as the checkpoints' own image processors, from any image, or one clear error."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from intq.errors import IntqError
from intq.vision.preprocess import INTERPOLATIONS, Preprocess


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(5, 70),
    width=st.integers(5, 70),
    edge=st.integers(8, 48),
    crop=st.integers(4, 60),
    resample=st.sampled_from([2, 3]),
)
def test_pixels_are_those_of_transformers(height, width, edge, crop, resample):
    from transformers.models.mobilenet_v2.image_processing_pil_mobilenet_v2 import MobileNetV2ImageProcessorPil

    from intq.vision.huggingface import preprocess_from_config

    processor = MobileNetV2ImageProcessorPil(
        size={"shortest_edge": edge}, crop_size={"height": crop, "width": crop + 1}, resample=resample
    )
    ours = preprocess_from_config(processor.to_dict(), 3, "test")
    picture = photo(height, width)
    expected = processor(picture, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
    np.testing.assert_array_equal(ours.normalize(ours.pixels(picture)).transpose(2, 0, 1), expected)
    assert ours.size == (crop, crop + 1)


@pytest.mark.parametrize("edge", [64, 384])
def test_convnext_processor_crops_small_and_squeezes_large(edge):
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    from intq.vision.huggingface import preprocess_from_config

    processor = ConvNextImageProcessorPil(size={"shortest_edge": edge}, image_mean=[0.485, 0.456, 0.406])
    ours = preprocess_from_config(processor.to_dict(), 3, "test")
    picture = photo(90, 130)
    expected = processor(picture, return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(ours.normalize(ours.pixels(picture)).transpose(2, 0, 1), expected)


def test_old_configurations_and_switches():
    from intq.vision.huggingface import preprocess_from_config

    old = {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.875, "resample": 3}
    old |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    assert preprocess_from_config(old, 3, "x") == Preprocess(256, (224, 224), "bicubic")
    plain = preprocess_from_config({"do_resize": False, "do_normalize": False}, 3, "x")
    assert plain == Preprocess(None, None, "bilinear", (0.0,) * 3, (1.0,) * 3)
    # 1/127.5 without a mean is the range 0..2; the mean is in those units.
    raw = {"do_resize": False, "rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0}
    scaled = preprocess_from_config(raw, 3, "x")
    np.testing.assert_allclose((scaled.mean, scaled.std), 0.5)


@pytest.mark.parametrize(
    "change",
    [
        {"size": {"longest_edge": 4}},
        {"size": "big"},
        {"crop_size": {"height": 4}},
        {"resample": 9},
        {"do_pad": True},
        {"image_mean": [0.5]},
        {"image_std": [0.0, 1.0, 1.0]},
    ],
)
def test_settings_that_cannot_be_expressed_are_errors(change):
    from intq.vision.huggingface import preprocess_from_config

    config = {"image_processor_type": "MobileNetV2ImageProcessor", **change}
    with pytest.raises(IntqError):
        preprocess_from_config(config, 3, "folder")


def test_unknown_processor_must_say_everything():
    from intq.vision.huggingface import preprocess_from_config

    with pytest.raises(IntqError, match="lacks 'size'"):
        preprocess_from_config({"image_processor_type": "NewImageProcessor"}, 3, "folder")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "HSV"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_rgb_or_luminance(mode, channels):
    grey = Image.fromarray(np.arange(0, 64 * 4, 4, np.uint8).reshape(8, 8))
    if mode in ("I;16", "I"):
        picture = Image.fromarray((np.asarray(grey).astype(np.uint16) << 8) | 255)
        picture = picture if mode == "I;16" else picture.convert("I")
    else:
        picture = grey.convert("RGB").convert(mode)
    half = (0.5,) * channels
    pixels = Preprocess(None, None, "bilinear", half, half).pixels(picture)
    assert pixels.shape == (8, 8, channels) and pixels.dtype == np.uint8
    if mode in ("L", "LA", "RGB", "RGBA", "I;16", "I"):
        np.testing.assert_array_equal(pixels[:, :, 0], np.asarray(grey))


def test_transparent_palette_and_orientation():
    palette = photo(4, 6).quantize(16)
    keep = Preprocess(None, None)
    transparent = keep.pixels(encoded(palette, transparency=b"\0\xff"))
    np.testing.assert_array_equal(transparent, np.asarray(palette.convert("RGB")))
    picture = photo(4, 6)
    exif = Image.Exif()
    exif[274] = 6  # the camera was held on its side: turn by 90 degrees
    upright = keep.pixels(encoded(picture, exif=exif))
    np.testing.assert_array_equal(upright, np.rot90(np.asarray(picture), -1))


def test_sources_agree(tmp_path):
    picture = photo(30, 40)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture))
    preprocess = Preprocess(20, (16, 24))
    expected = preprocess.pixels(picture)
    assert expected.shape == (16, 24, 3)
    for source in (path, str(path), path.read_bytes(), np.asarray(picture)):
        np.testing.assert_array_equal(preprocess.pixels(source), expected)
    real = (expected / 255 - preprocess.mean) / preprocess.std
    np.testing.assert_allclose(preprocess.normalize(expected), real, atol=1e-6)  # float32 against float64


def test_small_image_is_padded_black():
    pixels = Preprocess(None, (6, 6)).pixels(np.full((3, 2, 3), 200, np.uint8))
    assert pixels.sum() == 3 * 2 * 3 * 200 and (pixels[2:5, 2:4] == 200).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_images_are_one_kind_of_error(data):
    content = bytearray(encoded(photo(16, 16), data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF"]))))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = Preprocess(8, (8, 8)).pixels(bytes(content))
    except IntqError as error:
        assert "does not decode as an image" in str(error)
    else:
        assert pixels.shape == (8, 8, 3)


def test_errors_name_the_file_and_the_channels(tmp_path):
    keep = Preprocess(None, None)
    path = tmp_path / "photo.jpg"
    with pytest.raises(IntqError, match=r"there is no image file .*photo\.jpg"):
        keep.pixels(path)
    path.write_bytes(encoded(photo(64, 64), "JPEG")[:900])
    with pytest.raises(IntqError, match=r"photo\.jpg does not decode"):
        keep.pixels(path)
    with pytest.raises(IntqError, match=r"takes pixels \(height, width, 3\).*\(8, 8, 4\)"):
        keep.pixels(np.zeros((8, 8, 4), np.uint8))
    with pytest.raises(IntqError, match=r"\(8, 8\)"):
        keep.pixels(np.zeros((8, 8), np.uint8))
    with pytest.raises(IntqError, match="uint8 pixels, not float32"):
        keep.pixels(np.zeros((8, 8, 3), np.float32))


@given(
    resize=st.none() | st.integers(1, 999) | st.tuples(st.integers(1, 999), st.integers(1, 999)),
    crop=st.none() | st.tuples(st.integers(1, 999), st.integers(1, 999)),
    interpolation=st.sampled_from(sorted(INTERPOLATIONS)),
    mean=st.floats(-2, 2),
    std=st.floats(0.01, 2),
    channels=st.sampled_from([1, 3]),
)
def test_json_round_trip(resize, crop, interpolation, mean, std, channels):
    preprocess = Preprocess(resize, crop, interpolation, (mean,) * channels, (std,) * channels)
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


@pytest.mark.parametrize(
    "change",
    [
        {"resize": 0},
        {"resize": [1, 2, 3]},
        {"resize": True},
        {"crop": 5},
        {"crop": [0, 4]},
        {"interpolation": "magic"},
        {"mean": [0.5]},
        {"mean": 0.5},
        {"std": [1, 1, 0]},
        {"std": ["1", 1, 1]},
        {"mean": [float("nan")] * 3},
        {"extra": 1},
    ],
)
def test_edited_json_is_an_error(change):
    with pytest.raises(IntqError, match="preprocessing"):
        Preprocess.from_dict(Preprocess().to_dict() | change)


def test_deployment_needs_no_torch():
    code = "import sys, intq.vision.preprocess; assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
