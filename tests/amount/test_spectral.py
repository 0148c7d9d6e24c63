# SPDX-License-Identifier: Apache-2.0
"""Factors from spectra: the estimator by hand, the line in between, stacks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same, once

import optax_wd as wd


def matrix(exponent: float, size: int = 60, seed: int = 0) -> np.ndarray:
    """A square matrix whose eigenvalues are the quantiles of a power law."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(size, size)))[0] for _ in range(2))
    quantiles = (np.arange(size) + 0.5) / size
    eigenvalues = quantiles ** (-1.0 / (exponent - 1.0))
    return (left * np.sqrt(eigenvalues)) @ right


def hill(weight: Any) -> float:
    """The exponent as the authors' code has it, for one matrix."""
    values = np.linalg.svd(np.asarray(weight, np.float64), compute_uv=False)
    eigs = np.sort(values**2)
    i = len(eigs) // 2
    n = len(eigs) - i
    return 1 + n / (np.sum(np.log(eigs[i:])) - n * np.log(eigs[i]))


def kernels(*weights: Any) -> dict[str, Any]:
    return {
        f"{n}": {"kernel": jnp.asarray(w, jnp.float32)} for n, w in enumerate(weights)
    }


def test_factors_are_linear_in_the_exponent_of_the_authors() -> None:
    weights = [
        matrix(2.0),
        matrix(3.0, 100),
        np.random.default_rng(1).normal(size=(90, 60)),
    ]
    factors = wd.alpha_decay_factors(kernels(*weights), low=0.5, high=2.0)
    alphas = np.asarray(list(map(hill, weights)))
    assert 1.8 < alphas[0] < 2.3 < alphas[1]  # the estimator knows what it is given
    expected = np.interp(alphas, [alphas.min(), alphas.max()], [0.5, 2.0])
    found = [factors[f"{n}"]["kernel"] for n in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found[0] == 0.5 and max(found) == 2.0


def test_an_odd_number_of_eigenvalues_is_split_as_the_authors_do() -> None:
    weights = [
        np.diag([8.0, 4.0, 2.0]),
        np.diag([5.0, 4.0, 3.0]),
        np.diag([9.0, 3.0, 2.0]),
    ]
    factors = wd.alpha_decay_factors(kernels(*weights), low=0.0, high=1.0, fewest=3)
    alphas = [1 + 2 / np.log(v) for v in (4.0, (5 / 4) ** 2, 9.0)]
    expected = [(a - min(alphas)) / (max(alphas) - min(alphas)) for a in alphas]
    found = [factors[f"{n}"]["kernel"] for n in range(3)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_heavy_tails_are_spared_by_default() -> None:
    factors = wd.alpha_decay_factors(kernels(matrix(2.0), matrix(4.0)))
    found = [factors[f"{n}"]["kernel"] for n in range(2)]
    np.testing.assert_allclose(found, [2 / 3, 5.0])


def test_the_scale_of_a_matrix_does_not_matter() -> None:
    weights = matrix(2.0), matrix(2.5), matrix(4.0)
    small = wd.alpha_decay_factors(kernels(*(1e-3 * w for w in weights)))
    large = wd.alpha_decay_factors(kernels(*weights))
    for n in range(3):
        assert small[f"{n}"]["kernel"] == pytest.approx(large[f"{n}"]["kernel"], 1e-3)


def test_what_is_no_matrix_or_does_not_decay_has_the_factor_1() -> None:
    params: Any = kernels(matrix(2.0), matrix(4.0))
    params["bias"], params["steps"] = jnp.ones(60), jnp.asarray(3)
    params["out"] = {"kernel": jnp.asarray(matrix(9.0), jnp.float32)}
    params["few"] = {"kernel": jnp.ones((4, 4))}
    params["empty"] = {"kernel": jnp.ones((0, 60))}
    factors = wd.alpha_decay_factors(params, ~wd.contains("out"))
    for name in ("out", "few", "empty"):
        assert factors[name]["kernel"] == 1.0
    assert factors["bias"] == factors["steps"] == 1.0
    assert factors["1"]["kernel"] == 5.0  # not that of `out`, which is lighter still
    assert jax.tree.structure(factors) == jax.tree.structure(params)


@pytest.mark.parametrize(
    "params",
    [kernels(matrix(2.0)), kernels(matrix(3.0), matrix(3.0)), {"b": jnp.ones(3)}],
)
def test_where_there_is_nothing_to_compare_factors_are_1(params: Any) -> None:
    assert set(jax.tree.leaves(wd.alpha_decay_factors(params))) == {1.0}


@pytest.mark.parametrize(
    ("axes", "shape"), [((0,), (2, 1, 1)), ((1,), (1, 2, 1)), ((2,), (1, 1, 2))]
)
def test_stacked_layers_have_a_factor_each(axes: tuple[int, ...], shape: Any) -> None:
    layers = [matrix(2.0), matrix(3.0)]
    alone = wd.alpha_decay_factors(kernels(*layers, matrix(5.0)))
    stack = jnp.asarray(np.stack(layers, axis=axes[0]), jnp.float32)
    params = {"blocks": {"kernel": stack}, **kernels(matrix(5.0))}
    stacked = ((wd.contains("blocks"), axes[0]),)
    factors = wd.alpha_decay_factors(params, wd.everything, stacked=stacked)
    found = factors["blocks"]["kernel"]
    assert found.shape == shape and found.dtype == np.float32
    expected = [alone["0"]["kernel"], alone["1"]["kernel"]]
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-3)
    assert factors["0"]["kernel"] == 5.0


def test_two_stacked_axes_keep_their_places() -> None:
    layers = np.stack([matrix(a) for a in (2.0, 2.5, 3.0, 3.5, 4.0, 5.0)])
    alone = wd.alpha_decay_factors(kernels(*layers))
    grid = jnp.asarray(layers.reshape(2, 3, 60, 60), jnp.float32)
    rule = wd.contains("blocks")
    for turned, stacked in (
        (grid, ((rule, 0), (rule, 0))),
        (grid, ((rule, 1), (rule, 0))),
        (grid.transpose(0, 2, 1, 3), ((rule, 0), (rule, 1))),
    ):
        params = {"blocks": {"kernel": turned}}
        found = wd.alpha_decay_factors(params, wd.everything, stacked=stacked)
        factors = found["blocks"]["kernel"].ravel()
        expected = [alone[f"{n}"]["kernel"] for n in range(6)]
        np.testing.assert_allclose(factors, expected, rtol=1e-3)


def test_a_matrix_of_low_rank_has_the_heaviest_tail() -> None:
    low = np.zeros((60, 60))
    low[:5, :5] = np.eye(5)
    factors = wd.alpha_decay_factors(kernels(low, matrix(1.5), matrix(4.0)))
    assert factors["0"]["kernel"] == pytest.approx(2 / 3)
    assert factors["1"]["kernel"] > 2 / 3


def test_they_are_a_multiplier() -> None:
    params = kernels(matrix(2.0), matrix(4.0))
    params["blocks"] = {"kernel": jnp.stack([x["kernel"] for x in params.values()])}
    stacked = wd.contains("blocks")
    factors = wd.alpha_decay_factors(params, stacked=stacked)
    zeros = jax.tree.map(jnp.zeros_like, params)
    found = once(wd.masked_decay(0.5, multiplier=factors), zeros, params)
    expected = jax.tree.map(lambda f, p: 0.5 * f * p, factors, params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    before = wd.adamw(1e-3, wd.masked_decay(0.5)).init(params)
    tx = wd.adamw(1e-3, wd.masked_decay(0.5, multiplier=factors))
    assert_same(tx.init(params), before)  # anew, with the same state


def test_errors_say_what_is_wrong() -> None:
    params = kernels(matrix(2.0))
    with pytest.raises(ValueError, match="low is finite and 0 or more, got -1"):
        wd.alpha_decay_factors(params, low=-1)
    with pytest.raises(ValueError, match="high is finite and 0 or more, got inf"):
        wd.alpha_decay_factors(params, high=float("inf"))
    with pytest.raises(ValueError, match="fewest is finite and 1 or more, got 0"):
        wd.alpha_decay_factors(params, fewest=0)
    with pytest.raises(TypeError, match="mask=None is ambiguous"):
        wd.alpha_decay_factors(params, None)
    with pytest.raises(TypeError, match="stacked takes a rule, for axis 0, or pairs"):
        wd.alpha_decay_factors(params, stacked="blocks")  # pyright: ignore
