"""Secrets, keys and sealing: one secret an installation, from which every other key is derived or wrapped.

AES-256-GCM (NIST SP 800-38D) seals, HKDF-SHA256 (RFC 5869) derives. A key is never pickled and never logged.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from medray.errors import AccessError, IntegrityError, StudyError

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
MIN_SECRET_CHARACTERS = 32


class Keyring:
    """An installation's secret, by reference: pickling one never carries the secret.

    Attributes:
        folder: where the secret and the token lie, mode 0700.
        reference: empty for a secret of its own, made at first use; else `env:NAME` or `file:/path`.
    """

    def __init__(self, folder: Path, reference: str = "") -> None:
        self.folder = Path(folder)
        self.reference = reference
        self._secret: bytes | None = None

    def __reduce__(self) -> tuple[type[Keyring], tuple[Path, str]]:
        return (Keyring, (self.folder, self.reference))

    def __repr__(self) -> str:
        return f"Keyring({str(self.folder)!r}, {self.reference!r})"

    def derive(self, purpose: str) -> bytes:
        """A key of 32 bytes for one purpose.

        Raises:
            StudyError: the reference names nothing, or a secret of less than 32 characters.
            AccessError: others may read the secret's file.
        """
        if self._secret is None:
            self._secret = self._read()
        return derive(self._secret, purpose)

    def wrap(self, key: bytes, context: str) -> str:
        """`key` sealed under this installation's secret, as text."""
        return base64.b64encode(seal(self.derive("wrap"), key, context)).decode()

    def unwrap(self, wrapped: str, context: str) -> bytes:
        """The key that `wrap` sealed.

        Raises:
            IntegrityError: wrapped under another secret or for another context, or changed since.
        """
        try:
            sealed = base64.b64decode(wrapped, validate=True)
        except ValueError as error:
            raise IntegrityError(f"{context}: the wrapped key is damaged. Restore it from a backup.") from error
        return open_sealed(self.derive("wrap"), sealed, context)

    def token(self) -> str:
        """The bearer token of the serving port, made at first use.

        Raises:
            AccessError: others may read the token's file.
        """
        made = secrets.token_urlsafe(KEY_BYTES)
        return _guarded(self.folder / "token", made_once(self.folder / "token", made.encode()), 0o077).decode()

    def _read(self) -> bytes:
        where, _, name = self.reference.partition(":")
        if not where:
            path = self.folder / "secret"
            text = _guarded(path, made_once(path, secrets.token_hex(KEY_BYTES).encode()), 0o077)
        elif where == "env":
            if name not in os.environ:
                raise StudyError(f"governance.key: environment variable {name} is not set")
            text = os.environb[name.encode()]
        elif where == "file":
            path = Path(name)
            try:
                # a cluster's mounted secrets are often readable by a group; never by everyone
                text = _guarded(path, path.read_bytes(), 0o007)
            except OSError as error:
                raise StudyError(f"governance.key: {path} cannot be read ({error.strerror})") from error
        else:
            raise StudyError("governance.key is a reference, env:NAME or file:/path")
        text = text.strip()
        if len(text) < MIN_SECRET_CHARACTERS:
            raise StudyError(
                f"governance.key: the secret has {len(text)} characters; give at least {MIN_SECRET_CHARACTERS}, "
                "e.g. from `openssl rand -hex 32`"
            )
        return text


def derive(key: bytes, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose, from which nobody finds `key` or that of another purpose."""
    return HKDF(SHA256(), KEY_BYTES, salt=b"medray", info=purpose.encode()).derive(key)


def seal(key: bytes, plain: bytes | memoryview, context: str) -> bytes:
    """`plain` encrypted and authenticated, together with the context that it belongs to."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, context.encode())


def open_sealed(key: bytes, sealed: bytes | memoryview, context: str) -> bytes:
    """What `seal` sealed.

    Raises:
        IntegrityError: changed, cut, of another context or sealed under another key.
    """
    if len(sealed) < NONCE_BYTES + TAG_BYTES:
        raise IntegrityError(f"{context}: cut to {len(sealed)} bytes. Restore it from a backup.")
    view = memoryview(sealed)
    try:
        return AESGCM(key).decrypt(bytes(view[:NONCE_BYTES]), view[NONCE_BYTES:], context.encode())
    except InvalidTag as error:
        raise IntegrityError(
            f"{context}: changed, swapped, cut or sealed under another key. Restore it from a backup."
        ) from error


def made_once(path: Path, data: bytes) -> bytes:
    """The content of `path`, which is made of `data` if it is not there; all who race get the same content."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)  # unlike a rename, a link never replaces what another process made
    finally:
        temporary.unlink(missing_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return path.read_bytes()


def _guarded(path: Path, content: bytes, forbidden: int) -> bytes:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & forbidden:
        raise AccessError(f"{path}: others may read this secret (mode {mode:04o}). Run: chmod 600 '{path}'")
    return content
