# SPDX-License-Identifier: Apache-2.0
"""One small model in every form that Flax gives it, for rules to agree about."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import core, nnx, traverse_util

# What one block holds: all names, and whether they are weight matrices.
WEIGHTS = {
    "attn/key/bias": False,
    "attn/key/kernel": True,
    "attn/out/bias": False,
    "attn/out/kernel": True,
    "attn/query/bias": False,
    "attn/query/kernel": True,
    "attn/value/bias": False,
    "attn/value/kernel": True,
    "mlp/bias": False,
    "mlp/kernel": True,
    "norm/bias": False,
    "norm/scale": False,
}
LAYERS = 3


class LinenBlock(nn.Module):
    """Attention, a linear layer, a norm; a scan body, so with a carry."""

    boxed: bool = False

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        attend = nn.MultiHeadDotProductAttention(2, qkv_features=4, name="attn")
        x_BxTxD = attend(nn.LayerNorm(name="norm")(x_BxTxD))
        init: Any = nn.initializers.lecun_normal()
        if self.boxed:
            init = nn.with_partitioning(init, (None, "model"))
        width = x_BxTxD.shape[-1]
        return nn.Dense(width, kernel_init=init, name="mlp")(x_BxTxD), None


class NNXBlock(nnx.Module):
    """The same block in NNX."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attn = nnx.MultiHeadAttention(2, 6, 4, decode=False, rngs=rngs)
        self.mlp = nnx.Linear(6, 6, rngs=rngs)
        self.norm = nnx.LayerNorm(6, rngs=rngs)


@functools.cache
def linen_abstract(boxed: bool = False) -> Any:
    """The block's parameters in Linen, as shapes and dtypes."""
    variables = jax.eval_shape(
        lambda: LinenBlock(boxed).init(jax.random.key(0), jnp.ones((1, 2, 6)))
    )
    return variables["params"]


@functools.cache
def linen_scanned() -> Any:
    """As `linen_abstract`, with a layer axis in front of every leaf."""
    scanned: Any = nn.scan(
        LinenBlock,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=LAYERS,
    )
    variables = jax.eval_shape(
        lambda: scanned().init(jax.random.key(0), jnp.ones((1, 2, 6)))
    )
    return variables["params"]


@functools.cache
def nnx_abstract() -> NNXBlock:
    """The block in NNX, as shapes and dtypes."""
    return nnx.eval_shape(lambda: NNXBlock(nnx.Rngs(0)))


@functools.cache
def nnx_stacked() -> NNXBlock:
    """As `nnx_abstract`, with a layer axis in front of every leaf."""

    @nnx.split_rngs(splits=LAYERS)
    @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: None})
    def make(rngs: nnx.Rngs) -> NNXBlock:
        return NNXBlock(rngs)

    return nnx.eval_shape(lambda: make(nnx.Rngs(0)))


def concrete(abstract: Any) -> Any:
    """A module with zeros for the shapes and dtypes of an abstract one."""
    graph, state = nnx.split(abstract)
    return nnx.merge(graph, zeros(state))


def zeros(abstract: Any) -> Any:
    """Arrays of zeros of the shapes and dtypes of a tree."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)


@functools.cache
def single() -> dict[str, Any]:
    """The block in all its forms, one layer each."""
    abstract, block = linen_abstract(), concrete(nnx_abstract())
    params = zeros(abstract)
    state = nnx.state(block, nnx.Param)

    def no_axes(x: Any) -> tuple[None, ...]:
        return (None,) * x.ndim

    return {
        "linen dict": params,
        "linen abstract": abstract,
        "linen FrozenDict": core.freeze(params),
        "linen Partitioned": jax.tree.map(
            lambda x: nn.Partitioned(x, no_axes(x)), params
        ),
        "linen LogicallyPartitioned": jax.tree.map(
            lambda x: nn.LogicallyPartitioned(x, no_axes(x)), params
        ),
        "linen boxed where it says so": linen_abstract(boxed=True),
        "linen FrozenDict of boxes": core.freeze(
            jax.tree.map(lambda x: nn.Partitioned(x, no_axes(x)), abstract)
        ),
        "linen flattened, keys are tuples": traverse_util.flatten_dict(params),
        "nnx module": block,
        "nnx abstract module": nnx_abstract(),
        "nnx State of Param": state,
        "nnx whole State": nnx.state(block),
        "nnx pure State": nnx.as_pure(state),
        "nnx pure dict": nnx.to_pure_dict(state),
        "nnx abstract State": nnx.state(nnx_abstract(), nnx.Param),
        "gradients": jax.tree.map(lambda x: x + 1.0, params),
    }


@functools.cache
def stacked() -> dict[str, Any]:
    """The forms of the block with a layer axis in front of every leaf."""
    abstract, block = linen_scanned(), concrete(nnx_stacked())
    state = nnx.state(block, nnx.Param)
    return {
        "linen scanned": zeros(abstract),
        "linen scanned, boxed": jax.tree.map(
            lambda x: nn.Partitioned(x, ("layers", *[None] * (x.ndim - 1))), abstract
        ),
        "nnx stacked module": block,
        "nnx stacked State of Param": state,
        "nnx stacked pure State": nnx.as_pure(state),
        "nnx stacked pure dict": nnx.to_pure_dict(state),
    }


def without(params: Any, keep: str, hole: Any) -> Any:
    """A partial tree: `hole` in the place of all leaves not under the module `keep`."""

    def choose(path: Any, leaf: Any) -> Any:
        return leaf if getattr(path[0], "key", None) == keep else hole

    return jax.tree_util.tree_map_with_path(choose, params)


def answers(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, without the `value` that Flax's boxes add."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_text(keys): leaf for keys, leaf in pairs}


def _text(keys: Any) -> str:
    tokens: list[str] = []
    for key in keys:
        found: Any = getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))
        tokens += map(str, found if isinstance(found, tuple) else (found,))
    return "/".join(tokens[:-1] if tokens[-1] == "value" else tokens)


MASKED = optax.MaskedNode()
