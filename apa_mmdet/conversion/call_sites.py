"""The places where a module calls its activations, read from the source of its methods.

MMDetection often calls one activation module in several places (``self.relu`` three
times in a bottleneck) or a function inline (``F.relu``). Each place in the code is one
site. A loop over the module's own layers makes a site for each of them; a loop over
feature levels, which share their weights, makes one.
"""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import nn

from . import kinds
from .rewriting import BaseCall
from .source import Place, inherited, readable_classes, syntax
from .static_values import UNKNOWN, evaluate
from .walker import Walker


@dataclass
class Call:
    """A call of an activation."""

    place: Place
    attribute: str | None  # that is called; None for a function called inline
    kind: str | None  # of the function, a key of kinds.KINDS
    options: dict[str, Any]  # AGLU's further arguments in place of the function
    loops: tuple[Place, ...]  # over the module's own layers, outermost first
    index: tuple[int, ...]  # the pass through each of these loops
    producer: str | None  # the child module whose result is the input, if evident
    repeated: bool  # runs several times with the same weights
    takes_more: bool = False  # arguments than the input


class CallReader(Walker):
    """Collects the calls of some attributes and functions in one module's methods."""

    def __init__(self, module: nn.Module, activations: set[str]) -> None:
        super().__init__(module)
        self.activations = activations
        # Activations that are not only called, so that they cannot be split.
        self.escapes: set[str] = set()
        # Activations called for their effect on the input, with the result unused.
        self.discarded: set[str] = set()
        # Inline calls that stay, as (method, function, reason), in order.
        self.left: dict[tuple[str, str, str], None] = {}
        self.base_calls: dict[BaseCall, None] = {}
        # Children used several times with the same weights, such as a head's layers
        # that run on each feature level.
        self.repeated_children: set[str] = set()
        self.looks_up = False  # attributes by a name that is computed

    def reset(self) -> None:
        """Reset the traversal and the calls collected on it."""
        super().reset()
        self.calls: dict[tuple[Place, tuple[int, ...]], Call] = {}

    def entries(self) -> dict[str, list[Call]]:
        """Return the calls reached from each method that no other one leads to."""
        only_while_built = self._builders()
        self.escapes |= self._used_by_properties()
        calls, reached = {}, {}
        for name, (owner, function) in self.methods.items():
            if name in only_while_built:
                continue
            self.reset()
            self.enter(name, owner, function, {})
            calls[name] = list(self.calls.values())
            reached[name] = self.reached
        return {
            name: calls_of_method
            for name, calls_of_method in calls.items()
            if calls_of_method and not self._is_reached(name, reached, calls)
        }

    def _is_reached(self, name: str, reached: dict, calls: dict) -> bool:
        here = (self.methods[name][0], name)
        return any(
            here in reached[other]
            and calls[other]
            # Of methods that call each other the first counts.
            and not ((self.methods[other][0], other) in reached[name] and other > name)
            for other in reached
            if other != name
        )

    def _used_by_properties(self) -> set[str]:
        """Return the activations that a property uses: it cannot be rewritten."""
        getters = (
            getattr(value, "fget", None)
            for owner in readable_classes(type(self.module))
            for value in vars(owner).values()
        )
        return {
            node.attr
            for getter in getters
            if getter is not None
            for node in ast.walk(syntax(getter) or ast.Pass())
            if isinstance(node, ast.Attribute) and node.attr in self.activations
        }

    def _builders(self) -> set[str]:
        """Return the methods that run only while the module is built."""
        pending = [
            vars(owner)[name]
            for owner in readable_classes(type(self.module))
            for name in ("__init__", "init_weights")
            if name in vars(owner)
        ]
        builders = {"__init__", "init_weights"}
        while pending:
            for node in ast.walk(syntax(pending.pop()) or ast.Pass()):
                name = getattr(node, "attr", None)
                if name in self.methods and name not in (*builders, "forward"):
                    builders.add(name)
                    pending.append(self.methods[name][1])
        return builders

    # ----------------------------------------------------------------- expressions
    def visit_Expr(self, node: ast.Expr) -> None:  # noqa: D102
        before = set(self.calls)
        self.visit(node.value)
        call = self.calls.get((self.place(node.value), self.index))
        if call and (call.place, call.index) not in before:
            del self.calls[call.place, call.index]
            self.discarded.add(call.attribute or "")
            if call.attribute is None:
                why = "its result is discarded (called for its in-place effect)"
                self._leave(node.value, why)

    def visit_Attribute(self, node: ast.Attribute) -> None:  # noqa: D102
        if not self.is_self(node.value):
            self.visit(node.value)
        elif node.attr in self.activations:
            if isinstance(node.ctx, ast.Load):
                self.escapes.add(node.attr)
        elif node.attr in self.module._modules:
            if self.repeated:
                self.repeated_children.add(node.attr)
        elif node.attr in ("children", "modules", "named_children", "_modules"):
            self.looks_up = True
        elif node.attr in self.methods:  # passed on, to be called for each level
            repeated, self.repeated = self.repeated, True
            self.enter(node.attr, *self.methods[node.attr], {})
            self.repeated = repeated

    def visit_Call(self, node: ast.Call) -> None:  # noqa: D102
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.visit(argument)
        func = node.func
        if isinstance(func, ast.Attribute):
            self._call_attribute(node, func)
        elif self.is_self(func):
            if "forward" in self.methods:
                self.enter("forward", *self.methods["forward"], {})
        elif isinstance(func, ast.Name):
            if func.id == "getattr" and node.args and self.is_self(node.args[0]):
                attribute = self.value(node.args[1])
                self.looks_up |= attribute is UNKNOWN
                self.escapes |= self.activations & {attribute}
            self._call_function(node, self.value(func))
        else:
            self.visit(func)

    def _call_attribute(self, node: ast.Call, func: ast.Attribute) -> None:
        if self.is_self(func.value):
            if func.attr in self.activations:
                self._record(node, func.attr, None, {})
            elif func.attr in self.methods:
                owner, function = self.methods[func.attr]
                self.enter(func.attr, owner, function, self._arguments(function, node))
            else:
                self.visit(func)
        elif isinstance(func.value, ast.Call) and _is_super(func.value.func):
            base = inherited(type(self.module), self.current[0], func.attr)
            self._call_base(node, func.attr, base, by_name=False)
        else:
            value = self.value(func)
            is_call_without = not (node.args or node.keywords)
            if value is UNKNOWN:
                self.visit(func)
                if func.attr in kinds.KIND_OF_METHOD and is_call_without:
                    self._call_inline(node, kinds.KIND_OF_METHOD[func.attr])
            elif node.args and self.is_self(node.args[0]):
                classes = readable_classes(type(self.module))
                owners = (c for c in classes if vars(c).get(func.attr) is value)
                self._call_base(node, func.attr, next(owners, None), by_name=True)
            else:
                self._call_function(node, value)

    def _call_base(
        self, node: ast.Call, name: str, base: type | None, by_name: bool
    ) -> None:
        function = vars(base)[name] if base is not None else None
        if isinstance(function, FunctionType):
            self.base_calls[BaseCall(self.place(node), base, name, by_name)] = None
            self.enter(name, base, function, {})

    def _arguments(self, function: FunctionType, node: ast.Call) -> dict[str, Any]:
        """Return the known values of a method's parameters in a call of it."""
        definition = syntax(function)
        if definition is None:
            return {}
        names = [argument.arg for argument in definition.args.args[1:]]
        given = dict(zip(names, node.args))
        given.update({k.arg: k.value for k in node.keywords if k.arg in names})
        assigned = {
            name.id
            for name in ast.walk(definition)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
        }
        values = {
            name: self.value(argument)
            for name, argument in given.items()
            if name not in assigned and not isinstance(argument, ast.Starred)
        }
        return {name: v for name, v in values.items() if v is not UNKNOWN}

    # ------------------------------------------------------------------- functions
    def _call_function(self, node: ast.Call, function: Any) -> None:
        if isinstance(function, nn.Module):
            return  # another module's, such as self.child.act
        kind = kinds.kind_of(function)
        reason = kinds.reason_to_leave(function)
        if reason is not None:
            self._leave(node, reason)
        elif kind is not None:
            self._call_inline(node, kind)
        elif isinstance(function, FunctionType):
            self._helper(function)

    def _call_inline(self, node: ast.Call, kind: str) -> None:
        entry = kinds.KINDS[kind]
        arguments = dict(entry.arguments)
        given = dict(zip(arguments, node.args[1:]))
        given.update({k.arg: k.value for k in node.keywords})
        for name, default in entry.arguments.items():
            expression = given.get(name, given.get(None))  # None: **kwargs
            value = self.value(expression) if expression else default
            arguments[name] = value
            if not isinstance(value, (int, float, str)):
                self._leave(node, f"its {name} is not known at conversion time")
                return
        misfit = entry.misfit(arguments)
        if misfit:
            self._leave(node, misfit)
        else:
            self._record(node, None, kind, entry.aglu_options(arguments))

    def _helper(self, function: FunctionType) -> None:
        """Note the activations that a function outside any class calls."""
        if (function.__module__ or "").startswith(("torch.", "mmengine.", "numpy.")):
            return
        body = syntax(function)
        for inner in ast.walk(body) if body is not None else ():
            if isinstance(inner, ast.Call):
                called = evaluate(inner.func, {}, inspect.unwrap(function).__globals__)
                if not isinstance(called, nn.Module) and kinds.kind_of(called):
                    self.left[
                        self.current[1],
                        f"{ast.unparse(inner.func)} in {function.__name__}",
                        "it is called in a function outside any module",
                    ] = None

    def _leave(self, node: ast.Call, reason: str) -> None:
        self.left[self.current[1], ast.unparse(node.func), reason] = None

    def _record(
        self, node: ast.Call, attribute: str | None, kind: str | None, options: dict
    ) -> None:
        place = self.place(node)
        call = self.calls.get((place, self.index))
        if call is not None:
            call.repeated = True
            return
        called = getattr(node.args[0], "func", None) if node.args else None
        is_own = isinstance(called, ast.Attribute) and self.is_self(called.value)
        producer = called.attr if is_own else None
        self.calls[place, self.index] = Call(
            *(place, attribute, kind, options, self.loops, self.index, producer),
            repeated=self.repeated,
            takes_more=len(node.args) + len(node.keywords) > 1,
        )


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "super"
