# SPDX-License-Identifier: Apache-2.0
"""Randomly gated weight decay: a control, open on coordinates drawn at each step."""

import zlib
from typing import Any

import jax
import optax

from optax_wd._amount import masks as _masks
from optax_wd._amount.amounts import check_amount, check_number, received
from optax_wd._how.engine import evolving, towards_zero
from optax_wd._how.leafwise import map_decayed
from optax_wd._how.step import decayed
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Mask, Multiplier
from optax_wd._where.standard import standard


def randomly_gated_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    fraction: float,
    seed: int,
    multiplier: Multiplier | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Pull towards zero a random part of the coordinates, new at each step: a control.

    `u <- u + weight_decay * b * x`, where each coordinate of `b` is 1 with probability
    `fraction`, else 0. It stands where decoupled decay stands, with a shrink per step
    of `lr * weight_decay` on the open coordinates, and of `fraction` times that in
    expectation. With `fraction=1` it is `masked_decay`.

    The draw is a function of the seed, of the path of the leaf and of the count of
    steps: the same after a restart, in a partition, and on any sharding.

    What it does not do: it is no method to train with. It has the open fraction of a
    gate without its choice of coordinates, so it tells a weaker decay from a selective
    one; plain decay by `fraction * weight_decay` is the other control.

    Args:
      weight_decay: as in `masked_decay`.
      mask: as in `masked_decay`.
      fraction: the probability that a coordinate decays, of 0 to 1.
      seed: an integer.
      multiplier: as in `masked_decay`.

    Returns:
      A transformation with a `DecayState` and empty memory. Updates keep their dtypes.

    Raises:
      TypeError: as `masked_decay`; if `fraction` is no number or `seed` no integer.
      ValueError: as `masked_decay`; if `fraction` is not of 0 to 1.

    Example:
      >>> import optax_wd as wd
      >>> decay = wd.controls.randomly_gated_weight_decay(0.1, fraction=0.5, seed=0)
      >>> tx = wd.adamw(1e-3, decay)

    Source: an arm of the ablation in Cautious Weight Decay, arXiv:2510.12402, as it is
    described there.
    """
    amount = check_amount(weight_decay)
    _masks.check_mask(mask)
    _masks.check_multiplier(multiplier)
    check_number("fraction", fraction, least=0.0)
    if fraction > 1.0:
        raise ValueError(f"fraction is at most 1, got {fraction!r}")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed is an integer, {received('seed', seed)}")

    def at(count: Any) -> optax.GradientTransformationExtraArgs:
        """The method with the draws of one step."""

        def apply(rate: Any, updates: Any, params: Any, memory: Any, extra: Any) -> Any:
            del extra

            def one(leaf: Leaf, factor: Any, param: Any, update: Any) -> Any:
                key = jax.random.fold_in(_key(seed, leaf), count)

                def gate(sign_source: jax.Array, direction: jax.Array) -> jax.Array:
                    del sign_source
                    return jax.random.bernoulli(key, fraction, direction.shape)

                terms = update, (rate, factor), towards_zero, gate
                return decayed(update, (param,), *terms)

            return map_decayed(one, mask, multiplier, params, updates), memory

        return evolving(amount, lambda params: (), apply)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return at(state.decay_count).update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(at(0).init, update)


def _key(seed: int, leaf: Leaf) -> jax.Array:
    """A key for each leaf, by its path, whatever other leaves there are."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(leaf.where.encode()))
