"""What is left to OpenSSL's program, which lies beside the private Python: password hashes and signatures."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from kairosbuild.node.problem import Problem

_HOME = Path("/usr/lib/kbuild")


def crypt(password: str) -> str:
    """A password's SHA-512 crypt hash."""
    return _run(["passwd", "-6", "-stdin"], password.encode()).decode().strip()


def verifies(key: str, data: bytes, signature: bytes) -> bool:
    """Whether a public key (PEM) signed these bytes: ECDSA or RSA with SHA-256, or Ed25519."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, name) for name in ("key", "signature", "data")}
        files["key"].write_text(key)
        files["signature"].write_bytes(signature)
        files["data"].write_bytes(data)
        words = ["pkeyutl", "-verify", "-pubin", "-inkey", str(files["key"]), "-rawin"]
        given = ["-in", str(files["data"]), "-sigfile", str(files["signature"])]
        done = subprocess.run([*_command(), *words, *given], capture_output=True, check=False)
    return done.returncode == 0


def _run(words: list[str], given: bytes) -> bytes:
    done = subprocess.run([*_command(), *words], input=given, capture_output=True, check=False)
    if done.returncode:
        raise Problem(f"openssl: {done.stderr.decode(errors='replace').strip()}", reason="command-failed")
    return done.stdout


def _command() -> list[str]:
    own = _HOME / "bin/openssl"
    if own.exists():
        return [str(_HOME / "lib/loader"), "--library-path", str(_HOME / "lib"), str(own)]
    if found := shutil.which("openssl"):
        return [found]
    raise Problem("there is no openssl on this machine", reason="command-failed")
