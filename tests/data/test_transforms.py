import io

import numpy as np
import pytest
from image_files import picture
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from ldmlab.data.transforms import centre_square, prepare, to_rgb


@pytest.mark.parametrize("size", [(50, 30), (30, 50), (31, 64), (20, 20), (7, 9), (16, 37)])
def test_resize_and_crop_agree_with_torchvision(size):
    image = picture(0, size)
    expected = F.center_crop(F.resize(image, 16, InterpolationMode.BICUBIC, antialias=True), [16, 16])
    assert np.array_equal(centre_square(image, 16), expected)


def test_centre_crop_alone_takes_the_middle_pixels():
    image = picture(1, (12, 8))
    assert np.array_equal(prepare(image, 8), np.asarray(image)[:, 2:10].transpose(2, 0, 1))


def test_image_of_the_right_size_is_bit_exact():
    image = picture(2)
    assert np.array_equal(prepare(image, 8), np.asarray(image).transpose(2, 0, 1))


def test_downscaling_averages_instead_of_picking_pixels():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    inner = prepare(Image.fromarray(stripes), 8)[:, :, 1:-1].astype(int)
    assert abs(inner - 127.5).max() < 10


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "CMYK", "YCbCr", "P", "LA", "RGBA"])
def test_every_mode_becomes_rgb_uint8(mode):
    result = prepare(picture(3, (10, 12)).convert(mode), 8)
    assert result.dtype == np.uint8
    assert result.shape == (3, 8, 8)


def test_grey_has_three_equal_channels():
    result = prepare(picture(4).convert("L"), 8)
    assert np.array_equal(result[0], result[1])
    assert np.array_equal(result[0], result[2])


def test_transparency_is_composited_on_white():
    pixels = np.array([[[200, 100, 0, 0], [200, 100, 0, 255], [200, 100, 0, 51]]], dtype=np.uint8)
    result = np.asarray(to_rgb(Image.fromarray(pixels, "RGBA")))[0]
    # 51/255 = 0.2: 0.2 * 200 + 0.8 * 255 = 244, 0.2 * 100 + 0.8 * 255 = 224, 0.8 * 255 = 204
    assert result.tolist() == [[255, 255, 255], [200, 100, 0], [244, 224, 204]]


def test_grey_with_alpha_is_composited_on_white():
    pixels = np.array([[[10, 0], [10, 255]]], dtype=np.uint8)
    assert np.asarray(to_rgb(Image.fromarray(pixels, "LA")))[0].tolist() == [[255] * 3, [10] * 3]


def test_transparent_colour_of_a_palette_becomes_white():
    image = Image.new("P", (2, 1))
    image.putpalette([1, 2, 3, 200, 0, 0])
    image.putdata([0, 1])
    stream = io.BytesIO()
    image.save(stream, "PNG", transparency=1)
    with Image.open(stream) as reread:
        assert reread.mode == "P"
        assert np.asarray(to_rgb(reread))[0].tolist() == [[1, 2, 3], [255, 255, 255]]


def test_sixteen_bit_grey_keeps_its_upper_byte():
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    with Image.open(stream) as reread:
        assert np.asarray(to_rgb(reread))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_exif_orientation_turns_the_image():
    image = picture(5, (8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    stream = io.BytesIO()
    image.save(stream, "PNG", exif=exif)
    with Image.open(stream) as reread:
        assert np.array_equal(to_rgb(reread), np.rot90(np.asarray(image), -1))


def test_floats_without_a_range_are_refused():
    with pytest.raises(ValueError, match="mode F"):
        prepare(Image.new("F", (8, 8)), 8)
