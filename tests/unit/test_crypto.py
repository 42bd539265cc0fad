"""Secrets are made once, kept to their owner, never pickled; what is sealed opens unchanged or not at all."""

from __future__ import annotations

import os
import pickle
import random
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medray.errors import AccessError, IntegrityError, StudyError
from medray.governance.crypto import Keyring, open_sealed, seal

KEY = bytes(range(32))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def racing(code: str, folder: Path, count: int = 4) -> set[str]:
    """What `code` prints in `count` processes that start it at the same moment."""
    waits = f"import pathlib, time\nready = pathlib.Path({str(folder / 'go')!r})\n"
    start = "\nprint('ready', flush=True)\nwhile not ready.exists():\n    time.sleep(0.001)\n"
    imports = "from medray.governance.crypto import Keyring\nfrom medray.artifacts.vault import Vault\n"
    command = [sys.executable, "-c", waits + imports + start + code]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    (folder / "go").touch()
    said = {process.communicate(timeout=60)[0] for process in processes}
    assert all(process.returncode == 0 for process in processes)
    return said


def test_a_keyring_gives_the_same_keys_again(tmp_path: Path) -> None:
    first, again = Keyring(tmp_path / "keyring"), Keyring(tmp_path / "keyring")
    assert first.derive("pseudonym") == again.derive("pseudonym")
    assert first.token() == again.token()
    assert len(first.derive("pseudonym")) == 32


def test_each_purpose_and_each_installation_has_keys_of_its_own(tmp_path: Path) -> None:
    one, other = Keyring(tmp_path / "one"), Keyring(tmp_path / "other")
    assert len({one.derive("pseudonym"), one.derive("wrap"), other.derive("pseudonym")}) == 3


def test_secrets_are_for_their_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)  # the most careless of users
    try:
        keyring = Keyring(tmp_path / "keyring")
        keyring.derive("pseudonym")
        keyring.token()
    finally:
        os.umask(before)
    assert mode(tmp_path / "keyring") == 0o700
    assert {path.name: mode(path) for path in (tmp_path / "keyring").iterdir()} == {"secret": 0o600, "token": 0o600}


@pytest.mark.parametrize("name", ["secret", "token"])
def test_a_secret_that_others_can_read_is_refused_with_the_cure(tmp_path: Path, name: str) -> None:
    keyring = Keyring(tmp_path / "keyring")
    keyring.derive("pseudonym")
    keyring.token()
    (tmp_path / "keyring" / name).chmod(0o644)
    opened = Keyring(tmp_path / "keyring")
    with pytest.raises(AccessError, match="chmod 600"):
        opened.derive("pseudonym") if name == "secret" else opened.token()


def test_a_pickled_keyring_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE_SECRET", "correct horse battery staple and more")
    for reference in ("", "env:SITE_SECRET"):
        keyring = Keyring(tmp_path / "keyring", reference)
        derived = keyring.derive("pseudonym")
        pickled = pickle.dumps(keyring)
        secret = (tmp_path / "keyring" / "secret").read_bytes()
        for held in (secret, bytes.fromhex(secret.decode()), derived, b"correct horse"):
            assert held not in pickled
        assert pickle.loads(pickled).derive("pseudonym") == derived  # noqa: S301
        assert secret.decode() not in repr(keyring)


def test_processes_that_race_for_a_secret_agree(tmp_path: Path) -> None:
    code = f"keyring = Keyring(pathlib.Path({str(tmp_path / 'keyring')!r}))\n"
    said = racing(code + "print(keyring.derive('pseudonym').hex(), keyring.token())", tmp_path)
    assert len(said) == 1
    assert sorted(path.name for path in (tmp_path / "keyring").iterdir()) == ["secret", "token"]


def test_processes_that_race_for_a_vault_agree(tmp_path: Path) -> None:
    folders = f"{str(tmp_path / 'shards' / 'abc')!r}, {str(tmp_path / 'keyring')!r}"
    code = (
        f"folder, keyring = map(pathlib.Path, ({folders}))\nprint(Vault(folder, Keyring(keyring)).key_for('x').hex())"
    )
    assert len(racing(code, tmp_path)) == 1
    assert [path.name for path in (tmp_path / "shards" / "abc").iterdir()] == ["key.json"]


