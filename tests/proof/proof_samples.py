"""An image to say something about, and keys of every kind."""

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from kairosbuild.core.digest import of_bytes
from kairosbuild.registry.documents import small_package
from kairosbuild.registry.referrers import put
from kairosbuild.registry.target import EMPTY, MANIFEST, Manifest, Target

PASSWORD = "correct horse"


def put_image(target: Target, text: str = "x") -> Manifest:
    """Some manifest under the tag `latest`."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": "application/vnd.test",
        "config": {"mediaType": EMPTY, **of_bytes(b"{}").json()},
        "layers": [{"mediaType": "application/vnd.test", **of_bytes(text.encode()).json()}],
    }
    package = small_package("x", document, {of_bytes(data): data for data in (b"{}", text.encode())})
    put(target, package)
    target.put_manifest(package.manifest)
    target.tag({"latest": package.manifest})
    return package.manifest


def pem(key, password: str = "") -> bytes:  # type: ignore[no-untyped-def]
    how = (
        serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    )
    return bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how))


def new_key(kind: str):  # type: ignore[no-untyped-def]
    if kind == "rsa":
        return rsa.generate_private_key(65537, 2048)
    return (
        ec.generate_private_key(ec.SECP256R1()) if kind == "ecdsa" else ed25519.Ed25519PrivateKey.generate()
    )
