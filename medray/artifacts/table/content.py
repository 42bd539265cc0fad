"""A digest of rows that depends on what they say only, not on the parts, chunks or buffers that they lie in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from medray.schema import ASSET, POSITION

if TYPE_CHECKING:
    import hashlib

ASSET_CONTENT = ("digest", "dtype")  # where an array lies says nothing about the row; the digest covers its shape


def update(digest: hashlib._Hash, source: str, rows: pa.Table) -> None:
    """Add a source's rows, ordered by position, to a digest; columns count by name, in any order."""
    if POSITION not in rows.column_names:  # rows without an order of their own
        flat = [name for name in sorted(rows.column_names) if not pa.types.is_nested(rows.schema.field(name).type)]
        rows = rows.sort_by([(name, "ascending") for name in flat])
    digest.update(f"{source}\0{rows.num_rows}\0".encode())
    for name in sorted(rows.column_names):
        column = rows.column(name)
        if name == ASSET and pa.types.is_struct(column.type):
            for field in ASSET_CONTENT:
                _add(digest, f"{name}.{field}", pc.struct_field(column, field))
        else:
            _add(digest, name, column)


def _add(digest: hashlib._Hash, name: str, column: Any) -> None:
    array = column.combine_chunks()
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    if not valid.any():  # a column that is null all over equals one that is not there
        return
    digest.update(f"{name}\0{array.type}\0".encode())
    digest.update(valid.tobytes())
    values = array.drop_null()
    if pa.types.is_nested(values.type):
        values = pa.array([str(value) for value in values.to_pylist()])
    if pa.types.is_string(values.type) or pa.types.is_binary(values.type) or pa.types.is_large_string(values.type):
        values = values.cast(pa.large_binary())
        digest.update(pc.binary_length(values).to_numpy(zero_copy_only=False).tobytes())
        digest.update(b"".join(values.to_pylist()))
    elif pa.types.is_temporal(values.type):
        digest.update(values.cast(pa.int64()).to_numpy(zero_copy_only=False).tobytes())
    else:
        digest.update(values.to_numpy(zero_copy_only=False).tobytes())
