"""A distribution of the tests as machines see one: repositories by HTTP, its base image in a registry."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "registry"))

from debian_registry import started
from local_archive import Server
from peers import peer


class Folder(dict[str, bytes]):
    """A folder's files as a mapping, for `Server`; what is set here hides what is there."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def get(self, path: str, default: bytes | None = None) -> bytes | None:  # type: ignore[override]
        """A file's content."""
        if path in self:
            return self[path]
        place = self.folder / path
        return place.read_bytes() if place.is_file() else default


@dataclass
class Served:
    """`mirrors` by name; `registry` is HOST:PORT, where the image is under the name it has in the world."""

    mirrors: dict[str, str]
    registry: str
    server: Server


@contextmanager
def served(place: Path, image: str, work: Path) -> Iterator[Served]:
    """Serve what `rpm_distribution.made` made; the image as NAME:TAG."""
    server = Server(Folder(place / "repos"))
    work.mkdir(parents=True, exist_ok=True)
    with started(work) as (registry, _):
        tag = image.rpartition(":")[2]
        command = [peer("skopeo"), "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"]
        subprocess.run([*command, f"oci:{place / 'image'}:{tag}", f"docker://{registry}/{image}"], check=True)
        names = [folder.name for folder in (place / "repos").iterdir()]
        yield Served({name: f"{server.url}/{name}" for name in names}, registry, server)
    server.close()