def test_a_secret_comes_from_where_the_study_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "0123456789abcdef" * 4
    monkeypatch.setenv("SITE_SECRET", text)
    file = tmp_path / "mounted"
    file.write_text(text + "\n")
    file.chmod(0o440)
    by_env, by_file = Keyring(tmp_path / "k", "env:SITE_SECRET"), Keyring(tmp_path / "k", f"file:{file}")
    assert by_env.derive("pseudonym") == by_file.derive("pseudonym") != Keyring(tmp_path / "k2").derive("pseudonym")
    assert not (tmp_path / "k" / "secret").exists()


def test_a_secret_that_cannot_be_had_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT", "hunter2")
    (tmp_path / "public").write_text("x" * 64)
    (tmp_path / "public").chmod(0o644)
    wrong = {"env:NOT_SET": "NOT_SET is not set", "env:SHORT": "7 characters", "file:/not/there": "cannot be read"}
    for reference, reason in wrong.items():
        with pytest.raises(StudyError, match=reason):
            Keyring(tmp_path, reference).derive("pseudonym")
    with pytest.raises(AccessError, match="others may read"):
        Keyring(tmp_path, f"file:{tmp_path / 'public'}").derive("pseudonym")


def test_a_wrapped_key_opens_for_its_context_and_installation_only(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keyring")
    wrapped = keyring.wrap(KEY, "tables/abc")
    assert keyring.unwrap(wrapped, "tables/abc") == KEY
    for opened, context in ((keyring, "tables/abd"), (Keyring(tmp_path / "other"), "tables/abc")):
        with pytest.raises(IntegrityError, match=context):
            opened.unwrap(wrapped, context)
    for changed in (
        wrapped[:-8],
        wrapped[4:],
        "",
        "no base64!",
        wrapped[:9] + ("A" if wrapped[9] != "A" else "B") + wrapped[10:],
    ):
        with pytest.raises(IntegrityError):
            keyring.unwrap(changed, "tables/abc")


def test_what_is_sealed_opens_unchanged() -> None:
    for plain in (b"", b"x", bytes(100_000)):
        sealed = seal(KEY, plain, "context")
        assert open_sealed(KEY, sealed, "context") == plain
        assert open_sealed(KEY, memoryview(sealed), "context") == plain
    assert seal(KEY, b"same", "context") != seal(KEY, b"same", "context")


def test_no_change_to_what_is_sealed_goes_unseen() -> None:
    sealed = seal(KEY, bytes(64), "context")
    draw = random.Random(7)
    changed = [
        sealed[:index] + bytes([byte ^ 1 << draw.randrange(8)]) + sealed[index + 1 :]
        for index, byte in enumerate(sealed)
    ]
    changed += [sealed[:length] for length in range(len(sealed))] + [sealed + b"\0", sealed + sealed]
    for data in changed:
        with pytest.raises(IntegrityError, match="context"):
            open_sealed(KEY, data, "context")
    for key, context in ((KEY, "other context"), (bytes(32), "context")):
        with pytest.raises(IntegrityError):
            open_sealed(key, sealed, context)


def test_a_secret_is_never_seen_half_made(tmp_path: Path) -> None:
    """Killed at any moment, a first use leaves a whole secret or none, and the next use goes on."""
    draw = random.Random(11)
    code = (
        "import pathlib, sys\nfrom medray.governance.crypto import Keyring\nprint('ready', flush=True)\n"
        "for number in range(10000):\n    Keyring(pathlib.Path(sys.argv[1]) / str(number)).derive('pseudonym')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout
    with process.stdout:
        process.stdout.readline()
        time.sleep(0.2 + 0.2 * draw.random())
        process.kill()
        process.wait()
    made = sorted(int(path.name) for path in tmp_path.iterdir())
    assert len(made) > 3
    for number in made:
        secret = tmp_path / str(number) / "secret"
        assert not secret.exists() or len(secret.read_bytes()) == 64
        assert len(Keyring(tmp_path / str(number)).derive("pseudonym")) == 32
