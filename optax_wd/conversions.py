# SPDX-License-Identifier: Apache-2.0
"""From one convention of "how much" to another: plain arithmetic on plain numbers.

`weight_decay` is always the decoupled coefficient, as `optax.adamw` takes it: the
shrink per step is `learning_rate * weight_decay`. Every other convention has its name
in the name of the function. Every argument is a number above 0: others raise TypeError,
if they are no number, or ValueError, with the name of the argument.
"""

import math

from optax_wd._amount.amounts import check_all_positive
from optax_wd._amount.timescales import at_equal_timescale as at_equal_timescale
from optax_wd._amount.timescales import best_fraction as best_fraction
from optax_wd._amount.timescales import decoupled_from_epochs as decoupled_from_epochs
from optax_wd._amount.timescales import (
    decoupled_from_fraction as decoupled_from_fraction,
)
from optax_wd._amount.timescales import decoupled_from_steps as decoupled_from_steps
from optax_wd._amount.timescales import epochs_from_decoupled as epochs_from_decoupled
from optax_wd._amount.timescales import (
    fraction_from_decoupled as fraction_from_decoupled,
)
from optax_wd._amount.timescales import steps_from_decoupled as steps_from_decoupled


def independent_from_decoupled(weight_decay: float, peak_learning_rate: float) -> float:
    """The independent coefficient that shrinks as the decoupled one: their product.

    Independent decay has a shrink per step of `lr / peak * coefficient`.

    Args:
      weight_decay: the decoupled coefficient.
      peak_learning_rate: the highest learning rate of the run.

    Returns:
      A coefficient for `after_learning_rate(masked_decay(proportional(...)))`.

    Example:
      >>> import optax_wd as wd
      >>> print(f"{wd.conversions.independent_from_decoupled(0.1, 1e-3):.4f}")
      0.0001

    Source: Wortsman et al., arXiv:2309.14322, section 3.1.3.
    """
    check_all_positive(weight_decay=weight_decay, peak_learning_rate=peak_learning_rate)
    return weight_decay * peak_learning_rate


def decoupled_from_independent(independent: float, peak_learning_rate: float) -> float:
    """The decoupled coefficient that shrinks as an independent one.

    Args:
      independent: the independent coefficient.
      peak_learning_rate: the highest learning rate of the run.

    Returns:
      A `weight_decay`.

    Example:
      >>> import optax_wd as wd
      >>> print(f"{wd.conversions.decoupled_from_independent(1e-4, 1e-3):.1f}")
      0.1

    Source: Wortsman et al., arXiv:2309.14322, section 3.1.3.
    """
    check_all_positive(independent=independent, peak_learning_rate=peak_learning_rate)
    return independent / peak_learning_rate


def decoupled_from_normalized(
    normalized: float, *, batch_size: float, dataset_size: float, epochs: float
) -> float:
    """The decoupled coefficient of a normalized one, for a budget of training.

    `normalized * sqrt(batch_size / (dataset_size * epochs))`: the longer the training,
    the less decay.

    Args:
      normalized: the normalized coefficient.
      batch_size: examples per step.
      dataset_size: examples per epoch.
      epochs: passes over the data set.

    Returns:
      A `weight_decay`.

    Example:
      >>> import optax_wd as wd
      >>> budget = dict(batch_size=128, dataset_size=51_200, epochs=100)
      >>> print(f"{wd.conversions.decoupled_from_normalized(0.05, **budget):.5f}")
      0.00025

    Source: Loshchilov & Hutter, arXiv:1711.05101, appendix B.1.
    """
    return normalized * _root(batch_size, dataset_size, epochs, normalized=normalized)


def normalized_from_decoupled(
    weight_decay: float, *, batch_size: float, dataset_size: float, epochs: float
) -> float:
    """The normalized coefficient of a decoupled one, to carry to another budget.

    Args:
      weight_decay: the decoupled coefficient.
      batch_size: examples per step.
      dataset_size: examples per epoch.
      epochs: passes over the data set.

    Returns:
      A normalized coefficient.

    Example:
      >>> import optax_wd as wd
      >>> budget = dict(batch_size=128, dataset_size=51_200, epochs=100)
      >>> print(f"{wd.conversions.normalized_from_decoupled(0.00025, **budget):.3f}")
      0.050

    Source: Loshchilov & Hutter, arXiv:1711.05101, appendix B.1.
    """
    root = _root(batch_size, dataset_size, epochs, weight_decay=weight_decay)
    return weight_decay / root


def _root(
    batch_size: float, dataset_size: float, epochs: float, **coefficient: float
) -> float:
    check_all_positive(
        **coefficient, batch_size=batch_size, dataset_size=dataset_size, epochs=epochs
    )
    return math.sqrt(batch_size / (dataset_size * epochs))
