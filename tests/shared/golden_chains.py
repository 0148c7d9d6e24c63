# SPDX-License-Identifier: Apache-2.0
"""The optimizers whose states were written down, and the run that they were in."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_wd as wd

STEPS = 3
KERNELS = wd.named("kernel")

RATE = optax.linear_schedule(0.5, 0.1, 8)
SPEED = optax.linear_schedule(0.25, 0.05, 8)


def params() -> dict[str, Any]:
    """Parameters with a fold, a stacked axis, a table and what does not decay."""
    shapes = {
        "attn": {"query": {"kernel": (6, 2, 3), "bias": (2, 3)}},
        "blocks": {"mlp": {"kernel": (2, 4, 6), "bias": (2, 6)}},
        "embed": {"embedding": (5, 6)},
        "norm": {"scale": (6,)},
    }
    return _drawn(shapes, 0)


def gradients() -> list[dict[str, Any]]:
    """One more than the steps that are taken before a state is written."""
    shapes = jax.tree.map(jnp.shape, params())
    return [_drawn(shapes, seed) for seed in range(1, STEPS + 2)]


def _drawn(shapes: Any, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def in_chain(decay: Any) -> optax.GradientTransformation:
    """A decay where AdamW has it."""
    last = optax.scale_by_learning_rate(SPEED)
    return optax.chain(optax.scale_by_adam(), decay, last)


def given(tx: optax.GradientTransformation, **trees: Callable[[Any], Any]) -> Any:
    """An optimizer whose `update` is given something made of each gradient."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        made = {name: jax.tree.map(f, updates) for name, f in trees.items()}
        return inner.update(updates, state, params, **(extra | made))

    inner = optax.with_extra_args_support(tx)
    return optax.GradientTransformationExtraArgs(inner.init, update)


def with_grad(decay: Any) -> Any:
    return given(in_chain(decay), grad=lambda u: u)


STACKED = wd.contains("blocks")
SPLIT: Any = dict(stacked=STACKED)
MATRICES: Any = dict(stacked=STACKED, ns_steps=2)

