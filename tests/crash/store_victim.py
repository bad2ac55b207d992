"""A process to be killed: stores blobs and records, or collects garbage, and says what is done.

`store_victim.py HOME SEED ROLE`. A line on stdout, `KEY DIGEST SIZE`, is a promise: this record was put.
"""

import itertools
import random
import sys
from pathlib import Path

from kairosbuild.core.digest import Blob, of_bytes
from kairosbuild.store.record import Record
from kairosbuild.store.store import Store

SIZES = (0, 10, 4096, 70_000, 1_500_000)


def work(store: Store, seed: str) -> None:
    dice = random.Random(seed)
    with store.lease("a victim"):
        for number in itertools.count():
            data = dice.choice((b"shared", seed.encode())) * (dice.choice(SIZES) // 6) + bytes([number % 50])
            blob = put(store, data, dice.randrange(4))
            key = of_bytes(f"{seed} {number}".encode()).digest
            with store.lock(key):
                store.actions.put(Record(key, {"number": number}, {"file": blob}), last=f"victim/{seed}")
            print(key, blob.digest, blob.size, flush=True)
            if number % 10 == 0:
                store.trees.get(
                    f"{number}", lambda root: [(root / str(n)).write_text("x") for n in range(9)] and None
                )


def put(store: Store, data: bytes, way: int) -> Blob:
    if way == 0:
        return store.cas.put_bytes(data)
    if way == 1:
        with store.cas.writer() as out:
            for start in range(0, len(data), 9999):
                out.write(data[start : start + 9999])
            return out.commit()
    path = store.cas.tmp() / "output"
    path.write_bytes(data)
    return store.cas.put_file(path) if way == 2 else store.cas.add_copy(path)


def collect(store: Store) -> None:
    while True:
        store.gc(grace=0)
        print("collected", flush=True)


if __name__ == "__main__":
    opened = Store(Path(sys.argv[1]))
    if sys.argv[3] == "collect":
        collect(opened)
    work(opened, sys.argv[2])
