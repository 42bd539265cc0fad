"""Packs: the arrays of one task in one file, each zstd-compressed, then sealed in chunks that open one by one.

A chunk is AES-256-GCM under the pack's own key, the STREAM construction (Hoang et al. 2015): the nonce is the array's
offset, the chunk's number and whether it is the last, so that no chunk opens at another place and no end is missed. The
key is that of the pack's name, and a name is used once: no nonce is ever used twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from medray.artifacts.durable import named
from medray.artifacts.vault import Vault
from medray.errors import ArtifactError, IntegrityError
from medray.governance.crypto import TAG_BYTES

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

CHUNK_BYTES = 1 << 20  # memory stays small, and the cost of a tag is 16 in a million
LEVEL = 1  # of zstd: beyond it, images shrink by per cents at several times the cost
MAX_OPEN = 32  # packs held open by one process


class PackWriter:
    """A new pack; a context manager. Nothing of it may be committed before its context ended.

    Raises:
        ArtifactError: from `append` and at the end, when the disk is full, read-only or broken.
    """

    def __init__(self, vault: Vault) -> None:
        self.name = f"pack-{secrets.token_hex(16)}.mrb"
        self._path = vault.folder / self.name
        self._cipher = AESGCM(vault.key_for(self.name))
        self._descriptor = -1
        self._offset = 0
        self._codec = pa.Codec("zstd", LEVEL)

    def append(self, array: Array) -> dict[str, Any]:
        """Seal one array of a numeric or boolean dtype; returns what the row's asset column holds."""
        import numpy as np

        if array.dtype.hasobject:
            raise ArtifactError("only arrays of numbers can be sealed")
        if self._descriptor < 0:  # a task without arrays leaves no file
            with named(self._path):
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        packed = memoryview(self._codec.compress(pa.py_buffer(raw), asbytes=True))
        chunks = max(1, math.ceil(len(packed) / CHUNK_BYTES))
        length = 0
        for number in range(chunks):
            plain = packed[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
            sealed = self._cipher.encrypt(_nonce(self._offset, number, number == chunks - 1), plain, None)
            with named(self._path):
                _write(self._descriptor, sealed)
            length += len(sealed)
        asset = {
            "pack": self.name,
            "offset": self._offset,
            "length": length,
            "digest": _digest(array, raw),
            "dtype": array.dtype.str,
            "shape": list(array.shape),
        }
        self._offset += length
        return asset

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor < 0:
            return
        try:
            with named(self._path):
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)
            self._descriptor = -1


class PackReader:
    """Opens arrays of a table's packs; keeps the packs that were used last open."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._open: OrderedDict[str, tuple[int, AESGCM]] = OrderedDict()
        self._lock = threading.Lock()  # a pack may not be closed while another thread reads it

    def load(self, asset: Mapping[str, Any]) -> Array:
        """The array that an asset names, read-only.

        Raises:
            IntegrityError: see `Table.load_asset`.
        """
        import numpy as np

        where = f"{self._vault.folder / asset['pack']} at byte {asset['offset']}"
        with self._lock:
            descriptor, cipher = self._pack(asset["pack"])
            sealed = memoryview(os.pread(descriptor, asset["length"], asset["offset"]))
        if len(sealed) != asset["length"]:
            raise IntegrityError(f"{where}: cut to {len(sealed)} of {asset['length']} bytes. Restore it from a backup.")
        step = CHUNK_BYTES + TAG_BYTES
        chunks = max(1, math.ceil(len(sealed) / step))
        try:
            packed = b"".join(
                cipher.decrypt(
                    _nonce(asset["offset"], number, number == chunks - 1),
                    sealed[number * step : (number + 1) * step],
                    None,
                )
                for number in range(chunks)
            )
        except (InvalidTag, ValueError) as error:
            raise IntegrityError(f"{where}: changed, swapped or of another row. Restore it from a backup.") from error
        dtype, shape = np.dtype(asset["dtype"]), tuple(asset["shape"])
        try:
            raw = pa.Codec("zstd").decompress(packed, math.prod(shape) * dtype.itemsize, asbytes=True)
            array: Array = np.frombuffer(raw, dtype).reshape(shape)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise IntegrityError(f"{where}: not the {dtype} array of shape {shape} that the row names.") from error
        if _digest(array, memoryview(raw)) != asset["digest"]:
            raise IntegrityError(f"{where}: holds the array of another row. Restore it from a backup.")
        return array

    def _pack(self, name: str) -> tuple[int, AESGCM]:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        path = self._vault.folder / name
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise IntegrityError(f"{path}: missing. Restore it from a backup.") from error
        self._open[name] = (descriptor, AESGCM(self._vault.key_for(name, make=False)))
        if len(self._open) > MAX_OPEN:
            os.close(self._open.popitem(last=False)[1][0])
        return self._open[name]

    def __del__(self) -> None:
        for descriptor, _ in self._open.values():
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _nonce(offset: int, number: int, last: bool) -> bytes:
    return offset.to_bytes(7, "big") + number.to_bytes(4, "big") + bytes([last])


def _digest(array: Array, raw: memoryview) -> str:
    """SHA-256 over dtype, shape and bytes: equal arrays, equal digests."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(raw)
    return digest.hexdigest()


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
