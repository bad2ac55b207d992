"""Canonical JSON: one byte string for one value, so that a value can be a key.

Sorted keys, no insignificant space, UTF-8, no floats (their text differs between writers), no
non-string keys. Compare RFC 8785, of which this is the float-free part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

type_name = {float: "a float", set: "a set", bytes: "bytes"}.get


def dumps(value: Any) -> bytes:
    """The canonical bytes of this value. Raises TypeError for what JSON cannot say in one way only."""
    _check(value)
    return _encode(value).encode()


def loads(data: bytes | str) -> Any:
    """Read JSON strictly: a repeated key, a float or a NaN is a ValueError."""
    return json.loads(data, object_pairs_hook=_unique, parse_float=_no_float, parse_constant=_no_float)


_encode = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=dict
).encode


_PLAIN = frozenset((str, int, bool, type(None)))


def _check(value: Any) -> None:
    """Raise TypeError for what has no canonical form. Ten thousand keys go through here: types first."""
    kind = type(value)
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                _check_key(key)
            if type(item) not in _PLAIN:
                _check(item)
    elif kind is list or kind is tuple:
        for item in value:
            if type(item) not in _PLAIN:
                _check(item)
    elif kind not in _PLAIN:
        _check_odd(value)


def _check_key(key: Any) -> None:
    if not isinstance(key, str):
        raise TypeError(f"canonical JSON: the key {key!r} is not text")


def _check_odd(value: Any) -> None:
    """What is none of JSON's own types, though it may be of a class derived from one."""
    if value is None or isinstance(value, str | int):
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_key(key)
            _check(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item)
    else:
        raise TypeError(f"canonical JSON: {value!r} is {type_name(type(value), type(value).__name__)}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_float(text: str) -> Any:
    raise ValueError(f"{text} is not an integer")
