"""Pictures from strangers, and the geometry of crops."""

import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bolid_sdk.errors import ImageError, OutputError
from bolid_sdk.images import crop_resize, from_signed, letterbox, normalise, open_image, save_png, to_signed


def bomb(path, width=50_000, height=50_000):
    """A PNG whose header promises 2.5 gigapixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    content = struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content + struct.pack(">I", 100) + b"IDAT" + bytes(100))
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (10_000, 10_000), (9_000, 9_000)])
def test_bombs_are_refused_by_their_header(tmp_path, width, height):
    with pytest.raises(ImageError, match="pixels"):
        open_image(bomb(tmp_path / "bomb.png", width, height))


def test_the_limit_is_a_setting(picture):
    assert open_image(picture(size=(10, 10)), max_pixels=100).size == (10, 10)
    with pytest.raises(ImageError, match="10 x 10 = 100 pixels"):
        open_image(picture(size=(10, 10)), max_pixels=99)


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    for name, message in (("text.png", "not a picture"), ("empty.png", "not a picture"), ("absent.png", "no such")):
        with pytest.raises(ImageError, match=message):
            open_image(tmp_path / name)
    with pytest.raises(ImageError, match="folder"):
        open_image(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_truncated_files_are_named(tmp_path, picture, suffix):
    path = tmp_path / f"whole.{suffix}"
    picture(size=(64, 64)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match="whole"):
        open_image(path)
    if suffix != "webp":
        with Image.open(path) as lazy, pytest.raises(ImageError, match="the given picture cannot be read"):
            open_image(lazy)


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=400),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBP", b"GIF89a"]),
)
def test_arbitrary_bytes_are_pictures_or_explained(tmp_path_factory, tail, head):
    path = tmp_path_factory.mktemp("fuzz") / "file"
    path.write_bytes(head + tail)
    with suppress(ImageError):
        assert open_image(path).mode == "RGB"


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "LAB", "HSV"])
def test_every_mode_becomes_rgb(mode):
    image = open_image(
        Image.new("RGB", (4, 4), (200, 30, 30)).convert(mode) if mode != "LAB" else Image.new("LAB", (4, 4))
    )
    assert image.mode == "RGB"


def test_transparency_shows_white():
    assert open_image(Image.new("RGBA", (2, 2), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(Image.new("LA", (2, 2), (0, 255))).getpixel((0, 0)) == (0, 0, 0)
    palette = Image.new("P", (2, 2), 0)
    palette.info["transparency"] = 0
    assert open_image(palette).getpixel((0, 0)) == (255, 255, 255)


def test_deep_grey_keeps_its_range():
    values = np.array([[0, 32768, 65535]], np.uint16)
    assert np.asarray(open_image(Image.fromarray(values)))[0, :, 0].tolist() == [0, 128, 255]


def test_exif_turns_the_picture(tmp_path):
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (10, 20)


def test_arrays_are_checked():
    for shape in ((3, 5, 3), (3, 5, 1), (3, 5)):
        assert open_image(np.full(shape, 7, np.uint8)).getcolors() == [(15, (7, 7, 7))]
    for array in (np.zeros((3, 5, 3), np.float32), np.zeros((3, 5, 4), np.uint8), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(ImageError, match="is no picture"):
            open_image(array)


@pytest.mark.parametrize("thing", [None, 5, object(), [1, 2]])
def test_what_is_neither_path_nor_picture_is_named(thing):
    with pytest.raises(ImageError, match=f"{type(thing).__name__} is no picture"):
        open_image(thing)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(8, 64), st.integers(8, 64))
def test_letterbox_maps_points_back(width, height, target_width, target_height):
    boxed, place = letterbox(Image.new("RGB", (width, height)), target_width, target_height)
    assert boxed.size == (target_width, target_height)
    corners = np.array([(0, 0), (1, 1)], np.float32)
    boxed_corners = corners * (place.width, place.height) + (place.left, place.top)
    np.testing.assert_allclose(place.to_source(boxed_corners), corners, atol=1e-4)
    assert 0 <= place.left <= place.left + place.width <= 1 + 1e-9
    assert 0 <= place.top <= place.top + place.height <= 1 + 1e-9


def test_crops_show_what_the_box_holds():
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[20:40, 60:80] = 255
    crop = crop_resize(Image.fromarray(pixels), np.array([[0.6, 0.2, 0.8, 0.4]]), 32)
    assert crop.shape == (1, 32, 32, 3)
    assert crop[0, 2:-2, 2:-2].min() > 250


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-50, 50), min_size=2, max_size=2),
    st.floats(0.01, 100),
    st.tuples(st.integers(1, 80), st.integers(1, 80)),
)
def test_any_box_gives_a_crop(corner, side, size):
    box = np.array([[*corner, corner[0] + side, corner[1] + side]])
    assert crop_resize(Image.new("RGB", size, (9, 9, 9)), box, 16).shape == (1, 16, 16, 3)


def test_outside_the_picture_is_grey():
    crop = crop_resize(Image.new("RGB", (10, 10)), np.array([[-1.0, -1.0, 1.0, 1.0]]), 8)
    assert (crop[0, :4] == 127).all()
    assert (crop[0, 4:, 4:] == 0).all()


def test_normalisation_is_the_formula():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    mean, std = np.array((0.48, 0.46, 0.41)), np.array((0.27, 0.26, 0.28))
    expected = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(normalise(pixels, mean, std), expected, atol=1e-5)
    np.testing.assert_array_equal(np.stack(from_signed(to_signed(pixels))), pixels)


def test_a_png_is_written_whole_or_not_at_all(tmp_path, picture):
    save_png(picture(), tmp_path / "a.png", {"bolid": "héllo"})
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["bolid"] == "héllo"
    with pytest.raises(OutputError, match="cannot write"):
        save_png(picture(), tmp_path / "absent" / "a.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError):
        save_png(picture(), tmp_path / "folder.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "folder.png"]
