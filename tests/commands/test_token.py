from __future__ import annotations

import time
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from bridge.cli import main
from bridge.commands.exits import Exit
from bridge.security.rights import Grant, Rights
from bridge.security.tokens import TokenVerifier

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STT_JWT_SECRET", SECRET)


def made(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["token", *args]) == Exit.OK
    out, err = capsys.readouterr()
    assert out.endswith("\n")
    assert err == ""
    return out.strip()


def complaint(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["token", *args]) == Exit.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert SECRET not in err
    return err


@pytest.mark.usefixtures("secret")
def test_a_token_for_a_session(capsys: pytest.CaptureFixture[str]) -> None:
    token = made(capsys, "--scope", "send,receive", "--session", "room-1", "--session", "b-*", "--ttl", "60")
    grant = Grant.of(["send", "receive"], ["room-1", "b-*"])
    assert TokenVerifier.from_secret(SECRET).verify(token).rights == Rights((grant,))
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 60
    assert claims["iat"] == pytest.approx(time.time(), abs=5)


@pytest.mark.usefixtures("secret")
def test_a_token_for_all_sessions_and_an_hour(capsys: pytest.CaptureFixture[str]) -> None:
    token = made(capsys, "--scope", "receive")
    assert TokenVerifier.from_secret(SECRET).verify(token).rights == Rights((Grant.of(["receive"]),))
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["exp"] - claims["iat"], "session" in claims) == (3_600, False)


@pytest.mark.usefixtures("secret")
def test_the_server_s_name(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    TokenVerifier.from_secret(SECRET, "you").verify(made(capsys, "--scope", "send", "--audience", "you"))
    monkeypatch.setenv("STT_JWT_AUDIENCE", "me")
    TokenVerifier.from_secret(SECRET, "me").verify(made(capsys, "--scope", "send"))
    TokenVerifier.from_secret(SECRET, "you").verify(made(capsys, "--scope", "send", "--audience", "you"))


def test_the_secret_in_a_file_of_settings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"STT_JWT_SECRET={SECRET}\nSTT_PORT=wrong\n")
    TokenVerifier.from_secret(SECRET).verify(made(capsys, "--scope", "send"))


@pytest.mark.usefixtures("secret")
def test_a_private_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    file = tmp_path / "private.pem"
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    token = made(capsys, "--scope", "admin", "--key-file", str(file))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert TokenVerifier.from_pem(public).verify(token).rights == Rights((Grant.of(["admin"]),))
    file.write_bytes(public)
    assert "should hold a private key" in complaint(capsys, "--scope", "send", "--key-file", str(file))
    file.unlink()
    assert "No such file" in complaint(capsys, "--scope", "send", "--key-file", str(file))


def test_nothing_to_sign_with(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "set STT_JWT_SECRET, or pass --key-file" in complaint(capsys, "--scope", "send")
    monkeypatch.setenv("STT_JWT_KEY_FILE", "public.pem")
    assert "sign with the private key" in complaint(capsys, "--scope", "send")
    monkeypatch.setenv("STT_JWT_SECRET", "short")
    said = complaint(capsys, "--scope", "send")
    assert "at least 32 bytes" in said
    assert "short" not in said.replace("shortest", "")


@pytest.mark.usefixtures("secret")
def test_a_session_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("", "a b", "a*b"):
        assert "should be the name of a session" in complaint(capsys, "--scope", "send", "--session", name)


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--scope", ""],
        ["--scope", "listen"],
        ["--scope", "send", "--ttl", "0"],
        ["--scope", "send", "--ttl", "1h"],
        ["--scope", "send", "--ttl", "99999999999"],
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["token", *args])
    assert caught.value.code == Exit.USAGE
    assert capsys.readouterr().out == ""
