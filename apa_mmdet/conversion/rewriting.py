"""Subclasses whose methods call one activation per site.

A module that calls one activation in several places, or a function inline, becomes an
instance of a subclass made for it. The subclass's methods are the original ones,
recompiled from their source with the call expressions replaced. Lines and file names
stay, so tracebacks and debuggers show the original code.
"""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from types import CodeType, FunctionType
from typing import Any, NoReturn

from torch import Tensor, nn

from .source import Place, digest, methods, position, syntax


@dataclass(frozen=True)
class SiteCall:
    """A call of an activation, to be routed to its site."""

    place: Place
    attribute: str  # to call instead
    # The first number of the key in that attribute's ActivationSites, if more than one
    # group of calls has sites there, and the loops whose passes are the further ones.
    # With neither, the attribute is the activation itself.
    number: str | None
    loops: tuple[Place, ...]
    # The input, if an expression such as x * torch.sigmoid(x) is there, not a call.
    variable: str | None = None


@dataclass(frozen=True)
class BaseCall:
    """A call of a base class's version of a method."""

    place: Place
    base: type
    method: str
    by_name: bool  # Base.method(self, ...), not super().method(...)


class ActivationSites(nn.ModuleDict):
    """The activations of one attribute, a key for each site that calls it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name  # the class and the attribute, for messages

    def forward(self, *args: Any) -> NoReturn:
        """Raise a RuntimeError: this call was not routed to one of the sites."""
        raise RuntimeError(
            f"this call of {self._name} has no site: it is outside the module's own "
            f"methods, or a condition excluded it when the model was converted; set "
            f"the module's attributes before the conversion, call one of the sites "
            f"{list(self)}, or exclude this activation from the conversion"
        )


class FixedFunction(nn.Module):
    """A function as a module, beside the sites of others."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Return the function's value."""
        return self.function(x)


def rewrite(
    module: nn.Module, site_calls: Iterable[SiteCall], base_calls: Iterable[BaseCall]
) -> None:
    """Route the calls of one module to its sites, by changing its class."""
    cls = _subclass(type(module), frozenset(site_calls), frozenset(base_calls))
    module.__class__ = cls


def is_rewritten(module: nn.Module) -> bool:
    """Return whether a module's class was made by :func:`rewrite`."""
    return "_made_from" in vars(type(module))


@cache
def _subclass(
    base: type, site_calls: frozenset[SiteCall], base_calls: frozenset[BaseCall]
) -> type:
    made_from = base, site_calls, base_calls, digest(base)
    namespace: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce_ex__": lambda self, _: (_revive, made_from, vars(self)),
        "_made_from": made_from,
    }
    names = {(owner, name): name for name, (owner, _) in methods(base).items()}
    # A base class's version, which a super() call runs, needs a name of its own.
    for call in base_calls:
        alias = f"_{call.base.__name__.lstrip('_')}_{call.method}"
        names.setdefault((call.base, call.method), alias)
    calls_in: dict[tuple[type, str], list[SiteCall | BaseCall]] = {}
    for call in (*site_calls, *base_calls):
        calls_in.setdefault((call.place.owner, call.place.method), []).append(call)
    for (owner, method), calls in calls_in.items():
        namespace[names[owner, method]] = _rewritten(owner, method, calls, names)
    for call in base_calls:  # versions that needed no rewriting
        alias = names[call.base, call.method]
        namespace.setdefault(alias, vars(call.base)[call.method])
    return type(base.__name__, (base,), namespace)


def _revive(
    base: type,
    site_calls: frozenset[SiteCall],
    base_calls: frozenset[BaseCall],
    source: str,
) -> nn.Module:
    """Return an empty instance of the class that was pickled."""
    if digest(base) != source:
        raise _changed(base, *{call.place.method for call in site_calls})
    cls = _subclass(base, site_calls, base_calls)
    return cls.__new__(cls)


def _changed(owner: type, *methods: str) -> RuntimeError:
    return RuntimeError(
        f"{' and '.join(sorted(methods))}() of {owner.__module__}."
        f"{owner.__qualname__} is not what it was when this model was converted: the "
        f"source of the class has changed, or another release of it is installed; "
        f"rebuild the model, convert it, and load a state_dict instead"
    )


