"""Access: who asks, what their role permits, and a decision with its reason. What is not permitted is denied.

A principal proves itself by a bearer token of 256 random bits. Only its SHA-256 is compared, and in constant time: of a
random token that is as good as a slow hash, and a file of digests gives no token away.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medray.errors import AccessError

PREDICT, LIST_MODELS, READ_METRICS = "predict", "list models", "read metrics"

# Each role has what its work needs (HIPAA 164.502(b), minimum necessary): an engineer keeps the service up and needs no
# answer about anyone.
PERMISSIONS: Mapping[str, frozenset[str]] = {
    "viewer": frozenset({LIST_MODELS}),
    "clinician": frozenset({LIST_MODELS, PREDICT}),
    "engineer": frozenset({LIST_MODELS, READ_METRICS}),
    "admin": frozenset({LIST_MODELS, PREDICT, READ_METRICS}),
}


@dataclass(frozen=True)
class Principal:
    """Who asks: a name for the audit log, and one role."""

    name: str
    role: str


@dataclass(frozen=True)
class Decision:
    """Whether a principal may do something, and why."""

    allowed: bool
    reason: str


def decide(principal: Principal | None, permission: str | None) -> Decision:
    """Default deny: without a principal, a known role and a permission that the role has, the answer is no."""
    if principal is None:
        return Decision(allowed=False, reason="no valid token")
    if permission is None:
        return Decision(allowed=False, reason="no permission is defined for this route")
    if permission in PERMISSIONS.get(principal.role, frozenset()):
        return Decision(allowed=True, reason=f"role {principal.role} may {permission}")
    return Decision(allowed=False, reason=f"role {principal.role} may not {permission}")


class Principals:
    """The principals that a service knows, by the SHA-256 of their tokens."""

    def __init__(self, digests: Mapping[str, Principal]) -> None:
        self._digests = dict(digests)

    @classmethod
    def load(cls, token: str, file: Path) -> Principals:
        """The owner of `token`, who is admin, and those that `file` names, if it is there.

        Its lines are `name: {role: clinician, token_sha256: <64 hex digits>}`.

        Raises:
            AccessError: the file is wrong; the message names the principal.
        """
        digests = {_digest(token): Principal("owner", "admin")}
        if not file.exists():
            return cls(digests)
        try:
            written = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise AccessError(f"{file}: cannot be read as YAML ({type(error).__name__})") from error
        if not isinstance(written, Mapping):
            raise AccessError(f"{file}: expected lines `name: {{role: ..., token_sha256: ...}}`")
        for name, entry in written.items():
            digest = _checked(file, str(name), entry)
            if digest in digests:
                raise AccessError(f"{file}: {name}: this token is {digests[digest].name}'s; each principal has its own")
            digests[digest] = Principal(str(name), entry["role"])
        return cls(digests)

    def authenticate(self, authorization: str | None) -> Principal | None:
        """Whose token an `Authorization` header holds (RFC 6750); None where it is nobody's."""
        match = re.fullmatch(r"[Bb]earer ([\x21-\x7e]{1,512})", authorization or "")
        if match is None:
            return None
        given, found = _digest(match[1]), None
        for digest, principal in self._digests.items():
            if hmac.compare_digest(digest, given):  # no early end: the time would tell how far the search went
                found = principal
        return found


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _checked(file: Path, name: str, entry: Any) -> str:
    if not re.fullmatch(r"[\w.@-]{1,64}", name) or name == "owner":
        raise AccessError(f"{file}: a principal's name has 1 to 64 letters, digits or . _ @ -, and is not 'owner'")
    if not isinstance(entry, Mapping) or set(entry) != {"role", "token_sha256"}:
        raise AccessError(f"{file}: {name}: expected {{role: ..., token_sha256: ...}}")
    if entry["role"] not in PERMISSIONS:
        raise AccessError(f"{file}: {name}: unknown role. Known: {', '.join(PERMISSIONS)}.")
    digest = str(entry["token_sha256"])
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise AccessError(f'{file}: {name}: token_sha256 is 64 hex digits: printf %s "$TOKEN" | sha256sum')
    return digest
