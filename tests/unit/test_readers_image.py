"""Images come upright, opaque and as deep as they were written, and nothing else of their files is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageOps
from PIL.PngImagePlugin import PngInfo

from medray.errors import ReadError
from medray.readers.image import Image

DRAW = np.random.default_rng(0)
DEEP = DRAW.integers(0, 65536, (20, 30), dtype=np.uint16)
GRAY = (DEEP >> 8).astype(np.uint8)
COLOUR = DRAW.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def read(path: Path) -> np.ndarray[Any, Any]:
    (records,) = Image(path="*").read(path)
    assert records.assets is not None
    return records.assets[0]


def saved(path: Path, pixels: np.ndarray[Any, Any], **options: Any) -> Path:
    Pillow.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("pixels", [GRAY, DEEP, COLOUR], ids=["gray", "deep", "colour"])
def test_lossless_pixels_come_back_as_they_were(suffix: str, pixels: np.ndarray[Any, Any], tmp_path: Path) -> None:
    found = read(saved(tmp_path / f"a.{suffix}", pixels))
    assert found.dtype == pixels.dtype
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits"])
def test_compressed_tiff_comes_back_as_it_was(compression: str, tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(saved(tmp_path / "a.tif", DEEP, compression=compression)), DEEP)


@pytest.mark.parametrize("pixels", [GRAY, DEEP], ids=["gray", "deep"])
def test_what_is_white_at_zero_is_turned_round(pixels: np.ndarray[Any, Any], tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", pixels, tiffinfo={262: 0})
    with Pillow.open(path) as picture:
        assert picture.tag_v2[262] == 0  # type: ignore[attr-defined]
    if pixels.dtype == np.uint16:  # Pillow writes the samples as they are, and turns 8 bits itself
        pixels = 65535 - pixels
    np.testing.assert_array_equal(read(path), pixels)


def test_jpeg_is_gray_or_colour_as_it_was_written(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8)
    gray = read(saved(tmp_path / "a.jpeg", smooth, quality=95))
    assert gray.shape == (64, 48)
    assert np.abs(gray.astype(int) - smooth).max() < 8
    assert read(saved(tmp_path / "b.jpg", np.stack([smooth] * 3, -1))).shape == (64, 48, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_upright(orientation: int, tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.jpeg", GRAY, exif=exif, quality=100)
    with Pillow.open(path) as picture:
        np.testing.assert_array_equal(read(path), np.asarray(ImageOps.exif_transpose(picture)))
    (survey,) = Image(path="*").read(path, assets=False)
    height, width = read(path).shape
    assert survey.columns.to_pylist() == [{"width": width, "height": height}]


def test_what_is_transparent_is_black(tmp_path: Path) -> None:
    alpha = np.full((20, 30), 255, np.uint8)
    alpha[:10] = 0
    found = read(saved(tmp_path / "a.png", np.dstack([COLOUR, alpha])))
    assert not found[:10].any()
    np.testing.assert_array_equal(found[10:], COLOUR[10:])
    gray = read(saved(tmp_path / "b.png", np.dstack([GRAY, alpha])))
    assert gray.shape == (20, 30)
    assert not gray[:10].any()
    np.testing.assert_array_equal(gray[10:], GRAY[10:])


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "I", "F"])
def test_other_modes_are_gray_or_rgb(mode: str, tmp_path: Path) -> None:
    picture = Pillow.fromarray(COLOUR if mode in {"P", "CMYK"} else GRAY).convert(mode)
    path = tmp_path / ("a.png" if mode == "P" else "a.tif")
    picture.save(path)
    found = read(path)
    assert found.shape == ((20, 30, 3) if mode in {"P", "CMYK"} else (20, 30))
    if mode in {"I", "F"}:
        np.testing.assert_array_equal(found, GRAY)


def test_only_the_size_is_a_column(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("Title", "Doe^Jane MRN1")
    (records,) = Image(path="*").read(saved(tmp_path / "a.png", GRAY, pnginfo=text))
    assert records.columns.to_pylist() == [{"width": 30.0, "height": 20.0}]


def test_pages_and_other_formats_are_refused_by_name(tmp_path: Path) -> None:
    pages = saved(tmp_path / "a.tif", GRAY, save_all=True, append_images=[Pillow.fromarray(GRAY)])
    with pytest.raises(ReadError, match="holds several pages; write each to a file of its own"):
        read(pages)
    Pillow.fromarray(GRAY).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    with pytest.raises(ReadError, match="no PNG, JPEG or TIFF image"):
        read(tmp_path / "a.png")
