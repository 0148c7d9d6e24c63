# SPDX-License-Identifier: Apache-2.0
"""How the parts of a matrix optimizer stand behind one another.

Directions of matrices and of all other leaves, the decays, the learning rates, and last
the decays that are made by `after_learning_rate`.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from optax_wd._how.chains.ready import check_decay, scale_by_learning_rates
from optax_wd._how.matrix.orthogonal import MatrixState
from optax_wd._how.placement import AfterLearningRate
from optax_wd._tree.leaves import is_number, leaves_with_paths
from optax_wd._where.folds import Folding

_NONE = optax.identity()


def matrix_chain(
    folding: Folding,
    scales: tuple[optax.GradientTransformation, optax.GradientTransformation],
    decays: tuple[optax.GradientTransformation, optax.GradientTransformation | None],
    rates: tuple[optax.ScalarOrSchedule, optax.ScalarOrSchedule | None],
) -> optax.GradientTransformationExtraArgs:
    """A matrix optimizer from its parts, each a pair: of matrices, and of the rest.

    Args:
      folding: which leaves are matrices.
      scales: from gradients to directions.
      decays: with None for the second the first has the whole tree.
      rates: the learning rates; with None for the second they are the same.

    Returns:
      A transformation whose state has those of directions, decays, learning rates, and
      decays after the learning rate.
    """
    # Masked one after the other, which is a partition; but one decay, and the counter,
    # see the whole tree, so that each is there once.
    scale = optax.chain(
        optax.masked(scales[0], folding.choose), optax.masked(scales[1], folding.others)
    )
    before, after = _decays(folding, *decays)
    rate = _rates(folding, *rates)

    def init(params: optax.Params) -> Any:
        return tuple(part.init(params) for part in (scale, before, rate, after))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        _check_state(folding, updates, state[0][0].inner_state)
        direction, scaled = scale.update(updates, state[0], params)
        signs = extra_args | {"sign_of": direction}
        total, decayed = before.update(direction, state[1], params, **signs)
        moved, rated = rate.update(total, state[2], params)
        final, last = after.update(moved, state[3], params, **extra_args)
        return final, (scaled, decayed, rated, last)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_state(folding: Folding, updates: optax.Updates, held: Any) -> None:
    """Refuse the state of a run that took other leaves for matrices."""
    if not isinstance(held, MatrixState):
        return
    kept = {path for path, _ in leaves_with_paths(held.matrix_momentum)}
    answers = leaves_with_paths(folding.choose(updates))
    chosen = {path for path, answer in answers if answer is True}
    if kept == chosen:
        return
    names = ", ".join("/".join(path) for path in sorted(kept ^ chosen)[:3])
    raise ValueError(
        f"the state is of other matrices than {folding.matrices!r}: they differ in "
        f"{names}; go on with the rule that made it, matrices=roles.matrices_0_1 for a "
        "run of version 0.1, or begin with a new state"
    )


def _decays(
    folding: Folding,
    decay: optax.GradientTransformation,
    adam_decay: optax.GradientTransformation | None,
) -> tuple[
    optax.GradientTransformationExtraArgs, optax.GradientTransformationExtraArgs
]:
    """What decays before the learning rate, and what after it."""
    given = {"decay": decay}
    if adam_decay is not None:
        given["adam_decay"] = adam_decay
    for name, tx in given.items():
        check_decay(name, tx)
    last = [isinstance(tx, AfterLearningRate) for tx in given.values()]
    parts = list(given.values())
    if adam_decay is not None:
        parts = [
            optax.masked(decay, folding.choose),
            optax.masked(adam_decay, folding.others),
        ]

    def those(wanted: bool) -> optax.GradientTransformationExtraArgs:
        found = [
            tx for tx, is_last in zip(parts, last, strict=True) if is_last == wanted
        ]
        return optax.with_extra_args_support(optax.chain(*(found or [_NONE])))

    return those(False), those(True)


def _rates(
    folding: Folding,
    learning_rate: optax.ScalarOrSchedule,
    adam_learning_rate: optax.ScalarOrSchedule | None,
) -> optax.GradientTransformation:
    """The learning rates of matrices and of the rest."""
    given = {"learning_rate": learning_rate}
    if adam_learning_rate is None:
        return scale_by_learning_rates(given)
    given["adam_learning_rate"] = adam_learning_rate
    return scale_by_learning_rates(given, folding.others)


def check_decay_rates(**rates: Any) -> None:
    """Refuse what is no number in [0, 1), as far as it is known."""
    for name, rate in rates.items():
        if isinstance(rate, Tracer):
            continue
        if not is_number(rate) or np.shape(rate) != () or not 0.0 <= rate < 1.0:
            raise ValueError(
                f"{name} is a number in [0, 1), got {rate!r}; where it became 1 by "
                "rounding, give optax.inject_hyperparams a hyperparam_dtype of float32"
            )


def check_dtype(name: str, dtype: Any) -> None:
    """Refuse a dtype that is not one of real floating-point numbers."""
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name} is a dtype such as jnp.bfloat16, got {dtype!r}")
