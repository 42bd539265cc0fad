"""Access: who has the token of a role that may do it, and nobody else."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from medray.errors import AccessError
from medray.governance.access import (
    LIST_MODELS,
    PERMISSIONS,
    PREDICT,
    READ_METRICS,
    Principal,
    Principals,
    decide,
)

TOKEN = "0123456789abcdef" * 4
DIGEST = hashlib.sha256(b"another token of thirty-two bytes").hexdigest()

MATRIX = {
    "viewer": {LIST_MODELS},
    "clinician": {LIST_MODELS, PREDICT},
    "engineer": {LIST_MODELS, READ_METRICS},
    "admin": {LIST_MODELS, PREDICT, READ_METRICS},
}


def principals(folder: Path, written: str = "") -> Principals:
    file = folder / "principals.yaml"
    if written:
        file.write_text(written)
    return Principals.load(TOKEN, file)


def test_each_role_may_do_what_its_work_needs_and_no_more() -> None:
    assert set(PERMISSIONS) == set(MATRIX)
    for role, allowed in MATRIX.items():
        for permission in {LIST_MODELS, PREDICT, READ_METRICS}:
            decision = decide(Principal("someone", role), permission)
            assert decision.allowed == (permission in allowed)
            assert role in decision.reason


@pytest.mark.parametrize(
    ("principal", "permission"),
    [(None, PREDICT), (Principal("someone", "surgeon"), PREDICT), (Principal("owner", "admin"), None), (None, None)],
)
def test_what_is_not_known_is_denied(principal: Principal | None, permission: str | None) -> None:
    assert not decide(principal, permission).allowed


def test_the_owner_of_the_installations_token_is_admin(tmp_path: Path) -> None:
    assert principals(tmp_path).authenticate(f"Bearer {TOKEN}") == Principal("owner", "admin")


def test_further_principals_have_their_own_tokens(tmp_path: Path) -> None:
    known = principals(tmp_path, f"dr.wu@north: {{role: clinician, token_sha256: {DIGEST}}}")
    assert known.authenticate("Bearer another token of thirty-two bytes") is None  # a token holds no blanks
    plain = hashlib.sha256(b"another-token").hexdigest()
    known = principals(tmp_path, f"dr.wu@north: {{role: clinician, token_sha256: {plain}}}")
    assert known.authenticate("bearer another-token") == Principal("dr.wu@north", "clinician")
    assert known.authenticate(f"Bearer {TOKEN}") == Principal("owner", "admin")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer  {TOKEN}",
        f"Bearer {TOKEN} ",
        f"Bearer {TOKEN}\n",
        f"Bearer {TOKEN.upper()}",
        f"Bearer {TOKEN},{TOKEN}",
        f"Bearer {'x' * 100_000}",
        "Bearer \u00e9",
    ],
)
def test_nothing_but_the_token_gets_in(tmp_path: Path, header: str | None) -> None:
    assert principals(tmp_path).authenticate(header) is None


def test_of_10000_mutated_tokens_none_gets_in(tmp_path: Path) -> None:
    known, draw = principals(tmp_path), random.Random(5)
    for _ in range(10_000):
        token = list(TOKEN)
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(token))
            change = draw.choice(["replace", "drop", "insert"])
            if change == "drop":
                del token[place]
            else:
                token[place : place + (change == "replace")] = draw.choice("0123456789abcdefABCDEF -_.~")
        header = f"Bearer {''.join(token)}"
        assert (known.authenticate(header) is None) == (header != f"Bearer {TOKEN}")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("- a list", "expected lines"),
        ("a: {role: viewer", "cannot be read as YAML"),
        (
            f"wu: {{role: surgeon, token_sha256: {DIGEST}}}",
            "wu: unknown role. Known: viewer, clinician, engineer, admin",
        ),
        ("wu: {role: viewer}", "wu: expected"),
        (f"wu: {{role: viewer, token_sha256: {DIGEST}, until: never}}", "wu: expected"),
        ("wu: {role: viewer, token_sha256: secret}", "sha256sum"),
        (f"owner: {{role: viewer, token_sha256: {DIGEST}}}", "not 'owner'"),
        (f"'a b': {{role: viewer, token_sha256: {DIGEST}}}", "1 to 64 letters"),
        (f"wu: {{role: viewer, token_sha256: {hashlib.sha256(TOKEN.encode()).hexdigest()}}}", "is owner's"),
    ],
)
def test_a_wrong_list_of_principals_is_refused_whole(tmp_path: Path, written: str, message: str) -> None:
    with pytest.raises(AccessError, match=message):
        principals(tmp_path, written)
