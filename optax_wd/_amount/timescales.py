# SPDX-License-Identifier: Apache-2.0
"""How long weights remember: the timescale of decoupled decay, in three units.

Decayed weights are an average over recent updates. How far back it reaches is counted
in steps, in epochs, or as a fraction of the training; `conversions` has it all, and
says what all of its functions take and refuse.
"""

from optax_wd._amount.amounts import check_all_positive


def steps_from_decoupled(weight_decay: float, learning_rate: float) -> float:
    """The timescale of decoupled decay, in steps: `1 / (learning_rate * weight_decay)`.

    The weights are an average over about that many of the last updates.

    Args:
      weight_decay: the decoupled coefficient.
      learning_rate: of the step.

    Returns:
      A number of steps.

    Example:
      >>> import optax_wd as wd
      >>> print(f"{wd.conversions.steps_from_decoupled(0.1, 1e-3):.0f}")
      10000

    Source: Wang & Aitchison, arXiv:2405.13698.
    """
    check_all_positive(weight_decay=weight_decay, learning_rate=learning_rate)
    return 1.0 / (learning_rate * weight_decay)


def epochs_from_decoupled(
    weight_decay: float, learning_rate: float, steps_per_epoch: float
) -> float:
    """The timescale of decoupled decay, in epochs.

    `1 / (learning_rate * weight_decay * steps_per_epoch)`: what to keep when the batch
    size or the data set changes.

    Args:
      weight_decay: the decoupled coefficient.
      learning_rate: of the step.
      steps_per_epoch: data set size over batch size.

    Returns:
      A number of epochs.

    Example:
      >>> import optax_wd as wd
      >>> print(f"{wd.conversions.epochs_from_decoupled(0.1, 1e-3, 1250):.0f}")
      8

    Source: Wang & Aitchison, arXiv:2405.13698.
    """
    check_all_positive(steps_per_epoch=steps_per_epoch)
    return steps_from_decoupled(weight_decay, learning_rate) / steps_per_epoch


def decoupled_from_steps(timescale_steps: float, learning_rate: float) -> float:
    """The decoupled coefficient of a timescale in steps.

    Args:
      timescale_steps: in steps.
      learning_rate: of the step.

    Returns:
      A `weight_decay`.

    Example:
      >>> import optax_wd as wd
      >>> print(f"{wd.conversions.decoupled_from_steps(10_000, 1e-3):.2f}")
      0.10

    Source: Wang & Aitchison, arXiv:2405.13698.
    """
    check_all_positive(timescale_steps=timescale_steps, learning_rate=learning_rate)
    return 1.0 / (learning_rate * timescale_steps)


def decoupled_from_epochs(
    timescale_epochs: float, learning_rate: float, steps_per_epoch: float
) -> float:
    """The decoupled coefficient of a timescale in epochs.

    Args:
      timescale_epochs: in epochs.
      learning_rate: of the step.
      steps_per_epoch: data set size over batch size.

    Returns:
      A `weight_decay`.

    Example:
      >>> import optax_wd as wd
      >>> print(f"{wd.conversions.decoupled_from_epochs(8, 1e-3, 1250):.2f}")
      0.10

    Source: Wang & Aitchison, arXiv:2405.13698.
    """
    check_all_positive(
        timescale_epochs=timescale_epochs, steps_per_epoch=steps_per_epoch
    )
    return decoupled_from_steps(timescale_epochs * steps_per_epoch, learning_rate)


def fraction_from_decoupled(
    weight_decay: float, learning_rate: float, *, batch_size: float, tokens: float
) -> float:
    """The timescale of decoupled decay, as a fraction of the training.

    `batch_size / (learning_rate * weight_decay * tokens)`: the timescale in steps over
    the number of steps.

    Args:
      weight_decay: the decoupled coefficient.
      learning_rate: the highest of the run.
      batch_size: tokens (examples) per step.
      tokens: of the whole training, in the unit of `batch_size`.

    Returns:
      A fraction; more than 1 where the training ends before one timescale.

    Example:
      >>> import optax_wd as wd
      >>> run = dict(batch_size=2**19, tokens=10e9)
      >>> print(f"{wd.conversions.fraction_from_decoupled(0.1, 3e-3, **run):.3f}")
      0.175

    Source: Power Lines, arXiv:2505.13738, where it is called tau.
    """
    check_all_positive(batch_size=batch_size, tokens=tokens)
    steps = tokens / batch_size
    return epochs_from_decoupled(weight_decay, learning_rate, steps)


