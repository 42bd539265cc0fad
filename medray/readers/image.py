"""Images: PNG, JPEG, TIFF. A file is one record; keys come from its path, or from a table that names it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from medray import limits
from medray.errors import ReadError
from medray.readers import Reader, Records, parsing

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as Picture

    from medray.synthetic import Persona

    Array = np.ndarray[Any, Any]

FORMATS = ("PNG", "JPEG", "TIFF")
_SIXTEEN = frozenset(("I;16", "I;16L", "I;16B", "I;16N"))
_ITEM_BYTES = {"1": 1, "F": 4, "I": 4, **dict.fromkeys(_SIXTEEN, 2)}
_TURNED, _PHOTOMETRIC, _WHITE_IS_ZERO = 0x0112, 262, 0


class Image(Reader):
    """Gray (H, W) or RGB (H, W, 3) pixels of 8 bits, gray ones of up to 16 bits or as float as they are.

    Turned as the EXIF orientation says; what is transparent is black; of 16-bit colour the upper 8 bits. Texts, dates
    and places within the file are never read. Columns: `width` and `height` in pixels.
    """

    modality: ClassVar[str] = "image"
    library: ClassVar[str] = "PIL"

    def read(self, path: Path, *, assets: bool = True) -> Iterator[Records]:
        """One row.

        Raises:
            ReadError: no image, cut, several pages, or over a budget.
        """
        import pyarrow as pa
        from PIL import Image as Pillow
        from PIL import JpegImagePlugin, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError  # noqa: F401 - plugins

        with parsing(path, "not readable as an image"):
            size = limits.check_file(path)
            try:
                with path.open("rb") as file, Pillow.open(file, formats=FORMATS) as picture:
                    _check(path, picture, size)
                    orientation = _orientation(picture)
                    width, height = picture.size if orientation not in range(5, 9) else picture.size[::-1]
                    pixels = _pixels(picture, orientation) if assets else None
            except UnidentifiedImageError:
                raise ReadError(path, "no PNG, JPEG or TIFF image") from None
            except Pillow.DecompressionBombError:
                raise ReadError(path, "announces more pixels than Pillow takes: a decompression bomb") from None
            columns = pa.table({"width": [float(width)], "height": [float(height)]})
        yield Records(columns, range(1), None if pixels is None else [pixels])

    @classmethod
    def synthesize(cls, folder: Path, personas: Sequence[Persona], seed: int) -> None:
        """`<number>.png` of 16 bits or `.jpeg` of 8, with a name in its metadata, in a folder of the outcome."""
        from PIL import Image as Pillow
        from PIL.PngImagePlugin import PngInfo

        for number, persona in enumerate(personas):
            if not persona.has_film:
                continue
            draw = random.Random(f"image {seed} {persona.mrn}")  # noqa: S311 - synthetic data, not a secret
            place = folder / ("died" if persona.died else "survived")
            place.mkdir(parents=True, exist_ok=True)
            film = persona.film(seed=seed)
            if draw.random() < 1 / 2:
                text = PngInfo()
                text.add_text("Title", f"{persona.name} {persona.mrn}")
                Pillow.fromarray(film * 16).save(place / f"{number:04d}.png", pnginfo=text, compress_level=1)
            else:
                exif = Pillow.Exif()
                exif[0x010E] = f"{persona.name}, born {persona.birth_date}"  # ImageDescription
                exif[0x0132] = persona.recorded_at.replace("-", ":")  # DateTime
                turned = draw.random() < 1 / 4
                picture = Pillow.fromarray((film >> 4).astype("uint8"))
                if turned:  # a phone held upside down
                    exif[_TURNED] = 3
                    picture = picture.rotate(180)
                picture.save(place / f"{number:04d}.jpeg", exif=exif, quality=92)


def _check(path: Path, picture: Picture, size: int) -> None:
    """Budgets and pages, before a pixel is decoded."""
    if picture.format == "TIFF" and getattr(picture, "n_frames", 1) > 1:
        raise ReadError(path, "holds several pages; write each to a file of its own")
    bands, item = len(picture.getbands()), _ITEM_BYTES.get(picture.mode, 1)
    shape = (*picture.size[::-1], bands)
    limits.check_array(path, shape, item)
    limits.check_inflation(path, size, shape[0] * shape[1] * bands * item)


def _orientation(picture: Picture) -> int:
    """1 to 8. Of a PNG only where it stands before the pixels: Pillow would decode them to look behind."""
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1
    return int(picture.getexif().get(_TURNED, 1))


def _pixels(picture: Picture, orientation: int) -> Array:
    import numpy as np

    mode = picture.mode
    if mode == "1":
        picture = picture.convert("L")
    elif mode in {"PA", "La", "RGBa"} or (mode == "P" and "transparency" in picture.info):
        picture = picture.convert("RGBA")
    elif mode in {"P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"}:
        picture = picture.convert("RGB")
    pixels = np.asarray(picture)
    if mode in _SIXTEEN:
        pixels = pixels.astype(np.uint16)
        if picture.format == "TIFF" and picture.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # type: ignore[attr-defined]
            pixels = 65535 - pixels
    elif mode == "I":
        pixels = _narrowed(pixels)
    if picture.mode in {"LA", "RGBA"}:
        pixels = _opaque(pixels)
    return _turned(pixels, orientation)


def _narrowed(pixels: Array) -> Array:
    """32-bit whole numbers as 16 bits where they fit, which is what they mostly come from."""
    low, high = int(pixels.min()), int(pixels.max())
    return pixels.astype("uint16") if low >= 0 and high < 1 << 16 else pixels


def _opaque(pixels: Array) -> Array:
    """Colour or gray over black: what lies under transparent pixels was not meant to be seen."""
    import numpy as np

    colour, alpha = pixels[..., :-1], pixels[..., -1:]
    if alpha.min() < 255:
        colour = np.rint(colour * (alpha / np.float32(255))).astype(np.uint8)
    return np.ascontiguousarray(colour[..., 0] if colour.shape[-1] == 1 else colour)


def _turned(pixels: Array, orientation: int) -> Array:
    """EXIF 2.3 section 4.6.4 A: where the first row and column of the stored image belong."""
    import numpy as np

    if orientation in range(5, 9):
        pixels = pixels.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