CHAINS: dict[str, Callable[[], Any]] = {
    # the ready chains
    "adamw": lambda: wd.adamw(0.1, wd.masked_decay(0.5, KERNELS)),
    "adamw-cautious": lambda: wd.adamw(SPEED, wd.cautious_weight_decay(RATE, KERNELS)),
    "adamw-anchored": lambda: wd.adamw(SPEED, wd.anchored_weight_decay(RATE, KERNELS)),
    "adamw-nesterov": lambda: wd.adamw(
        SPEED, wd.cautious_weight_decay(0.5, KERNELS), nesterov=True
    ),
    "nadamw": lambda: wd.nadamw(SPEED, wd.masked_decay(RATE, KERNELS)),
    "adamc": lambda: wd.adamc(SPEED, 0.5, KERNELS, peak=0.25),
    "sgdw": lambda: wd.sgdw(SPEED, wd.masked_decay(RATE, KERNELS), momentum=0.9),
    "sgds": lambda: wd.sgds(SPEED, 0.5, KERNELS, momentum=0.9),
    "lion": lambda: wd.lion(SPEED, wd.cautious_weight_decay(RATE, KERNELS)),
    "novograd": lambda: wd.novograd(SPEED, wd.masked_decay(RATE, KERNELS), **SPLIT),
    "fadam": lambda: wd.fadam(SPEED, wd.masked_decay(RATE, KERNELS), **SPLIT),
    "muon": lambda: wd.muon(SPEED, wd.masked_decay(RATE, KERNELS), **MATRICES),
    "normuon": lambda: wd.normuon(SPEED, wd.masked_decay(RATE, KERNELS), **MATRICES),
    # the methods
    "masked_decay": lambda: in_chain(wd.masked_decay(RATE, KERNELS)),
    "cautious": lambda: in_chain(wd.cautious_weight_decay(RATE, KERNELS)),
    "anchored": lambda: in_chain(wd.anchored_weight_decay(RATE, KERNELS)),
    "averaged": lambda: in_chain(
        wd.averaged_weight_decay(RATE, KERNELS, average_decay=0.5)
    ),
    "l1": lambda: in_chain(wd.l1_weight_decay(RATE, KERNELS)),
    "huber": lambda: in_chain(wd.huber_weight_decay(RATE, KERNELS, threshold=0.5)),
    "sensitivity_gated": lambda: with_grad(
        wd.sensitivity_gated_weight_decay(RATE, KERNELS)
    ),
    "momentum_corrected": lambda: in_chain(
        wd.momentum_corrected_weight_decay(RATE, KERNELS, momentum=0.5)
    ),
    "randomly_gated": lambda: in_chain(
        wd.controls.randomly_gated_weight_decay(RATE, KERNELS, fraction=0.5, seed=0)
    ),
    "inversely_gated": lambda: in_chain(
        wd.controls.inversely_gated_weight_decay(RATE, KERNELS)
    ),
    "gradient_gated": lambda: with_grad(
        wd.controls.gradient_gated_weight_decay(RATE, KERNELS)
    ),
    "tensor_gated": lambda: in_chain(
        wd.controls.tensor_gated_weight_decay(RATE, KERNELS, **SPLIT)
    ),
    "natural": lambda: given(
        in_chain(wd.natural_weight_decay(RATE, KERNELS, **SPLIT)), fisher=jnp.square
    ),
    "topk_gated": lambda: in_chain(wd.topk_gated_weight_decay(RATE, KERNELS, keep=0.5)),
    "token_aware": lambda: given(
        in_chain(wd.token_aware_weight_decay(RATE, wd.named("embedding"))),
        token_counts=lambda u: jnp.arange(float(len(u))),
    ),
    "norm_targeted": lambda: in_chain(
        wd.norm_targeted_weight_decay(RATE, KERNELS, **SPLIT)
    ),
    "constrained": lambda: in_chain(
        wd.constrained_weight_decay(RATE, KERNELS, limit=0.5, **SPLIT)
    ),
    "selective": lambda: with_grad(wd.selective_weight_decay(RATE, KERNELS, **SPLIT)),
    "keep_norms": lambda: optax.chain(
        optax.adam(SPEED), wd.keep_norms(KERNELS, after=2, **SPLIT)
    ),
    "pin_norms": lambda: optax.chain(
        optax.scale_by_adam(), wd.pin_norms(SPEED, KERNELS, **SPLIT)
    ),
    "max_norms": lambda: optax.chain(
        optax.adam(SPEED), wd.max_norms(0.5, KERNELS, **SPLIT)
    ),
    # places and wrappers
    "after_learning_rate": lambda: optax.chain(
        optax.adam(SPEED), wd.after_learning_rate(wd.masked_decay(RATE, KERNELS))
    ),
    "scale_per_leaf": lambda: optax.chain(
        optax.scale_by_adam(),
        wd.scale_per_leaf(wd.first_match((KERNELS, 0.5), default=1.0)),
        optax.scale_by_learning_rate(SPEED),
    ),
    "with_metrics": lambda: wd.with_metrics(
        wd.adamw(SPEED, wd.cautious_weight_decay(RATE, KERNELS)), every=2
    ),
}
"""Of each name what makes the optimizer."""


def step(tx: Any) -> Any:
    """One compiled step of an optimizer: parameters and state after it."""

    @jax.jit
    def stepped(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return stepped


def reference() -> jax.Array:
    """What a program without this package computes: other compilers, other bits.

    It has the operations whose last bit depends on the compiler and the processor:
    powers, roots, sums, products of matrices and fused multiplications.
    """

    @jax.jit
    def computed(x: jax.Array, b: jax.Array) -> jax.Array:
        square = x @ x.T
        scaled = x / (jnp.sqrt(jnp.mean(x * x, axis=1, keepdims=True)) + 1e-8)
        powers = (1 - 0.9**b) * scaled + 0.5 * x
        return jnp.concatenate([(square @ x).ravel(), powers.ravel()])

    x = params()["blocks"]["mlp"]["kernel"][0]
    return computed(x, jnp.asarray(3.0))
