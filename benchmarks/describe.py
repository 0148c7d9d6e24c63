# SPDX-License-Identifier: Apache-2.0
"""How long does `describe` take on very large trees, and does it grow linearly?

    python benchmarks/describe.py

The tree has one hundred thousand abstract leaves in ten thousand layers. The peer is
`jax.tree_util.tree_flatten_with_path` on the same tree, which anything that looks at
paths has to do; seconds are beside the ratio. Results go to `describe.json`.
"""

import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import optax_wd as wd

HERE = pathlib.Path(__file__).parent
ROUNDS = 7


def tree(layers: int) -> dict[str, Any]:
    """Ten leaves a layer, shapes of a transformer, nothing allocated."""
    shapes = {f"attn_{n}": {"kernel": (64, 64), "bias": (8, 8)} for n in range(5)}
    layer = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    return {f"block_{n}": layer for n in range(layers)}


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    rows = []
    matrices = wd.min_ndim(2) & ~wd.named("bias")
    cases = [(wd.standard, n) for n in (2_500, 5_000, 10_000)] + [(matrices, 10_000)]
    for rule, layers in cases:
        params = tree(layers)
        own, peer = [], []
        for _ in range(ROUNDS):
            own.append(seconds(lambda r=rule, p=params: str(wd.describe(r, p))))
            peer.append(
                seconds(lambda p=params: jax.tree_util.tree_flatten_with_path(p))
            )
        rows.append(
            {
                "rule": repr(rule),
                "leaves": layers * 10,
                "describe_and_print_median_seconds": statistics.median(own),
                "flatten_with_path_median_seconds": statistics.median(peer),
                "median_ratio": statistics.median(
                    a / b for a, b in zip(own, peer, strict=True)
                ),
                "seconds": own,
            }
        )
    result = {"command": "python benchmarks/describe.py", "jax": jax.__version__}
    text = json.dumps({**result, "rows": rows}, indent=1)
    (HERE / "describe.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
