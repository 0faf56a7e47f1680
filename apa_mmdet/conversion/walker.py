"""A walk through the statements of a module's methods that can run."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from torch import nn

from .source import Place, methods, position, syntax
from .static_values import UNKNOWN, bind, contain_modules, decide, evaluate, loop_values

# The branches that lead to a statement: which one of each condition that is decided
# only when the model runs.
Arms = Mapping[Hashable, int]


def exclude_each_other(first: Arms, second: Arms) -> bool:
    """Return whether of two statements only one can run in a pass of the model."""
    return any(second.get(test, arm) != arm for test, arm in first.items())


class Walker(ast.NodeVisitor):
    """Visits the statements that can run, with the module's attributes as they are.

    Of a condition on the module's attributes, only the branch it selects is visited; of
    any other, each branch in turn. A loop over the module's own layers is visited once
    for each layer, any other loop once.
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
        self.arms: Arms = {}
        self._may_vary = False  # a condition, from one pass of a loop to the next
        self._stack: list[tuple[type, str]] = []
        self._known: dict[str, Any] = {}
        self._globals: Mapping[str, Any] = {}
        self._self = "self"
        self._unassigned: frozenset[str] = frozenset()  # parameters, never assigned
        self._is_repeated = False  # whether the current method as a whole is

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
        repeated, arms = self.repeated, self.arms
        of_method = self._unassigned, self._is_repeated
        self.reached.add(here)
        self._stack.append(here)
        self._self = node.args.args[0].arg
        self._globals = inspect.unwrap(function).__globals__
        self._known = {**known, self._self: self.module}
        self._unassigned = _never_assigned(node)
        # A rewritten call in here could not see the loops around the method's call.
        self.repeated = self.repeated or bool(self.loops)
        self.loops, self.index = (), ()
        self._is_repeated = self.repeated or self._may_vary
        self._run(node.body)
        self._stack.pop()
        self._self, self._globals, self._known, self.loops, self.index = state
        self.repeated, self.arms = repeated, arms
        self._unassigned, self._is_repeated = of_method

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
        arms = self.arms
        with self._without(argument.arg for argument in node.args.args):
            self._branch(node.body)
        self.arms = arms

    visit_Lambda = visit_FunctionDef

    def visit_With(self, node: ast.With) -> bool:  # noqa: D102
        for item in node.items:
            self.visit(item)
        return self._run(node.body)

    def visit_If(self, node: ast.If | ast.IfExp) -> bool:  # noqa: D102
        holds = decide(node.test, self._known, self._globals)
        self.visit_test(node.test)
        if holds is not UNKNOWN:
            return self._branch(node.body if holds else node.orelse)
        here, facts = self._facts(node.test)
        others = {test: 1 - arm for test, arm in facts.items()}
        leaves = self._arm(facts, node.body)
        other_leaves = self._arm(others, node.orelse)
        if leaves != other_leaves and here in facts:
            # What follows runs only if the branch that leaves did not.
            self.arms = {here: int(other_leaves), **self.arms}
        return leaves and other_leaves

    visit_IfExp = visit_If

    def visit_Match(self, node: ast.Match) -> None:  # noqa: D102
        self.visit(node.subject)
        for i, case in enumerate(node.cases):
            names = {getattr(n, "name", None) for n in ast.walk(case.pattern)}
            with self._without(filter(None, names)):
                here = self.place(node), self.index
                varies = self.repeated or self._may_vary
                self._arm({} if varies else {here: i}, case.body)

    def _branch(self, branch: ast.expr | list[ast.stmt]) -> bool:
        return self._run(branch if isinstance(branch, list) else [branch])

    def _arm(self, facts: Arms, branch: ast.expr | list[ast.stmt]) -> bool:
        """Visit a branch that runs if ``facts``; return whether it leaves the block."""
        before = self.arms
        self.arms = {**facts, **before}
        leaves = self._branch(branch)
        # What is known because of a return in the branch stays.
        known = self.arms.items()
        self.arms = {k: v for k, v in known if k in before or k not in facts}
        return leaves

    def _facts(self, test: ast.expr) -> tuple[Hashable, Arms]:
        """Return a condition's key, and the facts that hold where it is true.

        There are none if it may be true in one pass of a loop and not in another. A
        condition on parameters that are never assigned has another key besides, which
        it shares with the same condition elsewhere in the method.
        """
        here = self.place(test), self.index
        has_calls = any(isinstance(node, ast.Call) for node in ast.walk(test))
        is_given = not has_calls and _names(test) <= self._unassigned
        is_constant = self._is_constant(test) or (is_given and not self._is_repeated)
        if (self.repeated or self._may_vary) and not is_constant:
            return here, {}
        facts: dict[Hashable, int] = {here: 1}
        if not is_given:
            return here, facts
        arm = 1
        while isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            test, arm = test.operand, 1 - arm
        if isinstance(test, ast.Compare) and type(test.ops[0]) in _OPPOSITE:
            if len(test.ops) == 1:
                opposite = _OPPOSITE[type(test.ops[0])]()
                test = ast.Compare(test.left, [opposite], test.comparators)
                arm = 1 - arm
        facts[self.current, ast.unparse(test)] = arm
        return here, facts

    def _is_constant(self, test: ast.expr) -> bool:
        """Return whether a condition is on what does not change within a step."""
        if isinstance(test, ast.Name):
            return self.is_self(test) or test.id in self._globals
        if isinstance(test, ast.Attribute) and test.attr in _CONSTANT_IN_A_STEP:
            return True
        return all(map(self._is_constant, ast.iter_child_nodes(test)))

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
        repeated, arms, may_vary = self.repeated, self.arms, self._may_vary
        if values is None:
            self.repeated = True
            with self._without(_names(node.target)):
                self._run(node.body)
        else:
            is_own = contain_modules(values) or self._selects(node.target, node.body)
            if is_own:
                self.loops = (*loops, self.place(node))
            else:
                self._may_vary = True
            for number, value in enumerate(values):
                self._known = {**known, **bind(node.target, value)}
                self.index = (*index, number) if is_own else index
                self._run(node.body)
        self._known, self.loops, self.index = known, loops, index
        self.repeated, self.arms, self._may_vary = repeated, arms, may_vary
        self._run(node.orelse)

    def visit_While(self, node: ast.While) -> None:  # noqa: D102
        arms, may_vary = self.arms, self._may_vary
        self._may_vary = True
        self.visit(node.test)
        self._run(node.body)
        self.arms, self._may_vary = arms, may_vary
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


_CONSTANT_IN_A_STEP = (
    "device",
    "dtype",
    "is_cuda",
    "is_cpu",
    "is_mps",
    "requires_grad",
)
_OPPOSITE = {ast.IsNot: ast.Is, ast.NotEq: ast.Eq, ast.NotIn: ast.In}


def _never_assigned(node: ast.FunctionDef) -> frozenset[str]:
    """Return the parameters of a function, without ``self``, that it never assigns."""
    names = {argument.arg for argument in (*node.args.args[1:], *node.args.kwonlyargs)}
    stored = {
        name.id
        for name in ast.walk(node)
        if isinstance(name, ast.Name) and not isinstance(name.ctx, ast.Load)
    }
    return frozenset(names - stored)


def _names(node: ast.AST) -> set[str]:
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
