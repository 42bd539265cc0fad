"""Parts: rows of one source in a Parquet file sealed by modular encryption, one row group a bucket of subjects.

Uniform AES-256-GCM: footer and all columns (Apache Parquet, Encryption.md). The file's name is in the key and in the
authenticated data, so that a file under another name does not open.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from medray.artifacts.durable import new_file
from medray.artifacts.vault import Vault
from medray.errors import ArtifactError, IntegrityError
from medray.schema import (
    ASSET,
    FILE_ID,
    NUMBER,
    POSITION,
    RECORD_ID,
    SOURCE,
    SPLIT,
    SUBJECT_ID,
    TEXT,
    TIME,
    TIMESTAMP,
)

ASSET_TYPE = pa.struct(
    [
        ("pack", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("digest", pa.string()),
        ("dtype", pa.string()),
        ("shape", pa.list_(pa.int64())),
    ]
)
INSTANT = pa.timestamp("us", "UTC")
COMMON = pa.schema(
    [
        (SUBJECT_ID, pa.string()),
        (SPLIT, pa.string()),
        (SOURCE, pa.string()),
        (RECORD_ID, pa.string()),
        (TIME, INSTANT),
        (FILE_ID, pa.string()),
        (POSITION, pa.int64()),
        (ASSET, ASSET_TYPE),
    ]
)
TYPES = {NUMBER: pa.float64(), TEXT: pa.string(), TIMESTAMP: INSTANT}


class Description(BaseModel):
    """What a table's first ingest fixed.

    Attributes:
        num_buckets: of subjects; joins are local to a bucket.
        columns: source -> column (without `source.`) -> its type.
        dropped: source -> column -> why it is not in the table.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_buckets: int
    columns: dict[str, dict[str, Literal["number", "text", "time"]]]
    dropped: dict[str, dict[str, str]] = {}


class Part(BaseModel):
    """One file of rows.

    Attributes:
        name: of the file.
        rows: how many.
        size: bytes.
        packs: names of the packs that its rows' assets lie in.
        buckets: the bucket of each row group, ascending.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str
    rows: int
    size: int
    packs: tuple[str, ...] = ()
    buckets: tuple[int, ...] = ()


def bucket_of(subject_id: str, num_buckets: int) -> int:
    """The bucket of a subject: pseudonyms are uniform already."""
    return int(subject_id[:8], 16) % num_buckets


def schema_of(source: str, description: Description) -> pa.Schema:
    """The columns of a source's rows."""
    own = description.columns.get(source, {})
    return pa.schema([*COMMON, *(pa.field(f"{source}.{name}", TYPES[kind]) for name, kind in own.items())])


def write_part(vault: Vault, source: str, rows: pa.Table, schema: pa.Schema | None, num_buckets: int) -> Part:
    """Seal rows into a new file, durably; see `Table.write_part`."""
    import pyarrow.parquet as pq
    from pyarrow.parquet.encryption import create_encryption_properties

    rows = _conform(source, rows, schema)
    buckets = _buckets(rows, num_buckets)
    order = [(name, "ascending") for name in ("bucket", POSITION) if name in ("bucket", *rows.column_names)]
    rows = rows.append_column("bucket", pa.array(buckets, pa.int32())).sort_by(order).drop_columns("bucket")
    counts = dict(sorted(Counter(buckets).items()))

    name = f"part-{secrets.token_hex(16)}.parquet"
    sealed = create_encryption_properties(vault.key_for(name), aad_prefix=name.encode(), store_aad_prefix=False)
    path = vault.folder / name
    with (
        new_file(path) as file,
        pq.ParquetWriter(file, rows.schema, compression="zstd", encryption_properties=sealed) as writer,
    ):
        start = 0
        for count in counts.values():
            writer.write_table(rows.slice(start, count), row_group_size=count)
            start += count
    packs = pc.unique(pc.struct_field(rows.column(ASSET), "pack")).to_pylist() if ASSET in rows.column_names else []
    return Part(
        name=name,
        source=source,
        rows=rows.num_rows,
        size=path.stat().st_size,
        packs=tuple(sorted(pack for pack in packs if pack is not None)),
        buckets=tuple(counts),
    )


def read_part(
    vault: Vault, part: Part, buckets: Sequence[int] | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """Rows of one file, of some buckets and columns.

    Raises:
        IntegrityError: the file is missing, or was changed, cut or swapped.
    """
    import pyarrow.parquet as pq
    from pyarrow.parquet.encryption import create_decryption_properties

    path = vault.folder / part.name
    key = vault.key_for(part.name, make=False)
    opened = create_decryption_properties(key, aad_prefix=part.name.encode())
    wanted = None if buckets is None else set(buckets)
    groups = [group for group, bucket in enumerate(part.buckets) if wanted is None or bucket in wanted]
    try:
        with pq.ParquetFile(path, decryption_properties=opened) as file:
            if file.metadata.num_rows != part.rows or file.num_row_groups != len(part.buckets):
                raise IntegrityError(f"{path}: not the rows that were committed. Restore it from a backup.")
            there = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
            return file.read_row_groups(groups, columns=there, use_threads=False)
    except FileNotFoundError as error:
        raise IntegrityError(f"{path}: missing. Restore it from a backup.") from error
    except (OSError, pa.ArrowException) as error:
        raise IntegrityError(
            f"{path}: changed, swapped, cut or sealed under another key. Restore it from a backup."
        ) from error


def _conform(source: str, rows: pa.Table, schema: pa.Schema | None) -> pa.Table:
    """Rows with exactly the schema's columns, in its order and types."""
    if SOURCE not in rows.column_names:
        rows = rows.append_column(SOURCE, pa.array([source] * rows.num_rows, pa.string()))
    if schema is None:
        return rows
    unknown = [name for name in rows.column_names if name not in schema.names]
    if unknown:
        raise ArtifactError(f"{source}: column '{unknown[0]}' is not among those that the first ingest fixed")
    columns = []
    for field in schema:
        if field.name not in rows.column_names:
            columns.append(pa.nulls(rows.num_rows, field.type))
            continue
        try:
            columns.append(rows.column(field.name).cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            # Arrow's own words quote the cell
            raise ArtifactError(f"{source}: column '{field.name}' holds cells that are no {field.type}") from None
    return pa.table(columns, schema=schema)


def _buckets(rows: pa.Table, num_buckets: int) -> list[int]:
    """The bucket of each row; rows without a subject are in the first."""
    if SUBJECT_ID not in rows.column_names:
        return [0] * rows.num_rows
    return [bucket_of(subject, num_buckets) if subject else 0 for subject in rows.column(SUBJECT_ID).to_pylist()]
