"""DICOM: radiographs, slices, ultrasound. A file is one record, one of many frames a record for each frame."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from medray import limits
from medray.errors import ReadError
from medray.readers import Reader, Records, Value, column_names, parsing
from medray.readers.dicom import columns, elements, finish, layout, pixels

if TYPE_CHECKING:
    from medray.synthetic import Persona


class Dicom(Reader):
    """Images of DICOM files (PS3.10), native or compressed; gray as stored and rescaled, colour as RGB.

    Columns are elements that are technical or clinical and identify nobody, PatientAge in years. Any other element is
    read where the study names it, as a key or in `columns`, by its keyword or as `gggg,eeee`. A window is not applied.

    Attributes:
        time: `recorded_at` is the acquisition's date and time, or else the content's, the series' or the study's.
    """

    modality: ClassVar[str] = "image"
    extra: ClassVar[str] = "imaging"
    library: ClassVar[str] = "pydicom"

    time: Value | None = columns.RECORDED_AT

    def own_subject(self) -> Value | None:
        """PatientID."""
        return "PatientID"

    def read(self, path: Path, *, assets: bool = True) -> Iterator[Records]:
        """One row a frame, some rows at a time.

        Raises:
            ReadError: no image, cut, of a layout that is not supported, over a budget, or with burned-in text.
            StudyError: the study names what is no DICOM keyword.
        """
        self.imported()
        _quiet()
        names = self.record_names()
        for value in self.columns.values():
            names |= column_names(value)
        tags = columns.tags(names) | layout.TAGS | finish.TAGS
        size = limits.check_file(path)
        with parsing(path, "not readable as DICOM"):
            file = path.open("rb")
        with file:
            with parsing(path, "not readable as DICOM"):
                header = elements.read(path, file, size, tags)
                if columns.is_burned_in(header):
                    raise ReadError(path, "identifying text is burned into its pixels (BurnedInAnnotation is YES)")
                found = layout.read(path, header)
                table = columns.table(header, names, found.frames)
            if not assets:
                yield Records(table, range(found.frames))
                return
            first = 0
            for frames in pixels.read(path, header, found):
                last = first + len(frames)
                yield Records(table.slice(first, len(frames)), range(first, last), frames)
                first = last

    @classmethod
    def synthesize(cls, folder: Path, personas: Sequence[Persona], seed: int) -> None:
        """`film_0000.dcm` for each persona with a film; every 200th file is cut."""
        from medray.readers.dicom import written

        cls.imported()
        written.films(folder, personas, seed)


@functools.cache
def _quiet() -> None:
    """What pydicom warns of and logs may quote an element: no one may read it."""
    from pydicom import config

    config.settings.reading_validation_mode = config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
