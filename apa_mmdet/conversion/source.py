"""The source of a module's methods, as syntax trees."""

from __future__ import annotations

import ast
import builtins
import hashlib
import inspect
import linecache
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

from torch import nn

# Read although it is torch's own, because it takes its activation as a function.
_READ_IN_TORCH = "torch.nn.modules.transformer"

Position = tuple[int, int, int, int]


def position(node: ast.AST) -> Position:
    """Return a node's first line and column and its last ones, as in the file."""
    return node.lineno, node.col_offset, node.end_lineno, node.end_col_offset


@dataclass(frozen=True)
class Place:
    """A node in a method: the class that defines it, its name, and the position."""

    owner: type
    method: str
    position: Position


@cache
def _nodes_of_file(path: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse("".join(linecache.getlines(path)))))


@cache
def _functions_of_file(path: str) -> dict[tuple[str, int], ast.FunctionDef]:
    functions = {}
    for node in _nodes_of_file(path):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno] + [d.lineno for d in node.decorator_list])
            functions[node.name, first] = node
    return functions


@cache
def syntax(function: Callable) -> ast.FunctionDef | None:
    """Return the syntax tree of a function, None if its source is unavailable.

    Lines and columns are those of the file. The tree is shared: copy it to change it.
    """
    inner = inspect.unwrap(function)
    try:
        path = inspect.getsourcefile(inner)
        linecache.checkcache(path)
        nodes = _functions_of_file(path)
    except (OSError, TypeError, SyntaxError):
        return None
    node = nodes.get((inner.__code__.co_name, inner.__code__.co_firstlineno))
    for decorator in node.decorator_list if node is not None else ():
        names = {n.id for n in ast.walk(decorator) if isinstance(n, ast.Name)}
        if names - inner.__globals__.keys() - vars(builtins).keys():
            return None  # it could not be applied to a changed version
    return node


@cache
def lambda_syntax(function: FunctionType) -> ast.Lambda | None:
    """Return the syntax tree of a lambda, None if it is not one or not evident."""
    if function.__code__.co_name != "<lambda>":
        return None
    try:
        nodes = _nodes_of_file(inspect.getsourcefile(function))
    except (OSError, TypeError, SyntaxError):
        return None
    line = function.__code__.co_firstlineno
    found = [n for n in nodes if isinstance(n, ast.Lambda) and n.lineno == line]
    return found[0] if len(found) == 1 else None


def dotted_value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Return the value of ``name`` or ``module.name`` among ``names``, None if none."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        module = dotted_value(node.value, names)
        return vars(module).get(node.attr) if inspect.ismodule(module) else None
    return None


@cache
def readable_classes(cls: type) -> tuple[type, ...]:
    """Return the classes whose methods are read, in method resolution order."""
    return tuple(
        klass
        for klass in cls.__mro__
        if klass.__module__ == _READ_IN_TORCH
        or klass is not object
        and not klass.__module__.startswith("torch.")
    )


@cache
def methods(cls: type) -> dict[str, tuple[type, FunctionType]]:
    """Return the methods that an instance would run, with the class of each."""
    by_name: dict[str, tuple[type, FunctionType]] = {}
    hidden = set()
    for klass in cls.__mro__:
        for name, value in vars(klass).items():
            if klass in readable_classes(cls) and isinstance(value, FunctionType):
                if name not in hidden:
                    by_name.setdefault(name, (klass, value))
            hidden.add(name)
    return by_name


@cache
def named_attributes(function: Callable) -> frozenset[str]:
    """Return the names of all attributes in the source of a function."""
    nodes = ast.walk(syntax(function) or ast.Pass())
    return frozenset(node.attr for node in nodes if isinstance(node, ast.Attribute))


@cache
def builders(cls: type) -> frozenset[str]:
    """Return the methods that run only while an instance is built."""
    pending = [
        vars(owner)[name]
        for owner in readable_classes(cls)
        for name in ("__init__", "init_weights")
        if name in vars(owner)
    ]
    names = {"__init__", "init_weights"}
    while pending:
        for name in named_attributes(pending.pop()):
            if name in methods(cls) and name not in (*names, "forward"):
                names.add(name)
                pending.append(methods(cls)[name][1])
    return frozenset(names)


@cache
def named_outside_methods(cls: type) -> frozenset[str]:
    """Return the attributes that a class's other code names.

    That is properties, and functions that are defined while an instance is built.
    """
    values = [
        value for owner in readable_classes(cls) for value in vars(owner).values()
    ]
    getters = [getattr(v, "fget", None) or getattr(v, "func", None) for v in values]
    built = [
        vars(owner)[name]
        for owner in readable_classes(cls)
        for name in builders(cls) & vars(owner).keys()
    ]
    inner = (
        node
        for function in filter(None, map(syntax, built))
        for node in ast.walk(function)
        if isinstance(node, (ast.FunctionDef, ast.Lambda)) and node is not function
    )
    nodes = (node for part in inner for node in ast.walk(part))
    return frozenset(n.attr for n in nodes if isinstance(n, ast.Attribute)).union(
        *(named_attributes(getter) for getter in getters if callable(getter))
    )


def inherited(cls: type, after: type, name: str) -> type | None:
    """Return the class whose ``name`` a ``super().name`` in class ``after`` reaches.

    ``cls`` is the class of the instance. None if that class is not readable.
    """
    mro = cls.__mro__
    owners = (k for k in mro[mro.index(after) + 1 :] if name in vars(k))
    owner = next(owners, None)
    return owner if owner in readable_classes(cls) else None


@cache
def mentions(cls: type, words: tuple[str, ...]) -> bool:
    """Return whether the source of a class or its bases contains one of the words."""
    return any(
        word in text for text in map(_text, readable_classes(cls)) for word in words
    )


@cache
def digest(cls: type) -> str:
    """Return a hash of the source of a class and of its bases."""
    text = "".join(map(_text, readable_classes(cls)))
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _text(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        return ""


@cache
def calls_on_others(cls: type, name: str) -> bool:
    """Return whether a method of a class calls ``name(x)`` on anything but ``self``."""
    if not mentions(cls, (f".{name}(",)):
        return False
    for _, function in methods(cls).values():
        definition = syntax(function)
        if definition is None or not definition.args.args:
            continue
        # Neither the module itself nor something like torch.nn.functional.
        self_name = definition.args.args[0].arg
        not_others = {self_name, *inspect.unwrap(function).__globals__}
        for node in ast.walk(definition):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                receiver = ast.unparse(node.func.value)
                if node.func.attr == name and node.args and receiver not in not_others:
                    return True
    return False


def is_container(module: nn.Module) -> bool:
    """Return whether torch's own code, or the parent's, calls the children in turn."""
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return isinstance(module, containers) and any(
        type(module).forward is container.forward for container in containers
    )
