"""`stt-bridge token`: makes a token that says what its bearer may do, and for how long."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bridge.commands.exits import Exit, complain, epilog

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bridge.security.tokens import TokenIssuer

MAX_TTL_SECONDS: Final = 366 * 86_400

_EPILOG: Final = f"""\
The token (JWT) goes to standard output. It is signed with STT_JWT_SECRET, the server's own, or with the private key of
--key-file where the server has the public one (STT_JWT_KEY_FILE, STT_JWT_JWKS). A client sends it where it would send
an API key.

{epilog(Exit.OK, Exit.USAGE)}

examples:
  stt-bridge token --scope receive --session team-standup-x7Kq2mPw
  stt-bridge token --scope send,receive --session 'room-*' --ttl 28800
  stt-bridge token --scope files --subject anna --ttl 900
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "token",
        help="make a token for a client",
        description="Make a token that allows its bearer a part of what an API key does, for some time.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--scope", required=True, type=_names, metavar="A,B,…", help="what it allows: send, receive, admin, files"
    )
    parser.add_argument(
        "--session",
        action="append",
        metavar="ID",
        help="on which session: its name, or how names begin and *; may be repeated (default: all)",
    )
    parser.add_argument(
        "--ttl", type=_seconds, default=3_600, metavar="SECONDS", help="how long it is good (default: %(default)s)"
    )
    parser.add_argument("--subject", metavar="NAME", help="whose it is: what they make is theirs, and counted together")
    parser.add_argument("--key-file", type=Path, metavar="PEM", help="private key to sign with")
    parser.add_argument("--key-id", metavar="KID", help="that key's name in STT_JWT_JWKS, where it is one of several")
    parser.add_argument("--audience", metavar="NAME", help="the server it is for (default: STT_JWT_AUDIENCE)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make it. Returns the exit code."""
    # Not `Settings.load`: where tokens are made there may be no server, and another setting is no reason to make none.
    from bridge.settings import environment

    env = environment()
    audience = args.audience or env.get("STT_JWT_AUDIENCE")
    try:
        token = _issuer(args.key_file, env).issue(
            args.scope,
            args.session,
            ttl_seconds=args.ttl,
            audience=audience,
            issuer=env.get("STT_JWT_ISSUER"),
            subject=args.subject,
            key_id=args.key_id,
        )
    except OSError as exc:
        complain(f"--key-file {args.key_file}: {exc.strerror}")
        return Exit.USAGE
    except ValueError as exc:
        complain(exc)
        return Exit.USAGE
    sys.stdout.write(token + "\n")
    return Exit.OK


def _issuer(key_file: Path | None, env: Mapping[str, str]) -> TokenIssuer:
    """Raises `ValueError` with a sentence, `OSError`."""
    from bridge.security.tokens import KeyFileError, TokenIssuer

    if key_file is not None:
        try:
            return TokenIssuer.from_pem(key_file.read_bytes())
        except KeyFileError as exc:
            raise ValueError(f"--key-file: {str(key_file)!r} {exc}") from None
    if secret := env.get("STT_JWT_SECRET"):
        try:
            return TokenIssuer.from_secret(secret)
        except KeyFileError as exc:
            raise ValueError(f"STT_JWT_SECRET {exc}") from None
    for name in ("STT_JWT_KEY_FILE", "STT_JWT_JWKS"):
        if name in env:
            raise ValueError(f"{name} is what tokens are verified with: sign with the private key, by --key-file")
    raise ValueError("there is nothing to sign with: set STT_JWT_SECRET, or pass --key-file")


def _names(text: str) -> list[str]:
    """The type of `--scope`."""
    from bridge.security.rights import Grant

    names = text.replace(",", " ").split()
    if not names:
        raise argparse.ArgumentTypeError("should name at least one of send, receive, admin, files")
    try:
        Grant.of(names)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    return names


def _seconds(text: str) -> int:
    """The type of `--ttl`."""
    value = int(text)
    if not 1 <= value <= MAX_TTL_SECONDS:
        raise argparse.ArgumentTypeError(f"{value} is outside 1 to {MAX_TTL_SECONDS} seconds")
    return value
