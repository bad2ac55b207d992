"""`kbuild keys new`: the keys of a trusted boot, and what firmware enrols them from."""

from __future__ import annotations

import argparse
import datetime
import os
import uuid
from pathlib import Path

from kairosbuild.cli import given
from kairosbuild.cli.style import out
from kairosbuild.core.errors import InputError

_SIGNED_BY = {"PK": "PK", "KEK": "PK", "db": "KEK"}
_IGNORE = "# Private keys belong on no server but the one that signs.\n*.key\n"


def main(arguments: argparse.Namespace) -> int:
    """Make them into a folder that must not have any yet: private keys 0600, what may be known in `public`."""
    folder = Path(arguments.folder)
    if taken := [path.name for path in folder.glob("*.key")] if folder.is_dir() else []:
        raise InputError(
            f"{folder} has keys already: {', '.join(sorted(taken))}",
            reason="keys-exist",
            hint="a key that is overwritten can sign no more; name another folder",
        )
    made = _make(folder, arguments.name)
    if arguments.json:
        given.print_json({"folder": str(folder), "certificates": made})
    else:
        print(f"{out.green('made')}  {folder}: keep *.key secret, publish {folder / 'public'}")
        for name, fingerprint in made.items():
            print(f"  {name:4} {out.dim('sha256 ' + fingerprint)}")
    return 0


def _make(folder: Path, name: str) -> dict[str, str]:
    """All files; the fingerprint of each certificate."""
    from kairosbuild.keys import enrolment
    from kairosbuild.keys.certificate import certificate, new_key, self_signed
    from kairosbuild.keys.keys import signer

    start = datetime.datetime.now(datetime.UTC).replace(microsecond=0, tzinfo=None)
    public, owner = folder / "public", uuid.uuid4()
    public.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    (folder / ".gitignore").write_text(_IGNORE)
    certificates = {}
    for what in enrolment.NAMES:
        key = new_key()
        _private(folder / f"{what}.key", key)
        pem = self_signed(key, f"{name} {what}", start=start, years=20)
        (public / f"{what}.crt").write_bytes(pem)
        certificates[what] = certificate(pem, what)
    for what, by in _SIGNED_BY.items():
        signs = certificates[by].signer(str(folder / f"{by}.key"), by)
        content = enrolment.signature_list([certificates[what]], owner)
        signed = enrolment.authenticated(what, content, start, certificates[by], signs)
        (public / f"{what}.esl").write_bytes(content)
        (public / f"{what}.auth").write_bytes(signed)
    _private(folder / "pcr.key", new_key())
    (public / "pcr.pub").write_bytes(signer(str(folder / "pcr.key")).public.pem())
    return {what: one.fingerprint for what, one in certificates.items()}


def _private(path: Path, content: bytes) -> None:
    """A file that nobody else can read at any time."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as out:
        out.write(content)
