"""Subclasses whose methods call one activation per site.

A module that calls one activation from several places, or a function inline, becomes an
instance of a subclass made for it. Its methods are those of the original class,
compiled anew from their source with the call expressions replaced; lines and file names
stay, so tracebacks and debuggers show the original code.
"""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Iterable
from functools import cache
from types import FunctionType
from typing import Any

from torch import nn

from .call_sites import Jump
from .sites import Edit
from .source import methods, syntax
from .walking import position


class ActivationSites(nn.ModuleDict):
    """The activations that stand in for one, a key for each site.

    Code that has not been rewritten may still call the whole; it then gets the
    activation that was there before.

    Args:
        replaced: That activation.
    """

    def __init__(self, replaced: Any) -> None:
        super().__init__()
        self._replaced = (replaced,)  # not a child: it has no place in the keys

    def forward(self, x: Any) -> Any:
        """Return the replaced activation of ``x``."""
        return self._replaced[0](x)


_MIXINS: dict[type, type] = {}


def extend(base: type, mixin: type) -> None:
    """Give instances of exactly ``base`` that are rewritten a mixin on top.

    Its methods may call the rewritten ones by ``super()``.
    """
    _MIXINS[base] = mixin


def rewrite(module: nn.Module, edits: Iterable[Edit], jumps: Iterable[Jump]) -> None:
    """Route the calls of one module to its sites, by changing its class."""
    module.__class__ = _subclass(type(module), frozenset(edits), frozenset(jumps))


@cache
def _subclass(base: type, edits: frozenset[Edit], jumps: frozenset[Jump]) -> type:
    namespace: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce_ex__": _reduce,
        "_made_from": (base, edits, jumps),
    }
    effective = methods(base)
    # A base class's version, which a super() call runs, needs a name of its own.
    named = {(owner, name): name for name, (owner, _) in effective.items()}
    for jump in jumps:
        alias = f"_{jump.target.__name__.lstrip('_')}_{jump.method}"
        named.setdefault((jump.target, jump.method), alias)
    places = [edit.place for edit in edits] + [jump.place for jump in jumps]
    for owner, method in {(place.owner, place.method) for place in places}:
        function = vars(owner)[method]
        namespace[named[owner, method]] = _rewritten(
            owner,
            function,
            [e for e in edits if (e.place.owner, e.place.method) == (owner, method)],
            {
                jump.place.position: (named[jump.target, jump.method], jump.names_class)
                for jump in jumps
                if (jump.place.owner, jump.place.method) == (owner, method)
            },
        )
    for jump in jumps:  # what needed no rewriting
        alias = named[jump.target, jump.method]
        namespace.setdefault(alias, vars(jump.target)[jump.method])
    made = type(base.__name__, (base,), namespace)
    if base not in _MIXINS:
        return made
    kept = ("__module__", "__qualname__", "__doc__", "__reduce_ex__", "_made_from")
    return type(
        base.__name__, (_MIXINS[base], made), {name: namespace[name] for name in kept}
    )


def _reduce(self: nn.Module, protocol: int) -> tuple:
    return _revive, type(self)._made_from, self.__dict__


def _revive(base: type, edits: frozenset[Edit], jumps: frozenset[Jump]) -> nn.Module:
    cls = _subclass(base, edits, jumps)
    return cls.__new__(cls)


