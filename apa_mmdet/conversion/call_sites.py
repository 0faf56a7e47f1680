"""The places where a module calls its activations, read from the source of its methods.

MMDetection often calls one activation module in several places (``self.relu`` three
times in a bottleneck) or a function inline (``F.relu``). Each place in the code is one
site. A loop over the module's own layers makes a site for each of them; a loop over
feature levels, which share their weights, makes one.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from torch import nn

from .identify import UNLISTED, Activation, identify, identify_expression
from .kinds import KIND_OF_METHOD, KINDS, look_up
from .rewriting import BaseCall
from .source import (
    Place,
    builders,
    inherited,
    named_attributes,
    named_outside_methods,
    readable_classes,
    syntax,
)
from .static_values import UNKNOWN, evaluate, loop_values
from .walker import Arms, Walker

# What reaches a module's children without naming one.
_LOOKUPS = (
    *("children", "modules", "named_children", "named_modules", "get_submodule"),
    *("_modules", "__dict__", "items", "values"),
)
# Functions that do not call what they are given.
_INQUIRIES = ("getattr", "hasattr", "isinstance", "super", "type", "id", "setattr")


@dataclass
class Call:
    """A call of an activation."""

    place: Place
    attribute: str | None  # that is called; None for a function called inline
    activation: Activation  # that is called
    function: Callable | None  # that is called inline, where it is not torch's
    loops: tuple[Place, ...]  # over the module's own layers, outermost first
    index: tuple[int, ...]  # the pass through each of these loops
    producer: str | None  # the child module whose result is the input, if evident
    repeated: bool  # runs several times with the same weights
    arms: list[Arms]  # it is in, each time that the walk comes to it
    takes_more: bool = False  # arguments than the input
    by_keyword: bool = False  # as act(input=x); AGLU's parameter has another name
    variable: str | None = None  # the input, of an expression in place of a call


@dataclass
class Surroundings:
    """What one module's methods need to know of the rest of the model, and tell it."""

    modules: set[int]  # all modules of the model
    # Activations that a module calls without their names: those of another that it
    # iterates over.
    called: set[int] = field(default_factory=set)


