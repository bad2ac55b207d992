"""Records to store."""

import hashlib

from kairosbuild.core.digest import Blob
from kairosbuild.store.record import Record


def a_record(seed: str, outputs: dict[str, Blob]) -> Record:
    key = "sha256:" + hashlib.sha256(seed.encode()).hexdigest()
    return Record(key, {"kind": "test", "seed": seed}, outputs, 0.25, name=seed)