def _rewritten(
    owner: type, function: FunctionType, edits: list[Edit], jumps: dict
) -> FunctionType:
    definition = copy.deepcopy(syntax(function))
    definition = _Rewriter(owner, definition.args.args[0].arg, edits, jumps).visit(
        definition
    )
    inner = inspect.unwrap(function)
    # A function around it holds what the original finds in its enclosing scopes.
    outer = ast.parse("def _enclosing(): pass").body[0]
    outer.args.args = [
        ast.arg(name)
        for name in dict.fromkeys(("__class__", *inner.__code__.co_freevars))
    ]
    outer.body = [definition, ast.Return(ast.Name(definition.name, ast.Load()))]
    tree = ast.fix_missing_locations(ast.Module([outer], []))
    code = compile(tree, inspect.getsourcefile(inner), "exec")
    scope: dict[str, Any] = {}
    exec(code, inner.__globals__, scope)  # noqa: S102
    cells = dict(zip(inner.__code__.co_freevars, inner.__closure__ or ()))
    values = {name: cell.cell_contents for name, cell in cells.items()}
    made = scope["_enclosing"](**{"__class__": owner, **values})
    made.__qualname__ = function.__qualname__
    inspect.unwrap(made).__defaults__ = inner.__defaults__
    inspect.unwrap(made).__kwdefaults__ = inner.__kwdefaults__
    return made


def _key(slot: str | None, counters: list[str]) -> ast.JoinedStr:
    """Return the expression of a key: slot and passes, joined by underscores."""
    parts: list[ast.expr] = [] if slot is None else [ast.Constant(slot)]
    for counter in counters:
        if parts:
            parts.append(ast.Constant("_"))
        parts.append(ast.FormattedValue(ast.Name(counter, ast.Load()), -1, None))
    return ast.JoinedStr(parts)


class _Rewriter(ast.NodeTransformer):
    def __init__(self, owner: type, self_name: str, edits: list[Edit], jumps: dict):
        self.owner = owner.__name__.lstrip("_")
        self.self_name = self_name
        self.edits = {edit.place.position: edit for edit in edits}
        self.jumps = jumps
        loops = dict.fromkeys(loop.position for edit in edits for loop in edit.loops)
        self.counters = {loop: f"_pass_{i}" for i, loop in enumerate(loops)}
        self.is_outermost = True

    def _self(self) -> ast.Name:
        return ast.Name(self.self_name, ast.Load())

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        if self.is_outermost:
            self.is_outermost = False
            # Evaluated already; the defaults are taken over from the original.
            node.args.defaults = [ast.Constant(None) for _ in node.args.defaults]
            node.args.kw_defaults = [
                default and ast.Constant(None) for default in node.args.kw_defaults
            ]
            node.returns = None
            for argument in ast.walk(node.args):
                if isinstance(argument, ast.arg):
                    argument.annotation = None
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.Call:
        here = position(node)
        self.generic_visit(node)
        if here in self.jumps:
            alias, names_class = self.jumps[here]
            node.func = ast.Attribute(self._self(), alias, ast.Load())
            node.args = node.args[1:] if names_class else node.args
        edit = self.edits.get(here)
        if edit is None:
            return node
        called: ast.expr = ast.Attribute(self._self(), edit.attribute, ast.Load())
        counters = [self.counters[loop.position] for loop in edit.loops]
        if edit.slot is not None or counters:
            called = ast.Subscript(called, _key(edit.slot, counters), ast.Load())
        given = node.args[:1] or [
            keyword.value for keyword in node.keywords if keyword.arg == "input"
        ]
        if not given:  # x.relu()
            given = [node.func.value]
        return ast.Call(called, given, [])

    def _counted(self, node: ast.For | ast.comprehension, here: tuple) -> None:
        if here in self.counters:
            counter = ast.Name(self.counters[here], ast.Store())
            node.target = ast.Tuple([counter, node.target], ast.Store())
            node.iter = ast.Call(ast.Name("enumerate", ast.Load()), [node.iter], [])

    def visit_For(self, node: ast.For) -> ast.For:
        here = position(node)
        self.generic_visit(node)
        self._counted(node, here)
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.comprehension:
        here = position(node.iter)
        self.generic_visit(node)
        self._counted(node, here)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.Attribute:
        self.generic_visit(node)
        node.attr = self._mangled(node.attr)
        return node

    def visit_Name(self, node: ast.Name) -> ast.Name:
        if node.id != "__class__":
            node.id = self._mangled(node.id)
        return node

    def _mangled(self, name: str) -> str:
        private = name.startswith("__") and not name.endswith("__")
        return f"_{self.owner}{name}" if private else name
