"""Files that survive a power cut: written beside, fsynced, renamed, folder fsynced. Files 0600, folders 0700."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from medray.errors import ArtifactError


def make_folder(folder: Path) -> Path:
    """`folder`, made with those above it that are missing, for its owner only."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make a file's bytes durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Say which file it was that the disk did not take."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written ({error.strerror or error}). Make room, and repeat.") from error


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A new file for its owner only; its bytes are durable when the context ends, its name once the folder is.

    Raises:
        ArtifactError: the disk is full, read-only or broken; what was written is deleted.
    """
    with named(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(descriptor)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Put `data` at `path`: after a crash either the old or the new content is there, whole.

    Raises:
        ArtifactError: the disk is full, read-only or broken; the old content is there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with named(path):
        make_folder(path.parent)
        with new_file(temporary) as file:
            file.write(data)
        temporary.rename(path)
        fsync_folder(path.parent)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
