# SPDX-License-Identifier: Apache-2.0
"""What the type of the module that holds a leaf tells, where the module is at hand."""

from optax_wd._tree.typing import Shape
from optax_wd._where.lexicon import LAYER_TYPES, NORM_TYPES, TABLE_TYPES, Kind
from optax_wd._where.verdicts import Verdict
from optax_wd._where.words import Reading

_NEAR = 4  # tokens of a path that may say that a table is one of positions


def judge(owner: type | str, path: tuple[Reading, ...], shape: Shape) -> Verdict | None:
    """The verdict on a leaf of a norm, a table or a layer; None for other types.

    Args:
      owner: the type of the innermost module, or its name.
      path: what is read of each token.
      shape: without stacked axes.
    """
    name = owner if isinstance(owner, str) else owner.__name__
    own = path[-1] if path else Reading(())
    is_bias = own.head_kind & Kind.BIAS or own.words == ("b",)
    if name in NORM_TYPES:
        if own.head_kind & Kind.STATISTIC:
            return Verdict("statistic", f"of the type {name}")
        return Verdict("bias" if is_bias else "scale", f"of the type {name}")
    if name in TABLE_TYPES:
        near = any(token.every & Kind.POSITION for token in path[-_NEAR:])
        role = "position_table" if near else "token_table"
        return Verdict(role, f"of the type {name}")
    if name not in LAYER_TYPES:
        return None
    if is_bias:
        return Verdict("bias", f"of the type {name}")
    is_matrix = own.words == ("w",) or own.head_kind & (Kind.WEIGHT | Kind.KERNEL)
    return Verdict("weight", f"of the type {name}") if is_matrix and shape[1:] else None
