"""Whether calling a module or a function can do anything but compute a tensor.

What a user's code computes is found out by calling it, so it is read first: it is
called only if every operation in it is known to depend on nothing but the input and
constants, and to change nothing. What cannot be told counts as impure.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import math
from collections import ChainMap
from collections.abc import Callable
from enum import Enum
from functools import cache, partial
from itertools import chain
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import get_overridable_functions

from .source import lambda_syntax, syntax

UNKNOWN = object()

_CONSTANTS = (int, float, str, bool, type(None), Enum, torch.dtype, torch.device)
_BUILTINS = (abs, bool, float, int, isinstance, len, max, min, pow, range, round, tuple)
_TORCH = (
    *(torch.tensor, torch.zeros, torch.ones, torch.full, torch.is_tensor, torch.finfo),
    *(torch.jit.is_scripting, torch.jit.is_tracing, torch.compiler.is_compiling),
)
# Listed at import: torch cannot list them while a library has replaced some of them, as
# diffusers does with those of nn.init while it reads a checkpoint.
_KNOWN_FUNCTIONS = frozenset(
    {*_BUILTINS, *_TORCH, *chain.from_iterable(get_overridable_functions().values())}
    | {value for value in vars(math).values() if callable(value)}
)
_RANDOM = (
    *("rand", "dropout", "bernoulli", "normal", "multinomial", "gumbel", "poisson"),
    *("rrelu", "exponential_", "cauchy_", "geometric_", "uniform_"),
)
# Of an autograd.Function's context, in its forward.
_OF_CONTEXT = ("save_for_backward", "mark_dirty", "set_materialize_grads")
# Methods of a tensor that do more than compute: they reach for a device, the autograd
# graph, other processes or Python.
_IMPURE_METHODS = (
    *("cuda", "cpu", "xpu", "ipu", "hpu", "pin_memory", "share_memory_"),
    *("backward", "register_hook", "register_post_accumulate_grad_hook"),
    *("numpy", "data_ptr", "set_", "apply_", "map_", "map2_", "detach", "detach_"),
)
_FORBIDDEN = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda),
    *(ast.Global, ast.Nonlocal, ast.Import, ast.ImportFrom, ast.Delete, ast.Try),
    *(ast.With, ast.AsyncWith, ast.AsyncFor, ast.Await, ast.Yield, ast.YieldFrom),
    *(ast.For, ast.While, ast.Starred, ast.GeneratorExp, ast.ListComp, ast.SetComp),
    *(ast.DictComp, ast.Dict, ast.Set),
)


def called_if_pure(activation: Callable) -> frozenset[str] | None:
    """Return the names of all that a call would call, None if it may be impure."""
    called: set[str] = set()
    return frozenset(called) if _may_call(activation, called, ()) else None


def is_constant(value: Any) -> bool:
    """Return whether a value never changes, so that nothing is kept in it."""
    if isinstance(value, tuple):
        return all(map(is_constant, value))
    return isinstance(value, (*_CONSTANTS, type)) or _is_function(value)


def attributes(module: nn.Module) -> dict[str, Any]:
    """Return a module's attributes without those that every module has."""
    return {k: v for k, v in vars(module).items() if k not in _of_every_module()}


@cache
def _of_every_module() -> frozenset[str]:
    return frozenset(vars(nn.Module()))


def _is_function(value: Any) -> bool:
    if isinstance(value, partial):
        given = (*value.args, *value.keywords.values())
        return _is_function(value.func) and all(map(is_constant, given))
    return inspect.isroutine(value) or isinstance(value, torch.jit.ScriptFunction)


def _may_call(value: Any, called: set[str], stack: tuple) -> bool:
    """Return whether a value may be called; note the names of what that calls."""
    if isinstance(value, nn.Module):
        return _is_constant_leaf(value) and _reads_pure(
            type(value).forward, value, called, stack
        )
    if isinstance(value, partial):
        given = (*value.args, *value.keywords.values())
        return all(map(is_constant, given)) and _may_call(value.func, called, stack)
    name = str(getattr(value, "__name__", ""))
    owner, function = getattr(value, "__self__", None), torch.autograd.Function
    if isinstance(owner, type) and issubclass(owner, function) and name == "apply":
        is_alone = owner.setup_context is function.setup_context
        return is_alone and _reads_pure(owner.forward, None, called, stack)
    if isinstance(value, MethodType):
        is_modules = isinstance(owner, nn.Module)
        return is_modules and _reads_pure(value.__func__, owner, called, stack)
    if isinstance(value, type):
        return value in _KNOWN_FUNCTIONS or issubclass(value, Exception)
    called.add(name)
    if any(word in name for word in _RANDOM):
        return False
    if isinstance(value, torch.jit.ScriptFunction):
        return "prim::Print" not in str(value.graph)
    try:
        if value in _KNOWN_FUNCTIONS:
            return True
    except TypeError:  # not hashable
        return False
    return isinstance(value, FunctionType) and _reads_pure(value, None, called, stack)


