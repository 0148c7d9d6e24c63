# SPDX-License-Identifier: Apache-2.0
"""Parameters among what a whole train state holds: moments, counters, keys.

A state is known by the names at its top. What is left out is named, always.
"""

from optax_wd._see.files.headers import CheckpointError, Found

# The state of an optimizer, under the names that trainers give it.
_OPTIMIZERS = frozenset(
    "opt_state opt_states optimizer optimizer_state optim optim_state opt".split()
)
# What stands beside it and is no parameter.
_BESIDE = frozenset(
    "step steps global_step iteration epoch count rng rngs key prng_key".split()
)
_SHOWN = 5


def parameters(found: Found) -> tuple[Found, dict[str, int]]:
    """The arrays of a checkpoint without those of an optimizer.

    Args:
      found: all arrays, by path.

    Returns:
      The arrays that are left, and of each branch that is left out how many it has.
      Both as they are where no branch is called as the state of an optimizer is, or
      where nothing else would be left.
    """
    top = _common(list(found))
    branches: dict[str, int] = {}
    for path in found:
        branch = path[len(top) :].split("/")[0]
        branches[branch] = branches.get(branch, 0) + 1
    out = {name for name in branches if name in _OPTIMIZERS}
    if out:
        out |= {name for name in branches if name in _BESIDE}
    if not out or out == set(branches):
        return found, {}
    kept = {
        path: leaf
        for path, leaf in found.items()
        if path[len(top) :].split("/")[0] not in out
    }
    return kept, {f"{top}{name}": branches[name] for name in branches if name in out}


def subtree(found: Found, branch: str) -> Found:
    """The arrays below a branch, under their whole paths.

    Raises:
      CheckpointError: if there are none.
    """
    inside = branch.strip("/") + "/"
    kept = {path: leaf for path, leaf in found.items() if f"{path}/".startswith(inside)}
    if not kept:
        tops = list(dict.fromkeys(path.split("/")[0] for path in found))
        more = f" and {len(tops) - _SHOWN} more" if len(tops) > _SHOWN else ""
        known = ", ".join(map(repr, tops[:_SHOWN]))
        raise CheckpointError(
            f"there is nothing below {branch!r}; at the top are {known}{more}"
        )
    return kept


def _common(paths: list[str]) -> str:
    """What all paths begin with, up to a slash: `state/`, or nothing."""
    first, last = min(paths).split("/"), max(paths).split("/")
    shared = []
    for one, other in zip(first[:-1], last[:-1], strict=False):
        if one != other:
            break
        shared.append(one)
    return "".join(f"{token}/" for token in shared)