def _rewritten(
    owner: type,
    method: str,
    calls: list[SiteCall | BaseCall],
    names: dict[tuple[type, str], str],
) -> FunctionType:
    """Return a method with these calls replaced.

    It shares the original's globals, defaults and enclosing scopes; decorators are
    re-applied to it.
    """
    function = vars(owner).get(method)
    definition = copy.deepcopy(syntax(function)) if callable(function) else None
    if definition is None:
        raise _changed(owner, method)
    decorators, definition.decorator_list = definition.decorator_list, []
    arguments, definition.returns = definition.args, None
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    # Already evaluated; the new function takes the original's values.
    arguments.defaults = [ast.Constant(None) for _ in arguments.defaults]
    arguments.kw_defaults = [d and ast.Constant(None) for d in arguments.kw_defaults]
    rewriter = _Rewriter(owner, arguments.args[0].arg, calls, names)
    definition = rewriter.visit(definition)
    if rewriter.pending:
        raise _changed(owner, method)

    original = inspect.unwrap(function)
    path = inspect.getsourcefile(original)
    # Within a function that has their names, the enclosing scopes' variables are free.
    enclosing = ast.parse("def _enclosing(): pass").body[0]
    enclosing.args.args = [ast.arg(name) for name in original.__code__.co_freevars]
    enclosing.body = [definition]
    tree = ast.fix_missing_locations(ast.Module([enclosing], []))
    code = _inner_code(_inner_code(compile(tree, path, "exec")))
    cells = dict(zip(original.__code__.co_freevars, original.__closure__ or ()))
    new: Any = FunctionType(
        code,
        original.__globals__,
        original.__name__,
        original.__defaults__,
        tuple(cells[name] for name in code.co_freevars),
    )
    new.__kwdefaults__ = original.__kwdefaults__
    new.__qualname__ = original.__qualname__
    for decorator in reversed(decorators):
        apply = compile(ast.Expression(decorator), path, "eval")
        new = eval(apply, original.__globals__)(new)  # noqa: S307
    return new


def _inner_code(code: CodeType) -> CodeType:
    """Return the code of the only function that some code defines."""
    return next(c for c in code.co_consts if isinstance(c, CodeType))


class _Rewriter(ast.NodeTransformer):
    """Replaces calls in a method of class ``owner``; ``self_name`` is its ``self``.

    ``names`` gives the new methods' names, by the class and name of the original;
    ``pending`` holds the positions of calls and loops that have not been visited yet.
    """

    def __init__(
        self,
        owner: type,
        self_name: str,
        calls: list[SiteCall | BaseCall],
        names: dict[tuple[type, str], str],
    ) -> None:
        self.owner = owner.__name__.lstrip("_")
        self.self_name = self_name
        self.calls = {call.place.position: call for call in calls}
        self.names = names
        loops = (loop for call in calls for loop in getattr(call, "loops", ()))
        self.counters = {
            loop.position: f"_pass_{i}" for i, loop in enumerate(dict.fromkeys(loops))
        }
        self.pending = {*self.calls, *self.counters}

    def _attribute(self, name: str) -> ast.Attribute:
        return ast.Attribute(ast.Name(self.self_name, ast.Load()), name, ast.Load())

    def visit_Call(self, node: ast.Call) -> ast.Call:
        here = position(node)
        self.generic_visit(node)
        call = self.calls.get(here)
        if call is None:
            return node
        self.pending.discard(here)
        if isinstance(call, BaseCall):
            node.func = self._attribute(self.names[call.base, call.method])
            node.args = node.args[1:] if call.by_name else node.args
            return node
        given = node.args[:1] or [
            keyword.value
            for keyword in node.keywords
            if keyword.arg == "input" or len(node.keywords) == 1
        ]
        if not given:  # x.relu()
            given = [node.func.value]
        return self._of_site(call, given)

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        call = self.calls.get(position(node))
        if not getattr(call, "variable", None):
            return self.generic_visit(node)
        self.pending.discard(position(node))
        return self._of_site(call, [ast.Name(call.variable, ast.Load())])

    def _of_site(self, call: SiteCall, given: list[ast.expr]) -> ast.Call:
        called: ast.expr = self._attribute(call.attribute)
        counters = [self.counters[loop.position] for loop in call.loops]
        if call.number is not None or counters:
            called = ast.Subscript(called, _key(call.number, counters), ast.Load())
        return ast.Call(called, given, [])

    def visit_For(self, node: ast.For) -> ast.For:
        return self._count(node, position(node))

    def visit_comprehension(self, node: ast.comprehension) -> ast.comprehension:
        return self._count(node, position(node.iter))

    def _count(self, loop: Any, here: tuple) -> Any:
        """Number the passes of a loop, if keys need them."""
        self.generic_visit(loop)
        if here in self.counters:
            self.pending.discard(here)
            counter = ast.Name(self.counters[here], ast.Store())
            loop.target = ast.Tuple([counter, loop.target], ast.Store())
            loop.iter = ast.Call(ast.Name("enumerate", ast.Load()), [loop.iter], [])
        return loop

    # Compiled outside its class, private names are not mangled.
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


def _key(number: str | None, counters: list[str]) -> ast.JoinedStr:
    """Return the expression of a key: number and passes, joined by underscores."""
    pieces: list[ast.expr] = [] if number is None else [ast.Constant(number)]
    for counter in counters:
        if pieces:
            pieces.append(ast.Constant("_"))
        pieces.append(ast.FormattedValue(ast.Name(counter, ast.Load()), -1, None))
    return ast.JoinedStr(pieces)