def _is_constant_leaf(module: nn.Module) -> bool:
    """Return whether a module holds nothing that a call could change."""
    cls = type(module)
    return (
        not (module._parameters or module._buffers or module._modules)
        and not isinstance(module, torch.jit.ScriptModule)
        and cls.__getattribute__ is object.__getattribute__
        and cls.__getattr__ is nn.Module.__getattr__
        and "forward" not in vars(module)
        and all(
            is_constant(value) or getattr(value, "__self__", None) is module
            for value in attributes(module).values()
        )
    )


def _reads_pure(
    function: Callable, owner: nn.Module | None, called: set[str], stack: tuple
) -> bool:
    """Return whether the source of a function, or of a method of ``owner``, is pure."""
    if not isinstance(function, FunctionType) or hasattr(function, "__wrapped__"):
        return False
    if function in stack:
        return False
    # An expression, compiled as a function, brings its own.
    node = getattr(function, "syntax", None)
    node = node or syntax(function) or lambda_syntax(function)
    if node is None:
        return False
    return _Reader(node, function, owner, called, (*stack, function)).is_pure()


class _Reader:
    """Reads one function."""

    def __init__(
        self,
        node: ast.FunctionDef | ast.Lambda,
        function: FunctionType,
        owner: nn.Module | None,
        called: set[str],
        stack: tuple,
    ) -> None:
        self.nodes = [
            inner
            for part in (node.body if isinstance(node.body, list) else [node.body])
            for inner in ast.walk(part)
            if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
        ]
        parameters = [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
        self.takes_any = bool(node.args.vararg or node.args.kwarg)
        kept = (
            *(function.__defaults__ or ()),
            *(function.__kwdefaults__ or {}).values(),
        )
        self.keeps = not all(map(is_constant, kept))
        self.self_name = parameters.pop(0) if owner is not None else ""
        stored = {n.id for n in self.nodes if isinstance(n, ast.Name) and _is_set(n)}
        self.locals = {*parameters, *stored}
        self.owner, self.called, self.stack = owner, called, stack
        cells = zip(function.__code__.co_freevars, function.__closure__ or ())
        enclosing = {name: _contents(cell) for name, cell in cells}
        self.names = ChainMap(enclosing, function.__globals__, vars(builtins))

    def is_pure(self) -> bool:
        """Return whether each of its operations is."""
        if self.takes_any or self.keeps:
            return False
        return all(map(self._allows, self.nodes))

    def _allows(self, node: ast.AST) -> bool:
        if isinstance(node, _FORBIDDEN):
            return False
        if isinstance(node, ast.Call):
            return self._allows_call(node.func)
        if isinstance(node, ast.Attribute):
            root = _root(node)
            if node.attr == "data":  # of a tensor, without its gradient
                return False
            if _is_set(node):
                return isinstance(root, ast.Name) and root.id in self.locals
            if not self._is_outside(root):
                return True
            value = self._value(node)
            return isinstance(value, ModuleType) or is_constant(value)
        if isinstance(node, ast.Subscript) and _is_set(node):
            root = _root(node)
            return isinstance(root, ast.Name) and root.id in self.locals
        if isinstance(node, ast.Name):
            if node.id in self.locals:
                return True
            if node.id == self.self_name:
                return not _is_set(node)
            value = self._value(node)
            is_leaf = isinstance(value, nn.Module) and _is_constant_leaf(value)
            return is_leaf or isinstance(value, ModuleType) or is_constant(value)
        return True

    def _allows_call(self, func: ast.expr) -> bool:
        root = _root(func)
        if self._is_outside(root):
            return _may_call(self._value(func), self.called, self.stack)
        if not isinstance(func, ast.Attribute):  # a local name, or an item of one
            return False
        self.called.add(func.attr)
        return (
            func.attr not in _IMPURE_METHODS
            and not any(word in func.attr for word in _RANDOM)
            and (callable(getattr(torch.Tensor, func.attr, None)) or self._is_of(func))
        )

    def _is_of(self, func: ast.Attribute) -> bool:
        return func.attr in _OF_CONTEXT and self.stack[-1].__name__ == "forward"

    def _is_outside(self, root: ast.expr) -> bool:
        """Return whether a chain starts at ``self`` or at a global or enclosing name.

        It does not if it starts at the input or at what was computed from it.
        """
        return isinstance(root, ast.Name) and root.id not in self.locals

    def _value(self, node: ast.expr) -> Any:
        """Return the value of a name or of a chain of attributes, or UNKNOWN."""
        if isinstance(node, ast.Name):
            if node.id == self.self_name:
                return self.owner
            return self.names.get(node.id, UNKNOWN)
        if not isinstance(node, ast.Attribute):
            return UNKNOWN
        base = self._value(node.value)
        if base is self.owner and isinstance(base, nn.Module):
            in_class = inspect.getattr_static(type(base), node.attr, None)
            is_method = isinstance(in_class, (FunctionType, staticmethod, classmethod))
            if hasattr(in_class, "__get__") and not is_method:
                return UNKNOWN  # a property could do anything
        elif isinstance(base, ModuleType):  # without importing what is lazy
            return vars(base).get(node.attr, UNKNOWN)
        elif not isinstance(base, type):
            return UNKNOWN
        return getattr(base, node.attr, UNKNOWN)


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return UNKNOWN


def _is_set(node: ast.AST) -> bool:
    return not isinstance(node.ctx, ast.Load)


def _root(node: ast.expr) -> ast.expr:
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node
