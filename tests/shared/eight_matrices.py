# SPDX-License-Identifier: Apache-2.0
"""Run on 8 fake devices by test_distribute.py: Muon on meshes, told as JSON.

For each layout of the parameters and each way to share the iteration: how far a few
steps are from those on one device, which arrays have left their place, and how many
collectives are in the compiled step.
"""

import functools
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

import optax_wd as wd

COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all)"
    r"(?:-start)?\("
)
BLOCK = {
    "query": {"kernel": (16, 4, 8), "bias": (4, 8)},
    "out": {"kernel": (4, 8, 16)},
    "up": {"kernel": (16, 64)},
    "down": {"kernel": (64, 16)},
    "norm": {"scale": (16,)},
}
SHAPES = {"block": BLOCK, "embed": {"embedding": (32, 16)}}
P = jax.P
# Where the larger arrays lie, by the ends of their paths; all others are everywhere.
LAYOUTS: dict[str, dict[str, Any]] = {
    "replicated": {},
    "FSDP": {
        "out/kernel": P(None, None, "data"),
        "kernel": P("data"),
        "embedding": P("data"),
    },
    "TP": {
        "query/kernel": P(None, "model"),
        "up/kernel": P(None, "model"),
        "kernel": P("model"),
        "query/bias": P("model"),
        "embedding": P("model"),
    },
}
SEEDS = 1, 2, 3  # of the gradients
SHARES = {"None": None, "data": P("data"), "all": P(("data", "model"))}


def values(seed: int) -> Any:
    """A tree of normal numbers."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype("f4"),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def spec(path: Any, layout: dict[str, Any]) -> jax.P:
    """Where a parameter lies."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return next((s for end, s in layout.items() if name.endswith(end)), P())


def like(params: Any, places: Any, state: Any) -> Any:
    """The places of a state: those of the parameters it mirrors, or everywhere."""
    mesh = jax.tree.leaves(places)[0].mesh
    known = list(
        zip(jax.tree.leaves_with_path(params), jax.tree.leaves(places), strict=True)
    )

    def place(path: Any, x: Any) -> Any:
        for (end, param), own in known:
            if path[-len(end) :] == end and param.shape == x.shape:
                return own
        return jax.NamedSharding(mesh, P())

    return jax.tree.map_with_path(place, state)


def made(make: Callable[..., Any], spread: jax.NamedSharding | None) -> Any:
    """The optimizer; a matrix optimizer with a gate."""
    return make(0.1, wd.cautious_weight_decay(0.1), distribute=spread)


def step_of(tx: Any) -> Callable[..., Any]:
    """One step of an optimizer, to be compiled."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


@functools.cache
def alone(make: Callable[..., Any]) -> Any:
    """Parameters and state after the same steps on one device."""
    tx = made(make, None)
    step, carry = jax.jit(step_of(tx)), (values(0), tx.init(values(0)))
    for seed in SEEDS:
        carry = step(*carry, values(seed))
    return carry


def told(
    make: Callable[..., Any], mesh: jax.sharding.Mesh, layout: str, share: Any
) -> dict[str, Any]:
    """Three steps under one layout and one way to share."""
    spread = None if share is None else jax.NamedSharding(mesh, share)
    tx, params = made(make, spread), values(0)
    places = jax.tree.map_with_path(
        lambda path, _: jax.NamedSharding(mesh, spec(path, LAYOUTS[layout])), params
    )
    lying = places, like(params, places, tx.init(params))
    here = jax.device_put((params, tx.init(params)), lying)
    # Muon keeps places unasked; the squares of NorMuon would rather lie as the outputs.
    kept = lying if make is wd.normuon else None
    step = jax.jit(step_of(tx), out_shardings=kept)
    compiled = step.lower(*here, jax.device_put(params, places)).compile()
    for seed in SEEDS:
        here = compiled(*here, jax.device_put(values(seed), places))
    pairs = zip(jax.tree.leaves(here), jax.tree.leaves(alone(make)), strict=True)
    moved = jax.tree.map(
        lambda x, s: not x.sharding.is_equivalent_to(s, x.ndim), here, lying
    )
    return {
        "difference": max(float(np.abs(np.subtract(*pair)).max()) for pair in pairs),
        "moved": sum(jax.tree.leaves(moved)),
        "collectives": dict(Counter(COLLECTIVE.findall(compiled.as_text() or ""))),
    }


def main() -> None:
    """Prints one object."""
    mesh = jax.make_mesh(
        (4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    found = {
        f"{layout}, {name}": told(wd.muon, mesh, layout, share)
        for layout, (name, share) in itertools.product(LAYOUTS, SHARES.items())
    }
    found["NorMuon"] = told(wd.normuon, mesh, "FSDP", SHARES["data"])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