def decoupled_from_fraction(
    fraction: float, learning_rate: float, *, batch_size: float, tokens: float
) -> float:
    """The decoupled coefficient of a timescale that is a fraction of the training.

    Args:
      fraction: the timescale over the length of the training.
      learning_rate: the highest of the run.
      batch_size: tokens (examples) per step.
      tokens: of the whole training, in the unit of `batch_size`.

    Returns:
      A `weight_decay`.

    Example:
      >>> import optax_wd as wd
      >>> run = dict(batch_size=2**19, tokens=10e9)
      >>> best = wd.conversions.best_fraction(tokens_per_parameter=20)
      >>> print(f"{wd.conversions.decoupled_from_fraction(best, 3e-3, **run):.3f}")
      0.078

    Source: Power Lines, arXiv:2505.13738, where the fraction is called tau.
    """
    check_all_positive(fraction=fraction, batch_size=batch_size, tokens=tokens)
    return decoupled_from_steps(fraction * (tokens / batch_size), learning_rate)


def best_fraction(tokens_per_parameter: float) -> float:
    """The timescale that was best in pre-training, as a fraction of the training.

    `1.084 * tokens_per_parameter**-0.527`: the more tokens a model is trained on for
    its size, the smaller the part of the training that its weights are an average of.
    Batch size and learning rate do not come in.

    It is a fit: to language models of 111 million to 3.3 billion parameters, trained
    with AdamW under muP. Elsewhere the power is of more use than the factor: tune one
    run, and multiply its fraction by `best_fraction(new) / best_fraction(old)`.

    Args:
      tokens_per_parameter: tokens of the training over parameters of the model, above
        0; 20 is about compute-optimal.

    Returns:
      A fraction, for `decoupled_from_fraction`.

    Example:
      >>> import optax_wd as wd
      >>> print(f"{wd.conversions.best_fraction(20):.3f}")
      0.224

    Source: Bergsma et al., Power Lines, arXiv:2505.13738, the law of the optimal tau.
    """
    check_all_positive(tokens_per_parameter=tokens_per_parameter)
    return 1.084 * tokens_per_parameter**-0.527


def at_equal_timescale(
    weight_decay: float,
    *,
    batch_size_ratio: float = 1.0,
    tokens_ratio: float = 1.0,
    width_ratio: float = 1.0,
    learning_rate_ratio: float = 1.0,
) -> float:
    """The decoupled coefficient after a change of the run, at equal timescale.

    The timescale is taken as a part of the training, `batch / (lr * weight_decay *
    tokens)`, and kept: `weight_decay * batch_size_ratio * width_ratio / (tokens_ratio *
    learning_rate_ratio)`. At a fixed number of passes over the data, this keeps the
    timescale in epochs.

    Args:
      weight_decay: the decoupled coefficient before.
      batch_size_ratio: new batch size over old.
      tokens_ratio: new number of tokens (examples) of the training over old.
      width_ratio: new width over old, where the parametrisation (muP) divides
        the learning rate of hidden matrices by the width; else 1.
      learning_rate_ratio: new learning rate over old, that of the width, if it
        is given there, left aside.

    Returns:
      A `weight_decay`.

    Example:
      >>> import optax_wd as wd
      >>> wd.conversions.at_equal_timescale(0.1, batch_size_ratio=4, tokens_ratio=2)
      0.2

    Source: Wang & Aitchison, arXiv:2405.13698. In Power Lines, arXiv:2505.13738, it is
    best to keep it where the batch size changes alone; else see `best_fraction`.
    """
    check_all_positive(
        weight_decay=weight_decay,
        batch_size_ratio=batch_size_ratio,
        tokens_ratio=tokens_ratio,
        width_ratio=width_ratio,
        learning_rate_ratio=learning_rate_ratio,
    )
    more = batch_size_ratio * width_ratio
    return weight_decay * more / (tokens_ratio * learning_rate_ratio)
