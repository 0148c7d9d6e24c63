# SPDX-License-Identifier: Apache-2.0
"""Decay around matrix preconditioners: the blocks of two pages run, and are audited."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import ROOT, noise, run
from helpers import quick_compiles as quick_compiles
from pages import blocks

import optax_wd as wd

DOCS = ROOT / "docs"
PAGES = {name: (DOCS / name).read_text() for name in ("preconditioners.md", "muon.md")}
PARAMS = {"dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}


def power(x: jax.Array, exponent: float) -> jax.Array:
    """A power of a symmetric matrix that is positive."""
    values, vectors = jnp.linalg.eigh(x)
    return (vectors * jnp.maximum(values, 1e-6) ** exponent) @ vectors.T


def by_matrices(one: Callable[..., Any], copies: int) -> Any:
    """A transformation of matrices with Kronecker factors; others pass as they are.

    `one(g, left, right, *more)` has the direction and what to keep: two factors, and
    so many copies of the leaf.
    """

    def start(x: Any) -> Any:
        factors = [1e-3 * jnp.eye(n) for n in x.shape]
        return (*factors, *[jnp.zeros_like(x)] * copies) if x.ndim == 2 else ()

    def init(params: Any) -> Any:
        return jax.tree.map(start, params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        leaves, treedef = jax.tree.flatten(updates)
        kept = treedef.flatten_up_to(state)
        both = [one(g, *k) if k else (g, k) for g, k in zip(leaves, kept, strict=True)]
        return tuple(treedef.unflatten(part) for part in zip(*both, strict=True))

    return optax.GradientTransformation(init, update)


def scale_by_shampoo() -> optax.GradientTransformation:
    """`L^-1/4 G R^-1/4`, of sums of `G G^T` and `G^T G`."""

    def one(g: Any, left: Any, right: Any) -> Any:
        left, right = left + g @ g.T, right + g.T @ g
        return power(left, -0.25) @ g @ power(right, -0.25), (left, right)

    return by_matrices(one, copies=0)


def soap(
    learning_rate: optax.ScalarOrSchedule, *, weight_decay: float
) -> optax.GradientTransformation:
    """Adam in the eigenbases of Shampoo's factors, with a decay of its own."""

    def one(g: Any, left: Any, right: Any, m: Any, v: Any) -> Any:
        left, right = 0.9 * left + g @ g.T, 0.9 * right + g.T @ g
        (_, a), (_, b) = jnp.linalg.eigh(left), jnp.linalg.eigh(right)
        m, v = 0.9 * m + 0.1 * g, 0.9 * v + 0.1 * (a.T @ g @ b) ** 2
        return a @ (a.T @ m @ b / (jnp.sqrt(v) + 1e-8)) @ b.T, (left, right, m, v)

    return optax.chain(
        by_matrices(one, copies=2),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


NAMES = {"scale_by_shampoo": scale_by_shampoo, "soap": soap, "params": PARAMS}
BLOCKS = {
    f"{name} line {block.line}": block.text
    for name, text in PAGES.items()
    for block in blocks(text, "python")
}


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_of_the_pages_runs_and_its_claims_hold(block: str) -> None:
    names = dict(NAMES)
    exec(compile(BLOCKS[block], block, "exec"), names)
    tx: Any = names.get("tx", names.get("galore"))
    assert isinstance(tx, optax.GradientTransformation)


def test_there_are_blocks_and_names_and_files_exist() -> None:
    assert len(BLOCKS) == 9
    for text in PAGES.values():
        mentioned = re.findall(r"\bwd\.([A-Za-z_]\w*)", text)
        assert mentioned and [name for name in mentioned if not hasattr(wd, name)] == []
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text):
            assert (DOCS / link).exists(), link


def test_the_stand_ins_precondition() -> None:
    """Shampoo's first step has equal singular values, and SOAP's learns from all."""
    (grads,) = noise(PARAMS, 1)
    tx = scale_by_shampoo()
    found, _ = tx.update(grads, tx.init(PARAMS))
    values = np.linalg.svd(found["dense"]["kernel"], compute_uv=False)  # pyright: ignore
    np.testing.assert_allclose(values, 1.0, atol=2e-2)
    seen, _ = run(soap(0.1, weight_decay=0.0), PARAMS, noise(PARAMS, 3))
    assert bool(jnp.all(jnp.isfinite(seen[-1]["dense"]["kernel"])))


def test_two_decays_and_a_mask_of_all_are_told() -> None:
    """What the page warns of: the optimizer's own decay, which has biases too."""
    decay = wd.after_learning_rate(wd.masked_decay(1e-3))
    tx = optax.chain(soap(1e-2, weight_decay=0.1), decay)
    shrinks = {row.path: row.shrink for row in wd.audit(tx, PARAMS).rows}
    assert shrinks["dense/kernel"] == pytest.approx(2e-3, rel=1e-2)
    assert shrinks["dense/bias"] == pytest.approx(1e-3, rel=1e-2)
