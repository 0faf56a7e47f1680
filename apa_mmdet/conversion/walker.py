"""A walk through the statements of a module's methods that can run."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from torch import nn

from .source import Place, methods, position, syntax
from .static_values import UNKNOWN, bind, contain_modules, decide, evaluate, loop_values


class Walker(ast.NodeVisitor):
    """Visits the statements that can run, with the module's attributes as they are.

    Of a condition on the module's attributes, only the branch it selects is visited. A
    loop over the module's own layers is visited once for each layer, any other loop
    once.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.methods = methods(type(module))
        self.unreadable: dict[str, None] = {}  # methods without source, in order
        self.reset()

    def reset(self) -> None:
        """Reset the traversal."""
        self.reached: set[tuple[type, str]] = set()  # methods that have been visited
        # Around the current node: loops over own layers, outermost first, with the pass
        # through each, and whether it runs several times with the same weights.
        self.loops: tuple[Place, ...] = ()
        self.index: tuple[int, ...] = ()
        self.repeated = False
        self._stack: list[tuple[type, str]] = []
        self._known: dict[str, Any] = {}
        self._globals: Mapping[str, Any] = {}
        self._self = "self"

    # -------------------------------------------------------------------- functions
    def enter(
        self, name: str, owner: type, function: FunctionType, known: Mapping
    ) -> None:
        """Visit a method of class ``owner``, with known values of parameters."""
        here = (owner, name)
        if here in self._stack:
            return
        node = syntax(function)
        if node is None:
            self.unreadable[name] = None
            return
        if not node.args.args:
            return
        state = self._self, self._globals, self._known, self.loops, self.index
        repeated = self.repeated
        self.reached.add(here)
        self._stack.append(here)
        self._self = node.args.args[0].arg
        self._globals = inspect.unwrap(function).__globals__
        self._known = {**known, self._self: self.module}
        # A rewritten call in here could not see the loops around the method's call.
        self.repeated = self.repeated or bool(self.loops)
        self.loops, self.index = (), ()
        self._run(node.body)
        self._stack.pop()
        self._self, self._globals, self._known, self.loops, self.index = state
        self.repeated = repeated

    @property
    def current(self) -> tuple[type, str]:
        """The method being visited: its class and its name."""
        return self._stack[-1]

    def place(self, node: ast.AST) -> Place:
        """Return the place of a node of the current method."""
        return Place(*self.current, position(node))

    def value(self, node: ast.expr) -> Any:
        """Return the value of an expression, or UNKNOWN."""
        return evaluate(node, self._known, self._globals)

    def is_self(self, node: ast.AST) -> bool:
        """Return whether a node is the module."""
        return isinstance(node, ast.Name) and node.id == self._self

    @contextmanager
    def _without(self, names: Iterable[str]) -> Iterator[None]:
        known = self._known
        hidden = set(names)
        self._known = {k: v for k, v in known.items() if k not in hidden}
        yield
        self._known = known

    # ------------------------------------------------------------------- statements
    def _run(self, nodes: Iterable[Any]) -> bool:
        """Visit nodes in turn; return whether one of them leaves the block."""
        for node in nodes:
            leaves = self.visit(node)
            if leaves or isinstance(
                node, (ast.Return, ast.Raise, ast.Break, ast.Continue)
            ):
                return True
        return False

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:  # noqa: D102
        with self._without(argument.arg for argument in node.args.args):
            self._run(node.body if isinstance(node.body, list) else [node.body])

    visit_Lambda = visit_FunctionDef

    def visit_With(self, node: ast.With) -> bool:  # noqa: D102
        for item in node.items:
            self.visit(item)
        return self._run(node.body)

    def visit_If(self, node: ast.If | ast.IfExp) -> bool:  # noqa: D102
        holds = decide(node.test, self._known, self._globals)
        self.visit_test(node.test)
        leaves = []
        for branch, runs_if in ((node.body, True), (node.orelse, False)):
            if holds is UNKNOWN or holds is runs_if:
                nodes = branch if isinstance(branch, list) else [branch]
                leaves.append(self._run(nodes))
        return all(leaves)

    visit_IfExp = visit_If

    def visit_test(self, node: ast.expr) -> None:
        """Visit a condition, except where it only asks whether an attribute is set."""
        if isinstance(node, (ast.BoolOp, ast.UnaryOp, ast.Compare)):
            for child in ast.iter_child_nodes(node):
                self.visit_test(child)
        elif not (isinstance(node, ast.Attribute) and self.is_self(node.value)):
            self.visit(node)

    # ------------------------------------------------------------------------ loops
    def visit_For(self, node: ast.For) -> None:  # noqa: D102
        self.visit(node.iter)
        values = loop_values(self.value(node.iter))
        known, loops, index = self._known, self.loops, self.index
        repeated = self.repeated
        if values is None:
            self.repeated = True
            with self._without(_names(node.target)):
                self._run(node.body)
        else:
            is_own = contain_modules(values) or self._selects(node.target, node.body)
            if is_own:
                self.loops = (*loops, self.place(node))
            for number, value in enumerate(values):
                self._known = {**known, **bind(node.target, value)}
                self.index = (*index, number) if is_own else index
                self._run(node.body)
        self._known, self.loops, self.index = known, loops, index
        self.repeated = repeated
        self._run(node.orelse)

    def _comprehension(self, node: Any) -> None:
        """Visit a comprehension as the nested loops that it stands for."""
        body = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        for generator in reversed(node.generators):
            body = [*generator.ifs, *body]
            loop = ast.For(generator.target, generator.iter, body, [])
            body = [ast.copy_location(loop, generator.iter)]
        self._run(body)

    visit_ListComp = visit_SetComp = visit_GeneratorExp = _comprehension
    visit_DictComp = _comprehension

    def _selects(self, target: ast.expr, body: list) -> bool:
        """Return whether the loop's variable selects among the module's own layers."""
        names = _names(target)
        for node in (node for statement in body for node in ast.walk(statement)):
            if isinstance(node, ast.Subscript):
                root, key = node.value, node.slice
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
                root, key = node.args[0], node.args[1]
            else:
                continue
            while isinstance(root, (ast.Attribute, ast.Subscript)):
                root = root.value
            if self.is_self(root) and _names(key) & names:
                return True
        return False


def _names(node: ast.AST) -> set[str]:
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
