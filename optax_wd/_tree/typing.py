# SPDX-License-Identifier: Apache-2.0
"""Shared type aliases.

They document intent in signatures. A tree of arrays has no precise static type in
Python, so `PyTree` is `Any`: what is really accepted is checked when it is used, and
refused with an error that says what to write instead.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from jax.typing import ArrayLike

PyTree: TypeAlias = Any

Shape: TypeAlias = tuple[int, ...]

Path: TypeAlias = tuple[str, ...]

Mask: TypeAlias = Callable[[PyTree], PyTree] | PyTree
"""A Rule, a function from a parameter tree to a tree of bools, or such a tree."""

Multiplier: TypeAlias = Callable[[PyTree], PyTree] | PyTree | ArrayLike
"""A Table, a function from a parameter tree to a tree of factors, a tree, a number."""

Direction: TypeAlias = Callable[..., jax.Array]
"""`direction(update, param)`, or `direction(update, param, memory)`, of one leaf."""

Gate: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
"""`gate(sign_source, direction)` of one leaf: True on the coordinates that decay."""

Remember: TypeAlias = Callable[[jax.Array], jax.Array]
"""From one parameter at `init` to what the direction needs of it at every step."""