class CallReader(Walker):
    """Collects the calls of some attributes and functions in one module's methods."""

    def __init__(
        self,
        module: nn.Module,
        activations: Mapping[str, Activation],
        surroundings: Surroundings,
    ) -> None:
        super().__init__(module)
        self.activations = activations
        self.surroundings = surroundings
        # Activations that are not only called, so that they cannot be split.
        self.escapes: set[str] = set()
        # Activations called for their effect on the input, with the result unused.
        self.discarded: set[str] = set()
        # Calls that are of another activation, or of something else, in another pass.
        self.various: set[Place] = set()
        # Inline calls that stay, as (method, function, reason), in order.
        self.left: dict[tuple[str, str, str], None] = {}
        self.base_calls: dict[BaseCall, None] = {}
        # Children used several times with the same weights, such as a head's layers
        # that run on each feature level.
        self.repeated_children: set[str] = set()
        self.looks_up = False  # attributes by a name that is computed, or all of them
        # Activations that it takes from a list which is not an nn.ModuleList, so that
        # replacing the attribute would not replace what is called.
        self.listed: set[str] = set()

    def reset(self) -> None:
        """Reset the traversal and the calls collected on it."""
        super().reset()
        self.calls: dict[tuple[Place, tuple[int, ...]], Call] = {}

    def entries(self) -> dict[str, list[Call]]:
        """Return the calls reached from each method that no other one leads to."""
        cls = type(self.module)
        only_while_built = builders(cls)
        # These cannot be rewritten.
        self.escapes |= self.activations.keys() & named_outside_methods(cls)
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
        """Return whether another method leads to one, or would but for a condition."""
        here = (self.methods[name][0], name)
        others = [other for other in reached if other != name]
        if not any(here in reached[other] for other in others):
            return any(
                name in named_attributes(self.methods[other][1]) for other in others
            )
        return any(
            here in reached[other]
            and calls[other]
            # Of methods that call each other the first counts.
            and not ((self.methods[other][0], other) in reached[name] and other > name)
            for other in others
        )

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
            self._look_into(node)
        elif node.attr in self.activations:
            if isinstance(node.ctx, ast.Load):
                self.escapes.add(node.attr)
        elif node.attr in self.module._modules:
            if self.repeated:
                self.repeated_children.add(node.attr)
        elif node.attr in _LOOKUPS and node.attr not in self.methods:
            self.looks_up = True
        elif node.attr in self.methods:  # passed on, to be called for each level
            repeated, self.repeated = self.repeated, True
            self.enter(node.attr, *self.methods[node.attr], {})
            self.repeated = repeated

    def visit_BinOp(self, node: ast.BinOp) -> None:  # noqa: D102
        names = [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
        known = {*self._known, *self._globals}
        variables = {name for name in names if name not in known}
        has_call = any(isinstance(inner, ast.Call) for inner in ast.walk(node))
        if has_call and len(variables) == 1 and len(names) > 1:
            variable = variables.pop()
            found = identify_expression(
                *(node, variable, self.module, self._self, self._globals)
            )
            if found is not None:
                self._record(node, None, found, found.form, variable)
                return
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:  # noqa: D102
        if self.is_self(node):
            self.looks_up = True
        elif isinstance(node.ctx, ast.Load):
            self._use(self._known.get(node.id))

    def visit_For(self, node: ast.For) -> None:  # noqa: D102
        for value in loop_values(self.value(node.iter)) or ():
            for item in value if isinstance(value, tuple) else (value,):
                self._use(item)
        super().visit_For(node)

    def visit_Call(self, node: ast.Call) -> None:  # noqa: D102
        func = node.func
        asks = getattr(func, "id", None) in _INQUIRIES or self._is_base_call(node)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            if not (asks and self.is_self(argument)):
                self.visit(argument)
        if isinstance(func, ast.Attribute):
            self._call_attribute(node, func)
        elif self.is_self(func):
            if "forward" in self.methods:
                self.enter("forward", *self.methods["forward"], {})
        elif isinstance(func, ast.Name):
            if func.id == "getattr" and node.args and self.is_self(node.args[0]):
                attribute = self.value(node.args[1])
                self.looks_up |= attribute is UNKNOWN
                self.escapes |= self.activations.keys() & {attribute}
            self._call_function(node, self.value(func))
        else:
            self.visit(func)

    def _call_attribute(self, node: ast.Call, func: ast.Attribute) -> None:
        if self.is_self(func.value):
            if func.attr in self.activations:
                self._record(node, func.attr, self.activations[func.attr])
            elif func.attr in self.methods:
                owner, function = self.methods[func.attr]
                self.enter(func.attr, owner, function, self._arguments(function, node))
            else:
                self.visit(func)
                activation = identify(vars(self.module).get(func.attr))
                if activation is not None:  # a function as an attribute
                    self._leave(node, activation.reason)
        elif isinstance(func.value, ast.Call) and _is_super(func.value.func):
            base = inherited(type(self.module), self.current[0], func.attr)
            self.looks_up |= base is None and func.attr == "forward"
            self._call_base(node, func.attr, base, by_name=False)
        else:
            self._look_into(func)
            value = self.value(func)
            is_call_without = not (node.args or node.keywords)
            if value is UNKNOWN:
                self.visit(func)
                if func.attr in KIND_OF_METHOD and is_call_without:
                    self._call_inline(node, KIND_OF_METHOD[func.attr])
            elif self._is_base_call(node):
                classes = readable_classes(type(self.module))
                owners = (c for c in classes if vars(c).get(func.attr) is value)
                self._call_base(node, func.attr, next(owners, None), by_name=True)
            else:
                self._call_function(node, value)

    def _is_base_call(self, node: ast.Call) -> bool:
        """Return whether a call is ``Base.method(self, ...)``."""
        return (
            isinstance(node.func, ast.Attribute)
            and bool(node.args)
            and self.is_self(node.args[0])
            and isinstance(self.value(node.func.value), type)
        )

    def _look_into(self, node: ast.Attribute) -> None:
        """Note what an attribute of another object reaches."""
        if node.attr in _LOOKUPS:
            other = self.value(node.value)
            if isinstance(other, nn.Module):
                self.surroundings.called.update(map(id, other.modules()))
        else:
            self._use(self._submodule(node))

    def _submodule(self, node: ast.expr) -> nn.Module | None:
        """Return the module that ``self.child.grandchild`` or a loop's variable is."""
        if isinstance(node, ast.Name):
            value = self._known.get(node.id)
            return value if isinstance(value, nn.Module) else None
        if not isinstance(node, ast.Attribute):
            return None
        parent = self._submodule(node.value)
        return None if parent is None else parent._modules.get(node.attr)

    def _use(self, value: Any) -> None:
        """Note an activation that is taken by value, not by its name."""
        if not isinstance(value, nn.Module):
            return
        names = [n for n in self.activations if getattr(self.module, n) is value]
        (self.listed if self._is_listed(value) else self.escapes).update(names)
        if not names:
            self.surroundings.called.add(id(value))

    def _is_listed(self, module: nn.Module) -> bool:
        """Return whether a list, tuple or dict that is not a module holds a module."""
        own = {k: v for k, v in vars(self.module).items() if k != "_modules"}
        return any(
            module is item
            for value in own.values()
            if isinstance(value, (list, tuple, dict))
            for item in (value.values() if isinstance(value, dict) else value)
        )

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
        if id(function) in self.surroundings.modules:
            self._use(function)
            self.various.add(self.place(node))
            return
        kind = look_up(function)
        if kind in KINDS and not isinstance(function, nn.Module):
            self._call_inline(node, kind)
            return
        activation = identify(function)
        if activation is None or activation.reason:
            self.various.add(self.place(node))
        if activation is None or activation.reason == UNLISTED:
            if isinstance(function, FunctionType):
                self._helper(function)
        elif activation.reason:
            self._leave(node, activation.reason)
        elif _is_plain(node):
            self._record(node, None, activation, function)
        else:
            self._leave(node, "it is called with further arguments")

    def _call_inline(self, node: ast.Call, kind: str) -> None:
        """Note a call of one of torch's functions."""
        entry = KINDS[kind]
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
            self._record(node, None, Activation(kind, entry.aglu_options(arguments)))

    def _helper(self, function: FunctionType) -> None:
        """Note the activations that a function outside any class calls."""
        if (function.__module__ or "").startswith(("torch.", "mmengine.", "numpy.")):
            return
        body = syntax(function)
        for inner in ast.walk(body) if body is not None else ():
            if isinstance(inner, ast.Call):
                called = evaluate(inner.func, {}, inspect.unwrap(function).__globals__)
                activation = None if called is UNKNOWN else identify(called)
                if activation is not None and activation.kind:
                    self.left[
                        self.current[1],
                        f"{ast.unparse(inner.func)} in {function.__name__}",
                        "it is called in a function outside any module",
                    ] = None

    def _leave(self, node: ast.expr, reason: str) -> None:
        what = ast.unparse(getattr(node, "func", node))
        self.left[self.current[1], what, reason] = None

    def _record(
        self,
        node: ast.Call | ast.BinOp,
        attribute: str | None,
        activation: Activation,
        function: Callable | None = None,
        variable: str | None = None,
    ) -> None:
        place = self.place(node)
        call = self.calls.get((place, self.index))
        if call is not None:
            call.repeated = True
            call.arms.append(self.arms)
            if call.activation.category != activation.category:
                self.various.add(place)
            return
        given = [] if isinstance(node, ast.BinOp) else [*node.args, *node.keywords]
        called = getattr(given[0], "func", None) if given else None
        is_own = isinstance(called, ast.Attribute) and self.is_self(called.value)
        self.calls[place, self.index] = Call(
            place=place,
            attribute=attribute,
            activation=activation,
            function=function,
            loops=self.loops,
            index=self.index,
            producer=called.attr if is_own else None,
            repeated=self.repeated,
            arms=[self.arms],
            takes_more=len(given) > 1,
            by_keyword=bool(given) and not node.args and _is_plain(node),
            variable=variable,
        )


def _is_plain(node: ast.Call) -> bool:
    """Return whether a call has exactly one argument."""
    given = [*node.args, *node.keywords]
    return (
        len(given) == 1
        and not isinstance(given[0], ast.Starred)
        and getattr(given[0], "arg", "") is not None
    )


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "super"
