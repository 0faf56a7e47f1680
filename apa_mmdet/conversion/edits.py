"""The calls in a module's methods that a conversion rewrites."""

from __future__ import annotations

import ast
from dataclasses import dataclass

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


@dataclass(frozen=True)
class SiteCall:
    """A call of an activation, to be routed to its site.

    Attributes:
        place: Where the call is.
        attribute: The attribute to call instead.
        number: The first number of the key in that attribute's ``ActivationSites``, if
            more than one group of calls has sites there.
        loops: The loops whose passes are the further numbers of the key. With neither,
            the attribute is the activation itself.
    """

    place: Place
    attribute: str
    number: str | None
    loops: tuple[Place, ...]


@dataclass(frozen=True)
class BaseCall:
    """A call of a base class's version of a method.

    Attributes:
        place: Where the call is.
        base: The base class.
        method: The method.
        by_name: Whether it is ``Base.method(self, ...)``, not ``super().method(...)``.
    """

    place: Place
    base: type
    method: str
    by_name: bool
