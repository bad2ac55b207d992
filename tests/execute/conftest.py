"""A small world for the engine: kinds that need no sandbox, a recipe made in Python, a counted executor."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kairosbuild.core.digest import Blob, of_bytes
from kairosbuild.core.errors import InputError, KbuildError, NodeError
from kairosbuild.core.events import Event, Events
from kairosbuild.execute import engine
from kairosbuild.execute.engine import Outcome, Request, Wiring
from kairosbuild.execute.results import Results
from kairosbuild.graph.action import Action, ActionResult
from kairosbuild.graph.node import UNLOCKED, Locked, Material
from kairosbuild.recipe.declaration import Declaration, Recipe
from kairosbuild.recipe.fields import flag, integer, refs, sourcemap, text, texts
from kairosbuild.recipe.publication import Publish
from kairosbuild.store.store import Store


@dataclass(frozen=True, slots=True)
class JoinSpec:
    on: tuple[str, ...] = refs("inputs", ())
    src: Mapping[str, str] = sourcemap("files", {})
    add: str = text("more", "")
    first: int = integer("only so many bytes", 0)
    fails: bool = flag("whether it fails")
    needs: tuple[str, ...] = texts("tools", ())
    pause: int = integer("milliseconds", 0, hint=True)
    cpu: int = integer("processors", 1, hint=True)


class Join:
    """Joins its inputs, sources and text through an action."""

    name = "join"
    version = 1
    Spec = JoinSpec
    produces = "file"

    def tools(self, spec: JoinSpec) -> tuple[str, ...]:
        return spec.needs

    def lock(self, spec: JoinSpec, locker: Any) -> Locked:
        return UNLOCKED

    def preflight(self, name: str, spec: JoinSpec, root: Path) -> Iterator[KbuildError]:
        if spec.add == "told early" and not (root / "excuse").exists():
            yield InputError(f"{name} would fail", reason="told-early")

    def foresee(self, declaration: Any, declarations: Any, known: Any) -> Iterator[KbuildError]:
        if declaration.spec["add"] == "asks" and (said := known("said", "file")) is not None:
            assert declarations["said"].kind == "pin"
            yield InputError(f"{declaration.name} would fail of {said}", reason="foreseen")

    def build(self, task: Any) -> dict[str, Blob]:
        if task.spec.pause:
            time.sleep(task.spec.pause / 1000)
        if task.spec.fails:
            task.note("about to fail")
            raise NodeError(f"{task.name} fails", reason="made-to-fail")
        blobs = {f"{n}": one.outputs["file"] for n, one in enumerate(task.inputs.get("on", ()))}
        for role, files in task.sources.items():
            blobs |= {f"{role}/{f.logical}": f.blob for f in files if f.blob}
        root = tuple(task.tools(purpose) for purpose in task.spec.needs)
        done = task.execute(Action(("join", task.spec.add), root, inputs=blobs, outputs=("o",)))
        data = task.path(done.outputs["o"]).read_bytes()
        return {"file": task.put_bytes(data[: task.spec.first or None])}


@dataclass(frozen=True, slots=True)
class PinSpec:
    what: str = text("a file outside")
    on: tuple[str, ...] = refs("upstream", ())


class Pin:
    """Locks a file outside and yields it."""

    name = "pin"
    version = 1
    Spec = PinSpec
    produces = "file"

    def tools(self, spec: PinSpec) -> tuple[str, ...]:
        return ()

    def lock(self, spec: PinSpec, locker: Any) -> Locked:
        got = locker.fetch(f"file:{spec.what}").read_bytes()
        blob = of_bytes(got)
        return Locked(
            {"packages": [[spec.what, got.decode()]]},
            (Material(f"file:{spec.what}", blob.digest, blob.size),),
        )

    def build(self, task: Any) -> dict[str, Blob]:
        (one,) = task.locked.materials
        return {"file": task.put_bytes(task.path(Blob(one.digest, one.size)).read_bytes())}


@dataclass(frozen=True, slots=True)
class ToolSpec:
    purpose: str = text("which")


class Tool:
    name = "tools"
    version = 1
    Spec = ToolSpec
    produces = "tools"

    def tools(self, spec: ToolSpec) -> tuple[str, ...]:
        return ()

    def lock(self, spec: ToolSpec, locker: Any) -> Locked:
        return Locked({"packages": [[spec.purpose, "1"]]})

    def build(self, task: Any) -> dict[str, Blob]:
        return {"layer": task.put_bytes(b"tools of " + task.spec.purpose.encode())}


class FakeExecutor:
    """Joins the inputs of an action in this process, and counts."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.ran: list[str] = []
        self.most = self.now = 0
        self.lock = threading.Lock()

    def execute(self, action: Action, *, name: str, scratch: Path, cancel: threading.Event) -> ActionResult:
        with self.lock:
            self.ran.append(name)
            self.now += 1
            self.most = max(self.most, self.now)
        data = b"".join(self.store.cas.read(blob) for blob in (*action.root, *action.inputs.values()))
        blob = self.store.cas.put_bytes(data + action.command[1].encode())
        with self.lock:
            self.now -= 1
        return ActionResult({"o": blob}, None, b"said\n", 0.0)

    def close(self) -> None:
        pass


