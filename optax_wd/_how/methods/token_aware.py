# SPDX-License-Identifier: Apache-2.0
"""Token-aware decay: rows of an embedding decay by how often their token is seen."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_wd._amount import masks as _masks
from optax_wd._amount.amounts import check_amount, check_number, received
from optax_wd._how.engine import evolving, towards_zero
from optax_wd._how.leafwise import map_decayed
from optax_wd._how.step import decayed, is_inexact
from optax_wd._tree import leaves as _leaves
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Mask, Multiplier, PyTree
from optax_wd._where.names import named

EMBEDDINGS = named("embedding")


def token_aware_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = EMBEDDINGS,
    *,
    axis: int = 0,
    average: float = 0.0,
    multiplier: Multiplier | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Pull each row of an embedding towards zero as often as its token is seen.

    `u_i <- u_i + weight_decay * min(1, n_i / mean(n)) * x_i` for the row `i` of a token
    with count `n_i`. Tokens that are as frequent as the mean, or more so, decay in
    full; a token that does not occur, not at all. Where no token occurs nothing decays.
    Between preconditioner and learning rate the shrink per step of row `i` is
    `lr * weight_decay * min(1, n_i / mean(n))`.

    Why: the loss speaks of a token in proportion to its frequency, plain decay shrinks
    its row in every step. What is left of a row is settled by the ratio of the two, so
    the rarer a token, the more of it decay takes away, and the unseen go to zero. With
    a decay in proportion to `n_i` the ratio is the same for all rows below the mean.
    The cap leaves frequent tokens, which decay suits, with what they had: no row decays
    by more than `weight_decay`, whatever the counts. In relation to the mean, counts
    may have any unit: of a step, of a corpus, or frequencies.

    What comes of it. In a small model of the next word (`benchmarks/rare_tokens.py`)
    plain decay raises the loss of rare tokens on the text that is trained on far more
    than that of frequent ones; this one does so a tenth to a half as much. On text that
    is held out it is the other way round: rare tokens gain most from plain decay, and
    this one gives that up. It is for fitting the rare, not against overfitting them.

    The counts are the extra argument `token_counts` of `update`. They cannot be read
    from the gradient: an embedding that is also the output layer has one in every row.
    What it does not do: leaves without a vocabulary, or with the one of positions, are
    not for it. Give them a decay of their own. Inside `optax.MultiSteps` the counts are
    those of the last micro-batch: pass the counts of the whole batch with that one.

    Args:
      weight_decay: as in `masked_decay`.
      mask: the leaves that have the vocabulary on `axis`, as in `masked_decay`. By
        default those named `embedding`.
      axis: that of the vocabulary: 0 of an embedding table, 1 or -1 of the kernel of an
        output layer.
      average: in [0, 1): how much of the running mean of the counts is kept at each
        step; 0 for the counts of the step alone. After `1/(1 - average)` steps or so
        rare tokens no longer decay in bursts.
      multiplier: as in `masked_decay`.

    Returns:
      A transformation with a `DecayState`, whose memory is the running mean: for every
      inexact leaf, whatever the mask, one float32 number for each entry of `axis`.
      Updates keep their dtypes. Its `update` needs `token_counts=`, an array of
      shape=(vocabulary,) of numbers of 0 or more; what is negative or not finite counts
      as 0, with `jax.jit` and without. For several vocabularies a tree of such arrays,
      which is like the parameters, or a prefix of it; it may leave out what does not
      decay.

    Raises:
      TypeError: as `masked_decay`; also if `axis` or `average` is no number, or at
        update if `token_counts` are no arrays.
      ValueError: as `masked_decay`; also if `average` is not in [0, 1), or at update if
        there are no `token_counts`, or none for a leaf that decays, or they do not fit
        its `axis`.

    Example:
      >>> import jax.numpy as jnp, optax_wd as wd
      >>> params = {"embed": {"embedding": jnp.ones((4, 2))}}
      >>> zeros = {"embed": {"embedding": jnp.zeros((4, 2))}}
      >>> tx = wd.token_aware_weight_decay(0.5)
      >>> counts = jnp.asarray([6, 1, 1, 0])
      >>> updates, _ = tx.update(zeros, tx.init(params), params, token_counts=counts)
      >>> updates["embed"]["embedding"][:, 0].tolist()
      [0.5, 0.25, 0.25, 0.0]

    Source: our own, in answer to Pinto et al., The Fair Language Model Paradox,
    arXiv:2410.11985, which shows that decay harms rare tokens and calls for another;
    it proposes none.
    """
    amount = check_amount(weight_decay)
    _masks.check_mask(mask)
    _masks.check_multiplier(multiplier)
    check_number("average", average, least=0.0)
    if average >= 1.0:
        raise ValueError(f"average is 0 or more and less than 1, got {average!r}")
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise TypeError(f"axis is an integer, {received('axis', axis)}")

    def begin(params: optax.Params) -> PyTree:
        return jax.tree.map(lambda x: _unseen(x, axis), _leaves.bare(params))

    def apply(rate: Any, updates: PyTree, params: PyTree, memory: PyTree, extra: Any):
        counts = _spread(extra.get("token_counts"), params)

        def remember(leaf: Leaf, factor: Any, param: Any, kept: Any, now: Any) -> Any:
            del factor
            _check(leaf, axis, _rows(param, axis), now)
            now = jnp.asarray(now, jnp.float32)
            now = jnp.where((now > 0.0) & (now < jnp.inf), now, 0.0)
            return average * kept + (1.0 - average) * now

        def one(leaf: Leaf, factor: Any, param: Any, update: Any, mean: Any) -> Any:
            shape = [1] * leaf.ndim
            shape[axis] = -1
            factor = factor * _share(mean).reshape(shape)
            scale = (rate, factor)
            return decayed(update, (param,), update, scale, towards_zero, None)

        memory = map_decayed(remember, mask, multiplier, params, memory, counts)
        return map_decayed(one, mask, multiplier, params, updates, memory), memory

    return evolving(amount, begin, apply)


