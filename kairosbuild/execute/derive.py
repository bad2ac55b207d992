"""Work done once for a preimage, ever: results of their own, shared by every node that needs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from kairosbuild.execute.results import Results
from kairosbuild.graph.keys import derived_key
from kairosbuild.graph.node import Outputs
from kairosbuild.store.record import Record
from kairosbuild.store.store import Store


def derive(
    store: Store,
    results: Results,
    domain: str,
    version: int,
    preimage: Mapping[str, Any],
    make: Callable[[], Outputs],
) -> Outputs:
    """The outputs recorded for this preimage, made and recorded if there are none. Single flight."""
    key = derived_key(domain, version, preimage)
    if record := results.local(key):
        return record.outputs
    with store.lock(key):
        if record := results.local(key):
            return record.outputs
        if found := results.remote(key):
            return found[1].outputs
        began = time.monotonic()
        outputs = dict(make())
        document = {"domain": domain, "version": version, "preimage": preimage}
        results.keep(Record(key, document, outputs, time.monotonic() - began))
        return outputs