@dataclass
class World:
    """A workspace whose recipe is a list of declarations."""

    root: Path
    nodes: list[Declaration] = field(default_factory=list)
    kinds: dict[str, Any] = field(default_factory=lambda: {k.name: k() for k in (Join, Pin, Tool)})
    outside: dict[str, bytes] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    remotes: tuple[Any, ...] = ()
    keepers: tuple[Any, ...] = ()
    cancel: threading.Event | None = None
    settable: frozenset[str] = frozenset("v")
    wrap: Callable[[Any], Any] = lambda executor: executor

    def __post_init__(self) -> None:
        (self.root / "recipe.yaml").write_text("")
        self.store = Store(self.root / "cache")
        self.executor = FakeExecutor(self.store)

    def node(self, name: str, *on: str, src: Mapping[str, str] | None = None, **spec: Any) -> None:
        hints = {key: spec.pop(key) for key in ("pause", "cpu") if key in spec}
        values = {"add": "", "first": 0, "fails": False, "needs": [], **spec}
        sources = {f"src.{label}": path for label, path in (src or {}).items()}
        self._put(Declaration(name, "join", values, {"on": on} if on else {}, sources, hints))

    def pin(self, name: str, what: str, *on: str) -> None:
        self._put(Declaration(name, "pin", {"what": what}, {"on": on} if on else {}))

    def _put(self, one: Declaration) -> None:
        self.nodes = [node for node in self.nodes if node.name != one.name] + [one]
        recipe = self.root / "recipe.yaml"
        recipe.write_text(recipe.read_text() + one.name + "\n")

    def file(self, path: str, data: str, mode: int = 0o644) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(data)
        (self.root / path).chmod(mode)

    def request(self, *nodes: str, **more: Any) -> Request:
        return Request(str(self.root / "recipe.yaml"), str(self.store.root), nodes=nodes, **more)

    @property
    def wiring(self) -> Wiring:
        def called(name: str, value: Any) -> Callable[..., Any]:
            def call(*_: Any) -> Any:
                self.calls.append(name)
                return value() if callable(value) and name == "recipe" else value

            return call

        return Wiring(
            recipe=called("recipe", self.recipe),
            kinds=called("kinds", self.kinds),
            tools=lambda purpose: Declaration(f"tools:{purpose}", "tools", {"purpose": purpose}),
            store=called("store", self.store),
            executor=called("executor", self.wrap(self.executor)),
            materials=lambda _: self.materials,
            files=lambda _: self.fetch,
            results=lambda store: Results(store, self.remotes, self.keepers),
            cancel=self.cancel,
        )

    def recipe(self) -> Recipe:
        return Recipe(
            "test", "recipe.yaml", str(self.root), {}, tuple(self.nodes), Publish(), 0, "linux/amd64",
            names=frozenset(node.name for node in self.nodes), settable=self.settable,
        )  # fmt: skip

    def materials(self, wanted: Sequence[Material]) -> None:
        for one in wanted:
            self.store.cas.put_bytes(self.outside[one.uri.partition(":")[2]])

    def fetch(self, uri: str, *, digest: str | None = None, size: int | None = None) -> Path:
        self.calls.append(f"fetch {uri}")
        return self.store.cas.path(self.store.cas.put_bytes(self.outside[uri.partition(":")[2]]).digest)

    def run(self, *nodes: str, **more: Any) -> Outcome:
        """Evaluate; `ran` then holds what was built by it."""
        self.events.clear()
        self.calls.clear()
        self.executor.ran.clear()
        return engine.evaluate(self.request(*nodes, **more), self.wiring, Events(self.events.append))

    def why(self, node: str) -> tuple[str, ...]:
        return engine.why(self.request(), self.wiring, Events(), node)

    def plan(self, *nodes: str) -> dict[str, Any]:
        return {one.name: one for one in engine.plan(self.request(*nodes), self.wiring, Events())}

    def text(self, outcome: Outcome, node: str) -> str:
        return self.store.cas.read(outcome.outputs(node)["file"]).decode()

    @property
    def ran(self) -> list[str]:
        return sorted(self.executor.ran)

    def settle(self) -> None:
        """Let file times grow old enough to be believed."""
        time.sleep(0.03)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)
