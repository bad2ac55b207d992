"""What a recipe declares, as the engine works with it: its nodes, and the tools trees that they and each other need."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING

from kairosbuild.execute.inputs import Inputs
from kairosbuild.execute.nodes import TOOLS, Node, Work
from kairosbuild.recipe.declaration import Declaration, Recipe

if TYPE_CHECKING:
    from kairosbuild.execute.engine import Wiring
    from kairosbuild.graph.node import KindTable


class Declared:
    """Read when it is first asked for."""

    def __init__(self, wiring: Wiring, inputs: Inputs) -> None:
        self._wiring, self._inputs = wiring, inputs
        self._spare: dict[str, Node] = {}

    @cached_property
    def kinds(self) -> KindTable:
        """The table of kinds."""
        return self._wiring.kinds()

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe."""
        self._inputs.look()
        recipe = self._wiring.recipe()
        self._inputs.included(recipe.files)
        return recipe

    @cached_property
    def nodes(self) -> list[Node]:
        """The recipe's nodes, then the tools trees."""
        nodes = {one.name: self._node(one) for one in self.recipe.nodes}
        todo = list(nodes.values())
        while todo:
            for purpose in todo.pop().tools:
                if TOOLS + purpose not in nodes:
                    nodes[TOOLS + purpose] = node = self._node(self._wiring.tools(purpose))
                    todo.append(node)
        return list(nodes.values())

    @cached_property
    def names(self) -> set[str]:
        """Their names."""
        return {node.name for node in self.nodes}

    @cached_property
    def work(self) -> Work:
        """The graph of them."""
        from kairosbuild.graph import dag

        declared = {node.name: node for node in self.nodes}
        origins = {name: node.declaration.origin for name, node in declared.items()}
        graph = dag.build({name: node.needs for name, node in declared.items()}, origins)
        recipe, nodes = self.recipe, {i: declared[name] for i, name in enumerate(graph.names)}
        return Work(graph, nodes, recipe.platform, recipe.epoch, os.path.realpath(recipe.root))

    def tools(self, purpose: str) -> Node:
        """The node of a tools tree, also of one that only locking needs."""
        name = TOOLS + purpose
        if name in self.names:
            return self.work.named(name)
        if name not in self._spare:
            self._spare[name] = self._node(self._wiring.tools(purpose))
        return self._spare[name]

    def _node(self, declaration: Declaration) -> Node:
        node = Node(declaration, self.kinds)
        node.tools = tuple(node.kind.tools(node.spec))
        return node
