"""Vault: a folder of sealed files under a random key of its own, which the installation's keyring wraps.

Each file's key is derived from the folder's key and the file's name, so that a file under another name does not open.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from medray.artifacts.durable import fsync_folder, make_folder, write_bytes
from medray.errors import ArtifactError, IntegrityError
from medray.governance.crypto import KEY_BYTES, Keyring, derive, made_once, open_sealed, seal

KEY_FILE = "key.json"
MAX_BYTES = (1 << 31) - 1  # AES-GCM in one piece; larger data go into packs


class Vault:
    """A folder of sealed files; picklable by reference. What is sealed knows the folder's name: do not rename it."""

    def __init__(self, folder: Path, keyring: Keyring) -> None:
        self.folder = Path(folder)
        self.keyring = keyring
        self._key: bytes | None = None

    def __reduce__(self) -> tuple[type[Vault], tuple[Path, Keyring]]:
        return (Vault, (self.folder, self.keyring))

    def key_for(self, name: str, *, make: bool = True) -> bytes:
        """The key of one file.

        Args:
            name: of the file.
            make: give the folder a key if it has none; False in reading, where a missing one is a loss.

        Raises:
            IntegrityError: the folder's key is lost, was changed, or was wrapped by another installation.
        """
        if self._key is None:
            self._key = self._folder_key(make)
        return derive(self._key, name)

    def write(self, name: str, data: bytes) -> None:
        """Seal `data` into a file, durably.

        Raises:
            ArtifactError: more than 2 GiB.
        """
        write_bytes(self.folder / name, self._sealed(name, data))

    def write_once(self, name: str, data: bytes) -> bytes:
        """What is sealed in a file, which is made of `data` if it is not there; all who race get the same."""
        self.key_for(name)
        made_once(self.folder / name, self._sealed(name, data))
        return self.read(name)

    def read(self, name: str) -> bytes:
        """What was sealed into a file.

        Raises:
            ArtifactError: there is no such file.
            IntegrityError: it was changed, cut or swapped.
        """
        try:
            sealed = (self.folder / name).read_bytes()
        except FileNotFoundError as error:
            raise ArtifactError(f"{self.folder / name}: missing. Make the artifact again with --force.") from error
        return open_sealed(self.key_for(name, make=False), sealed, self._context(name))

    def _sealed(self, name: str, data: bytes) -> bytes:
        if len(data) > MAX_BYTES:
            raise ArtifactError(
                f"{self.folder / name}: {len(data):,} bytes do not fit one sealed file; make more files"
            )
        return seal(self.key_for(name), data, self._context(name))

    def _context(self, name: str) -> str:
        return f"{self.folder.name}/{name}"

    def _folder_key(self, make: bool) -> bytes:
        path = self.folder / KEY_FILE
        context = f"{self.folder.name}/{KEY_FILE}"
        if not path.exists():
            if not make:
                raise IntegrityError(f"{path}: missing, and without it nothing here opens. Restore it from a backup.")
            make_folder(self.folder)
            wrapped = self.keyring.wrap(secrets.token_bytes(KEY_BYTES), context)
            made_once(path, json.dumps({"wrapped": wrapped}).encode())
            fsync_folder(self.folder.parent)
        try:
            wrapped = json.loads(path.read_bytes())["wrapped"]
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{path}: damaged. Restore it from a backup.") from error
        return self.keyring.unwrap(wrapped, context)