def _share(counts: jax.Array) -> jax.Array:
    """`min(1, n / mean(n))`; 0 where there are no counts at all."""
    mean = jnp.sum(counts) / max(1, counts.size)
    return jnp.minimum(1.0, counts / jnp.where(mean > 0, mean, 1.0))


def _unseen(param: Any, axis: int) -> jax.Array:
    """No token has been counted yet."""
    return jnp.zeros(_rows(param, axis), jnp.float32)


def _rows(param: Any, axis: int) -> tuple[int, ...]:
    """The shape of the counts of a leaf; () for leaves that have no such axis."""
    ndim = np.ndim(param) if is_inexact(param) else 0
    return (param.shape[axis],) if -ndim <= axis < ndim else ()


def _spread(counts: Any, params: PyTree) -> PyTree:
    """The counts of every leaf, as a tree like the bare parameters."""
    if counts is None:
        raise ValueError(
            "token_aware_weight_decay needs the counts of tokens, got no token_counts; "
            "call tx.update(grads, state, params, token_counts=counts), and audit or "
            'assert_decays with extra_args={"token_counts": counts}'
        )
    given = dict(_leaves.leaves_with_paths(counts))
    for path, value in given.items():
        if not hasattr(value, "shape"):
            raise TypeError(
                f"token_counts has {value!r} at {'/'.join(path)!r}; pass an array of "
                "one count for each token: jnp.asarray(counts)"
            )
    paths = [leaf.path for leaf in _leaves.list_leaves(params)]
    found = [next((p for p in _leaves.prefixes(q) if p in given), None) for q in paths]
    extra = [path for path in given if path not in found]
    if extra and not _leaves.has_holes(params):
        raise ValueError(
            f"token_counts has an entry for {'/'.join(extra[0])!r}, where the "
            "parameters have no leaf; name the embedding by its path, or pass one "
            "array for all that decay"
        )
    values = [None if path is None else given[path] for path in found]
    return jax.tree.structure(_leaves.bare(params)).unflatten(values)


def _check(leaf: Leaf, axis: int, rows: tuple[int, ...], given: Any) -> None:
    if given is None:
        raise ValueError(
            f"token_counts has no entry for {leaf.where!r}, which decays; add one, or "
            "exclude the leaf by the mask"
        )
    if not rows or rows != given.shape:
        raise ValueError(
            f"token_counts has shape {given.shape}, but {leaf.where!r} has shape "
            f"{leaf.shape} and the vocabulary on axis {axis}; pass one count for each "
            "token, and a mask of the leaves that have a row for each"
        )
