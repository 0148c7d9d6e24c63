# SPDX-License-Identifier: Apache-2.0
"""Small trees and comparisons that several tests share."""

import json
import lzma
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_wd as wd

ROOT = pathlib.Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"


def tree(seed: int = 0, dtype: Any = jnp.float32) -> dict[str, Any]:
    """A small parameter tree: a matrix, a 2-D bias as of Flax attention, a scale."""
    rng = np.random.default_rng(seed)
    shapes = {
        "attn": {"kernel": (4, 2, 3), "bias": (2, 3)},
        "mlp": {"kernel": (3, 5), "bias": (5,)},
        "norm": {"scale": (4,)},
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def small_tree(seed: int = 0, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Two kernels and a bias, for tests that compile much."""
    whole = tree(seed, dtype)
    return {"attn": {"kernel": whole["attn"]["kernel"][0]}, "mlp": whole["mlp"]}


def run(
    tx: optax.GradientTransformation, params: Any, gradients: list[Any]
) -> tuple[list[Any], Any]:
    """Parameters after each step, and the last state."""

    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, seen = tx.init(params), []
    for grads in gradients:
        params, state = step(params, state, grads)
        seen.append(params)
    return seen, state


def assert_same(a: Any, b: Any) -> None:
    """Equal structures, dtypes and values; NaN equals NaN, and -0.0 equals 0.0."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def once(tx: Any, updates: Any, params: Any, **extra_args: Any) -> Any:
    """The updates of the first step. `Any`, where Optax types them as any tree."""
    return tx.update(updates, tx.init(params), params, **extra_args)[0]


def noise(params: Any, steps: int, seed: int = 1) -> list[Any]:
    """Gradients for some steps: standard normal, of the shapes and dtypes of params."""
    rng = np.random.default_rng(seed)
    return [
        jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params)
        for _ in range(steps)
    ]


def largest_difference(a: Any, b: Any) -> float:
    """The largest absolute difference of two trees of one structure, in float64."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(
        float(np.max(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64))))
        for x, y in pairs
    )


DECAYS: dict[str, Callable[..., Any]] = {
    "masked": wd.masked_decay,
    "cautious": wd.cautious_weight_decay,
    "anchored": lambda weight_decay, mask=wd.standard, **options: wd.decay_along(
        lambda u, p, start: p - start, weight_decay, mask, remember=jnp.copy, **options
    ),
}
"""A decay without a gate, one with a gate, and one with memory."""

every_decay = pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS)


def adam_chain(decay: Any, learning_rate: Any = 0.01) -> optax.GradientTransformation:
    """Adam with a decay at the decoupled place."""
    return optax.chain(
        optax.scale_by_adam(), decay, optax.scale_by_learning_rate(learning_rate)
    )


def flat(tree: Any) -> dict[str, Any]:
    """The leaves by path, None and MaskedNode among them."""
    pairs = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: x is None or isinstance(x, optax.MaskedNode)
    )
    return {jax.tree_util.keystr(k, simple=True, separator="/"): v for k, v in pairs}


def arrays(tree: Any) -> dict[str, Any]:
    """The arrays by path, without what stands for absent ones."""
    absent = optax.MaskedNode
    pairs = flat(tree).items()
    return {k: v for k, v in pairs if v is not None and not isinstance(v, absent)}


def variables(tx: Any, updates: Any, params: Any, **extra: Any) -> list[Any]:
    """Of each leaf of the updates the variables of the jaxpr before and after `tx`."""
    state = tx.init(params)
    traced = jax.make_jaxpr(lambda u, p: tx.update(u, state, p, **extra)[0])(
        updates, params
    ).jaxpr
    return list(zip(traced.invars, traced.outvars, strict=False))


def public(name: str) -> Any:
    """A public function by its name, at the top or among the controls."""
    return getattr(wd, name, None) or getattr(wd.controls, name)


def label(value: Any) -> str:
    """The repr of a test's parameter, without the addresses that differ by process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def groups() -> dict[str, dict[str, Any]]:
    """Who decays what in other code bases, by `<code base>__<model>`.

    Each has the `params` of a model (name, shape, owner) and the names in `no_decay`,
    as the code base's own function grouped them.
    """
    with lzma.open(DATA / "groups.json.xz", "rt", encoding="utf-8") as file:
        return json.load(file)


def safetensors(header: Any, size: int = 0) -> bytes:
    """A file of that format: the header, as bytes or for JSON, and `size` zeros."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


def float32(*shapes: tuple[int, ...], start: int = 0) -> list[dict[str, Any]]:
    """Entries of such a header for float32 arrays that follow one another."""
    entries = []
    for shape in shapes:
        end = start + 4 * int(np.prod(shape))
        offsets = [start, end]
        entry = {"dtype": "F32", "shape": list(shape), "data_offsets": offsets}
        entries.append(entry)
        start = end
    return entries


def with_grad(tx: optax.GradientTransformation) -> Any:
    """An optimizer whose `update` is given the gradient as the extra argument too."""
    inner = optax.with_extra_args_support(tx)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return inner.update(updates, state, params, **(extra | {"grad": updates}))

    return optax.GradientTransformationExtraArgs(inner.init, update)


def assert_follows(
    method: Callable[..., Any],
    reference: Callable[[np.ndarray, np.ndarray, np.ndarray], list[np.ndarray]],
    before: optax.GradientTransformation | None = None,
) -> None:
    """Hold a decay of the kernels, after `before`, to a loop in NumPy.

    `reference(x, gradients, rates)` has in float64 what becomes of one leaf with the
    learning rate 0.1; the rates of the decay change, and are 0 for other leaves.
    """
    params, gradients = tree(), noise(tree(), 6)
    decay = method(lambda t: 0.5 / (1.0 + t), wd.named("kernel"), multiplier=2.0)
    head = before or optax.identity()
    seen, _ = run(
        with_grad(optax.chain(head, decay, optax.scale(-0.1))), params, gradients
    )
    rates = 2.0 * 0.5 / (1.0 + np.arange(6))
    found, given = [flat(step) for step in seen], [flat(step) for step in gradients]
    for name, start in flat(params).items():
        own = rates if name.endswith("kernel") else np.zeros(6)
        g = np.stack([np.asarray(step[name], np.float64) for step in given])
        expected = reference(np.asarray(start, np.float64), g, own)
        for t in range(6):
            np.testing.assert_allclose(found[t][name], expected[t], atol=2e-6)


def settled(tx: optax.GradientTransformation, steps: int = 1000) -> float:
    """Where an optimizer with that many steps from 5 on `(x - 2)**2 / 2` ends."""

    def step(_: Any, carry: Any) -> Any:
        x, state = carry
        updates, state = tx.update(x - 2.0, state, x)
        return optax.apply_updates(x, updates), state

    start = jnp.asarray(5.0)
    return float(jax.lax.fori_loop(0, steps, step, (start, tx.init(start)))[0])


@pytest.fixture(scope="module", autouse=True)
def quick_compiles() -> Iterator[None]:
    """Lets XLA optimise little, in a module that imports this: it compiles much."""
    name = "jax_disable_most_optimizations"
    jax.config.update(name, True)
    yield
    jax.config.update(name, False)
