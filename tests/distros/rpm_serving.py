"""A distribution of the tests as machines see one: repositories by HTTP, its base image in a registry."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
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
    """Where a distribution is. `environment` is what a machine has to be told: mirrors, and that alone."""

    registry: str
    server: Server
    environment: dict[str, str]


@contextmanager
def served(place: Path, image: str, work: Path) -> Iterator[Served]:
    """Serve what `rpm_distribution.made` made; the image as HOST/NAME:TAG, which the registry mirrors."""
    names = [folder.name for folder in (place / "repos").iterdir()]
    with serving(Folder(place / "repos"), {one: one for one in names}, place / "image", image, work) as there:
        yield there


@contextmanager
def serving(
    files: dict[str, bytes], mirrors: Mapping[str, str], layout: Path, image: str, work: Path
) -> Iterator[Served]:
    """Serve these files, where each mirror is a folder of them, and the image of a layout."""
    server = Server(files)
    host, _, name = image.partition("/")
    work.mkdir(parents=True, exist_ok=True)
    with started(work) as (registry, _):
        command = [peer("skopeo"), "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"]
        subprocess.run([*command, f"oci:{layout}", f"docker://{registry}/{name}"], check=True)
        configured = work / "registries.conf"
        configured.write_text(
            f'[[registry]]\nlocation = "{host}"\n[[registry.mirror]]\nlocation = "{registry}"\n'
        )
        environment = {
            f"KBUILD_MIRROR_{one.upper().replace('-', '_')}": f"{server.url}/{path}".rstrip("/")
            for one, path in mirrors.items()
        }
        yield Served(registry, server, {"CONTAINERS_REGISTRIES_CONF": str(configured), **environment})
    server.close()


def kbuild(workspace: Path, *words: str, env: dict[str, str], cache: Path, code: int = 0) -> tuple[str, str]:
    """kbuild as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "kairosbuild", *words, "--cache-dir", str(cache)],
        cwd=workspace, env={**os.environ, **env}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout, done.stderr
