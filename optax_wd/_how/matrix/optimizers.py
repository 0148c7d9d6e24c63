# SPDX-License-Identifier: Apache-2.0
"""Matrix optimizers: hidden matrices are orthogonalised, all other leaves see Adam.

Which leaf is a matrix is a rule, how it is folded is a table, and the decay is one
transformation over the whole tree, whose mask says what decays and nothing else; or
there are two, of the matrices and of the rest.
"""

import functools
import math
from typing import Any

import jax
import optax
from jax.core import Tracer

from optax_wd._amount.amounts import check_number, check_positive
from optax_wd._how.chains.ready import takes_decay
from optax_wd._how.matrix.chain import check_decay_rates, check_dtype, matrix_chain
from optax_wd._how.matrix.newton_schulz import STEPS, check_coefficients, newton_schulz
from optax_wd._how.matrix.orthogonal import (
    Momentum,
    Neurons,
    Orthogonalize,
    distributed,
    scale_by_orthogonal,
)
from optax_wd._where.folds import Fold, Folding, Folds, check_folding
from optax_wd._where.matrices import matrices
from optax_wd._where.rules import Rule, Stacked


@takes_decay
def muon(
    learning_rate: optax.ScalarOrSchedule,
    decay: optax.GradientTransformation,
    *,
    matrices: Rule = matrices,
    folds: Folds = None,
    stacked: Stacked = None,
    beta: jax.typing.ArrayLike = 0.95,
    nesterov: bool = True,
    consistent_rms: jax.typing.ArrayLike | None = 0.2,
    ns_coeffs: Any = (3.4445, -4.7750, 2.0315),
    ns_steps: int = STEPS,
    ns_dtype: jax.typing.DTypeLike | None = None,
    eps: jax.typing.ArrayLike = 1e-8,
    mu_dtype: jax.typing.DTypeLike | None = None,
    adam_learning_rate: optax.ScalarOrSchedule | None = None,
    adam_b1: jax.typing.ArrayLike = 0.9,
    adam_b2: jax.typing.ArrayLike = 0.999,
    adam_eps_root: jax.typing.ArrayLike = 0.0,
    adam_decay: optax.GradientTransformation | None = None,
    distribute: jax.NamedSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon with a decay of your choice, for kernels of any rank; AdamW for the rest.

    `x <- x - lr * (s * O + decay)` for a matrix of `A` inputs and `B` outputs, where
    `O` is its momentum with all singular values pushed towards 1, to about 0.7 to 1.2
    by the default iteration but for very small ones, and `s = 0.2 * sqrt(max(A, B))`.
    The size `s` is on the update only: the shrink per step is `lr * weight_decay`, as
    in AdamW. All other leaves go `x <- x - adam_lr * (adam + decay)`. One decay covers
    the whole tree, and its own mask says what decays, unless `adam_decay` is given:
    then each of the two has its leaves. Gates read the signs of `O`, and of Adam's
    direction. In square matrices with `consistent_rms=None` plain decay keeps the
    spectral norm below about `1.2 / weight_decay`; cautious decay does not. For a
    learning rate that can be set, inject it alone, as in the example. Products have
    JAX's default matmul precision, which on accelerators is less than float32: to raise
    it, run the step under `jax.default_matmul_precision("float32")`.

    Args:
      learning_rate: as in `adamw`.
      decay: as in `adamw`; what is made by `after_learning_rate` is placed last.
      matrices: the leaves that are orthogonalised. `describe_matrices` shows them. A
        rule of paths, shapes and dtypes; types of modules, as of `owned_by`, are not
        known here.
      folds: for kernels of more than two dimensions, a table such as
        `first_match((contains("mix"), "iio"))`, or a function of a Leaf: one letter for
        each axis, i for input, o for output, b for a batch of matrices. Asked before
        the names that are known: attention (query, key, value, out, qkv), convolutions
        (conv*, patch*) and experts of Flax, and torch's order for leaves that are
        called weight, weight_* or *_weight.
      stacked: which leaves carry a stacked axis, of `nn.scan` or `nnx.vmap`, as in
        `standard_with`; each layer is a matrix of its own, and folds leave it out.
        Without it a stacked `Dense` called `query` or `conv` is folded as if it were
        attention or a convolution: look at `describe_matrices`. It does not reach the
        mask of the decay: give that `standard_with(stacked=...)`.
      beta: decay rate of the momentum, in [0, 1), which is not bias-corrected.
      nesterov: whether to use Nesterov momentum.
      consistent_rms: above 0, the root mean square of an update before
        `learning_rate`, if all singular values were 1. With the default iteration it is
        about 0.18 for square matrices, 0.14 to 0.22 for long ones, near that of Adam,
        so that its learning rate and decay can be kept. None for
        `s = sqrt(max(1, B / A))`, a step that from root mean square to root mean square
        has a constant operator norm where B >= A.
      ns_coeffs: three numbers, or such a triple for each Newton-Schulz step.
      ns_steps: how many steps, if `ns_coeffs` is one triple.
      ns_dtype: dtype of the iteration; by default float32, or float64 for such leaves.
        `jnp.bfloat16` halves its memory, and singular values then spread a bit more.
      eps: 0 or more, added to the norm before the iteration, and in Adam, where float16
        parameters need a larger one, as in `adamw`, and 0 makes NaN of a gradient of 0.
      mu_dtype: dtype of both momenta; by default that of the parameters.
      adam_learning_rate: of the leaves that are no matrices; by default the same.
      adam_b1: decay rate of Adam's first moment, in [0, 1).
      adam_b2: decay rate of Adam's second moment, in [0, 1).
      adam_eps_root: added to Adam's second moment inside the root.
      adam_decay: the decay of the leaves that are no matrices, with a mask of its own;
        `decay` is then that of the matrices only. Each sees a part of the tree, so
        names in the two masks that match no leaf pass unnoticed. What is made by
        `after_learning_rate` is placed last, for either.
      distribute: on several devices, how they share the iteration: a sharding of the
        first axis of a batch of shape (matrices, A, B), such as
        `jax.NamedSharding(mesh, jax.P("data"))`, on a mesh of Auto axes and inside of
        `jax.jit`. Results go back to where gradients lie. None leaves it to XLA.

    Returns:
      A transformation. Its state has a `MatrixState`, one copy of the matrices, Adam's
      two copies of the rest, the state of each decay, and a `LearningRateState`.

    Raises:
      TypeError: if a decay is no transformation, a learning rate neither number nor
        schedule, `consistent_rms` or `eps` no number, a dtype not of real
        floating-point numbers, or `matrices`, `folds`, `stacked` or `distribute` of the
        wrong kind.
      ValueError: if a decay rate is outside of [0, 1), `consistent_rms` not above 0,
        `eps` below 0, `ns_coeffs` or `ns_steps` out of range or one against the other,
        a text in `folds` no fold, or `distribute` shards anything but the first axis or
        has no mesh of Auto axes; at init and update, if a leaf that `matrices` chooses
        is no matrix, no fold says how it is one, a row of `folds` is about none, or a
        name matches no leaf.

    Example:
      >>> import optax_wd as wd
      >>> tx = wd.muon(1e-3, wd.masked_decay(0.1))
      >>> layers = wd.contains("blocks")
      >>> tx = wd.muon(0.02, wd.cautious_weight_decay(0.1), stacked=layers)
      >>> rest = wd.masked_decay(0.01, wd.named("embedding"))
      >>> tx = wd.muon(1e-3, wd.masked_decay(0.1), adam_decay=rest)
      >>> import optax
      >>> make = lambda learning_rate: wd.muon(learning_rate, wd.masked_decay(0.1))
      >>> tx = optax.inject_hyperparams(make)(learning_rate=1e-3)

    Source: Jordan et al., Muon (2024), with its momentum and coefficients; size and
    place of the decay from Muon is Scalable for LLM Training, arXiv:2502.16982, Eq. 4.
    `optax.contrib.muon` corrects its momentum for bias, which differs under Nesterov,
    and takes what has two dimensions for a matrix, so biases of Flax attention but not
    its kernels.
    """
    folding = check_folding(matrices, folds, stacked)
    iterate = _iteration(ns_coeffs, ns_steps, eps, ns_dtype, distribute)
    momentum = Momentum(beta, nesterov, mu_dtype)
    orthogonal = _direction(folding, iterate, momentum, None, consistent_rms)
    adam = _adam(adam_b1, adam_b2, eps, adam_eps_root, mu_dtype)
    rates = learning_rate, adam_learning_rate
    return matrix_chain(folding, (orthogonal, adam), (decay, adam_decay), rates)


@takes_decay
def normuon(
    learning_rate: optax.ScalarOrSchedule,
    decay: optax.GradientTransformation,
    *,
    matrices: Rule = matrices,
    folds: Folds = None,
    stacked: Stacked = None,
    beta: jax.typing.ArrayLike = 0.95,
    b2: jax.typing.ArrayLike = 0.95,
    nesterov: bool = True,
    consistent_rms: jax.typing.ArrayLike | None = 0.2,
    ns_coeffs: Any = (3.4445, -4.7750, 2.0315),
    ns_steps: int = STEPS,
    ns_dtype: jax.typing.DTypeLike | None = None,
    eps: jax.typing.ArrayLike = 1e-8,
    mu_dtype: jax.typing.DTypeLike | None = None,
    adam_learning_rate: optax.ScalarOrSchedule | None = None,
    adam_b1: jax.typing.ArrayLike = 0.9,
    adam_b2: jax.typing.ArrayLike = 0.999,
    adam_eps_root: jax.typing.ArrayLike = 0.0,
    adam_decay: optax.GradientTransformation | None = None,
    distribute: jax.NamedSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """NorMuon: Muon whose output neurons all move about equally far.

    As `muon`, with `O` replaced by `O / (sqrt(v) + eps)`, where
    `v <- b2 * v + (1 - b2) * mean(O**2)` is one number for each output neuron, a mean
    over its inputs. This is rescaled as a whole to a root mean square of
    `consistent_rms`. Signs, and so gates, are those of `O`.

    Args:
      learning_rate: as in `muon`.
      decay: as in `muon`.
      matrices: as in `muon`.
      folds: as in `muon`; here it matters for matrices too which axis is the input:
        `"io"` in Flax, `"oi"` for leaves called `weight`, `weight_*` or `*_weight`.
      stacked: as in `muon`.
      beta: as in `muon`.
      b2: decay rate of the squares of the neurons, in [0, 1), not bias-corrected: only
        their ratios count.
      nesterov: as in `muon`.
      consistent_rms: the root mean square of an update before `learning_rate`, exactly;
        None for the size of the authors' code, the Frobenius norm of `O` times
        `sqrt(max(1, B / A))`.
      ns_coeffs: as in `muon`.
      ns_steps: as in `muon`.
      ns_dtype: as in `muon`.
      eps: as in `muon`, and added to the root of `v`.
      mu_dtype: as in `muon`.
      adam_learning_rate: as in `muon`.
      adam_b1: as in `muon`.
      adam_b2: as in `muon`.
      adam_eps_root: as in `muon`.
      adam_decay: as in `muon`.
      distribute: as in `muon`.

    Returns:
      A transformation whose state is that of `muon` and one number for each neuron.

    Raises:
      TypeError: as `muon`.
      ValueError: as `muon`.

    Example:
      >>> import optax_wd as wd
      >>> tx = wd.normuon(1e-3, wd.masked_decay(0.1), consistent_rms=None)
      >>> import optax
      >>> make = lambda learning_rate: wd.normuon(learning_rate, wd.masked_decay(0.1))
      >>> tx = optax.inject_hyperparams(make)(learning_rate=1e-3)

    Source: Li et al., NorMuon, arXiv:2510.05491, Algorithm 1, whose step has length
    `0.2 * sqrt(A * B)`: `consistent_rms=0.2`. The authors' code, zichongli5/NorMuon,
    keeps the norm of `O`, which is None here, iterates in bfloat16 and adds 1e-7 to the
    norm and 1e-10 to the root.
    """
    folding = check_folding(matrices, folds, stacked)
    iterate = _iteration(ns_coeffs, ns_steps, eps, ns_dtype, distribute)
    momentum = Momentum(beta, nesterov, mu_dtype)
    neurons = Neurons(b2, eps, keeps_norm=consistent_rms is None)
    orthogonal = _direction(folding, iterate, momentum, neurons, consistent_rms)
    adam = _adam(adam_b1, adam_b2, eps, adam_eps_root, mu_dtype)
    rates = learning_rate, adam_learning_rate
    return matrix_chain(folding, (orthogonal, adam), (decay, adam_decay), rates)


def _iteration(
    ns_coeffs: Any,
    ns_steps: Any,
    eps: jax.typing.ArrayLike,
    dtype: Any,
    distribute: jax.NamedSharding | None,
) -> Orthogonalize:
    coefficients = check_coefficients(ns_coeffs, ns_steps)
    check_dtype("ns_dtype", dtype)
    if not isinstance(eps, Tracer):
        check_number("eps", eps, least=0)
    return distributed(
        lambda batch: newton_schulz(batch, coefficients, eps, dtype), distribute
    )


def _direction(
    folding: Folding,
    iterate: Orthogonalize,
    momentum: Momentum,
    neurons: Neurons | None,
    consistent_rms: jax.typing.ArrayLike | None,
) -> optax.GradientTransformation:
    """The direction of the matrices, of arguments that are checked."""
    check_decay_rates(beta=momentum.beta)
    check_dtype("mu_dtype", momentum.dtype)
    if neurons is not None:
        check_decay_rates(b2=neurons.b2)
    if consistent_rms is not None and not isinstance(consistent_rms, Tracer):
        check_positive("consistent_rms", consistent_rms)
    size = functools.partial(_size, consistent_rms)
    return scale_by_orthogonal(folding.fold, iterate, momentum, neurons, size)


def _adam(
    b1: Any, b2: Any, eps: Any, eps_root: Any, mu_dtype: Any
) -> optax.GradientTransformation:
    check_decay_rates(adam_b1=b1, adam_b2=b2)
    return optax.scale_by_adam(b1, b2, eps, eps_root, mu_dtype)


def _size(consistent_rms: jax.typing.ArrayLike | None, fold: Fold) -> Any:
    """The factor on an orthogonal matrix."""
    if consistent_rms is None:
        return math.sqrt(max(1.0, fold.length("o") / fold.length("i")))
    return consistent_rms * math.sqrt(max(fold.short_and_long))
