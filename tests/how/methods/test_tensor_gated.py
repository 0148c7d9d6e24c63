# SPDX-License-Identifier: Apache-2.0
"""Tensor-gated decay: one decision for a tensor, and what counts as one tensor."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_follows, assert_same, once, tree

import optax_wd as wd


def gated(rate: Any = 0.5, mask: Any = wd.everything, **options: Any) -> Any:
    return wd.controls.tensor_gated_weight_decay(rate, mask, **options)


def reference(x: np.ndarray, gradients: np.ndarray, rates: np.ndarray) -> list:
    seen = []
    for g, rate in zip(gradients, rates, strict=True):
        x = x - 0.1 * (g + rate * (np.sum(g * x) >= 0) * x)
        seen.append(x)
    return seen


def test_it_is_the_rule_in_numpy() -> None:
    assert_follows(wd.controls.tensor_gated_weight_decay, reference)


def test_the_sum_decides_for_all_coordinates() -> None:
    params = {"open": jnp.asarray([4.0, 1.0]), "shut": jnp.asarray([1.0, 4.0])}
    updates = {"open": jnp.asarray([1.0, -1.0]), "shut": jnp.asarray([1.0, -1.0])}
    after = once(gated(), updates, params)
    np.testing.assert_array_equal(after["open"], [3.0, -0.5])
    np.testing.assert_array_equal(after["shut"], [1.0, -1.0])


def test_zero_is_open_and_nan_is_closed() -> None:
    params = {"zero": jnp.asarray([1.0, 1.0]), "nan": jnp.asarray([1.0, 1.0])}
    updates = {"zero": jnp.asarray([1.0, -1.0]), "nan": jnp.asarray([1.0, jnp.nan])}
    after = once(gated(), updates, params)
    np.testing.assert_array_equal(after["zero"], [1.5, -0.5])
    np.testing.assert_array_equal(after["nan"], [1.0, np.nan])


def test_the_sum_is_taken_in_float32() -> None:
    # In bfloat16 the small products would be lost beside the large ones.
    params = jnp.asarray([256.0] + [1.0] * 300, jnp.bfloat16)
    updates = jnp.asarray([1.0] + [-1.0] * 300, jnp.bfloat16)
    assert_same(once(gated(), updates, params), updates)


def test_signs_alone_do_not_tell_the_sum_and_are_not_used() -> None:
    params, updates = jnp.asarray([1.0, 4.0]), jnp.asarray([9.0, -1.0])
    after = once(gated(), updates, params, sign_of=jnp.sign(updates))
    np.testing.assert_array_equal(after, [9.5, 1.0])


@pytest.mark.parametrize("axis", [0, 1])
def test_stacked_layers_decide_as_the_layers_do(axis: int) -> None:
    here, updates = ([tree(s + n)["mlp"] for n in range(6)] for s in (10, 40))

    def stack(trees: list[Any]) -> Any:
        return {"blocks": jax.tree.map(lambda *x: jnp.stack(x, axis), *trees)}

    blocks = wd.contains("blocks")
    together = gated(stacked=blocks if axis == 0 else ((blocks, axis),))
    after = once(together, stack(updates), stack(here))["blocks"]
    alone = [once(gated(), u, x) for u, x in zip(updates, here, strict=True)]
    assert_same({"blocks": after}, stack(alone))
    pairs = zip(alone, updates, strict=True)
    opened = [bool(jnp.any(a["kernel"] != u["kernel"])) for a, u in pairs]
    assert any(opened) and not all(opened)


def test_of_complex_tensors_the_real_inner_product_decides() -> None:
    params = {"open": jnp.asarray([1.0j]), "shut": jnp.asarray([1.0j])}
    updates = {"open": jnp.asarray([5.0 + 1.0j]), "shut": jnp.asarray([5.0 - 1.0j])}
    after = once(gated(), updates, params)
    np.testing.assert_array_equal(after["open"], [5.0 + 1.5j])
    np.testing.assert_array_equal(after["shut"], [5.0 - 1.0j])


def test_tensors_without_elements_pass() -> None:
    params = {"empty": jnp.zeros((0, 3)), "scalar": jnp.asarray(2.0)}
    after = once(gated(), params, params)
    assert after["empty"].shape == (0, 3) and after["scalar"] == 3.0


def test_the_audit_does_not_take_it_for_cautious_or_plain_decay() -> None:
    params = {"w": jnp.ones((6, 6)), "v": jnp.ones((7, 7))}
    rows = wd.audit(wd.sgdw(0.1, gated()), params).rows
    assert [row.kind for row in rows] == ["unknown", "unknown"]


def test_what_is_no_stacking_is_refused() -> None:
    with pytest.raises(TypeError, match="stacked takes a rule, for axis 0, or pairs"):
        gated(stacked="blocks")
    with pytest.raises(
        ValueError, match=r"'w' of shape \(\) has no axis 0 to take off"
    ):
        once(gated(stacked=wd.named("w")), {"w": jnp.ones(())}, {"w": jnp.ones(())})
