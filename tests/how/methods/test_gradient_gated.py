# SPDX-License-Identifier: Apache-2.0
"""Gradient-gated decay: the raw gradient opens the gate, whatever the step is."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from flax.training.train_state import TrainState
from helpers import (
    ROOT,
    assert_follows,
    assert_same,
    largest_difference,
    noise,
    once,
    public,
    tree,
    with_grad,
)

import optax_wd as wd


def gated(rate: Any = 0.5, mask: Any = wd.everything) -> Any:
    return wd.controls.gradient_gated_weight_decay(rate, mask)


def reference(x: np.ndarray, gradients: np.ndarray, rates: np.ndarray) -> list:
    momentum, seen = np.zeros_like(x), []
    for g, rate in zip(gradients, rates, strict=True):
        momentum = g + 0.9 * momentum
        x = x - 0.1 * (momentum + rate * (g * x >= 0) * x)
        seen.append(x)
    return seen


def test_behind_a_momentum_it_is_the_rule_in_numpy() -> None:
    method = wd.controls.gradient_gated_weight_decay
    assert_follows(method, reference, before=optax.trace(0.9))


def test_the_gradient_decides_and_neither_step_nor_signs_do() -> None:
    params = jnp.asarray([1.0, 1.0, -1.0, -1.0, 1.0, 1.0])
    grad = jnp.asarray([1.0, -1.0, 1.0, -1.0, 0.0, jnp.nan])
    step = jnp.asarray([-1.0, 1.0, -1.0, 1.0, -1.0, -1.0])
    after = once(gated(), step, params, grad=grad, sign_of=step)
    np.testing.assert_array_equal(after - step, [0.5, 0.0, 0.0, -0.5, 0.5, 0.0])


def test_without_momentum_it_is_cautious_decay() -> None:
    params, (grads,) = tree(), noise(tree(), 1)
    cautious = wd.sgdw(0.1, wd.cautious_weight_decay(0.5))
    own = with_grad(wd.sgdw(0.1, gated(mask=wd.standard)))
    assert_same(once(own, grads, params), once(cautious, grads, params))


def test_after_the_learning_rate_the_gradient_keeps_its_sign() -> None:
    params, grad = jnp.asarray([1.0, -1.0]), jnp.asarray([1.0, 1.0])
    tx = with_grad(optax.chain(optax.sgd(0.25), wd.after_learning_rate(gated())))
    np.testing.assert_array_equal(once(tx, grad, params), [-0.75, -0.25])


@pytest.mark.parametrize("ready", [wd.adamw, wd.sgdw], ids=["adamw", "sgdw"])
def test_the_audit_tells_it_from_cautious_decay(ready: Any) -> None:
    options = {"momentum": 0.9} if ready is wd.sgdw else {}
    params = {"w": jnp.ones((6, 6))}
    rows = wd.audit(with_grad(ready(0.1, gated(), **options)), params).rows
    assert [row.kind for row in rows] == ["unknown"]


def test_without_the_gradient_it_says_how_to_pass_it() -> None:
    params = tree()
    message = r"needs the raw gradient, got none; call tx.update\(grads, state, params"
    with pytest.raises(ValueError, match=message):
        once(gated(), params, params)


@pytest.mark.parametrize(
    "grad",
    [{"a": jnp.zeros(2), "b": None}, {"a": jnp.zeros(2)}, freeze({"a": jnp.zeros(2)})],
    ids=["None", "missing", "frozen"],
)
def test_a_gradient_that_lacks_a_leaf_is_refused_only_if_it_decays(grad: Any) -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    after = once(gated(mask=wd.named("a")), params, params, grad=grad)
    assert after["b"] is params["b"]
    with pytest.raises(
        ValueError, match="grad has no array of shape .* at 'b', which decays"
    ):
        once(gated(), params, params, grad=grad)


NEEDS = {
    "gradient_gated_weight_decay": "grad",
    "selective_weight_decay": "grad",
    "sensitivity_gated_weight_decay": "grad",
    "token_aware_weight_decay": "token_counts",
}


@pytest.mark.parametrize("name", NEEDS)
def test_micro_batches_give_what_comes_with_the_last_and_docstrings_say_so(
    name: str,
) -> None:
    text = " ".join(str(public(name).__doc__).split())
    assert re.search(r"`optax\.MultiSteps` [^.]*last micro-batch: pass the ", text)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return jnp.full_like(updates, extra[NEEDS[name]]), state

    inner = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    tx = optax.MultiSteps(inner, 2)
    params = jnp.ones(2)
    state, found = tx.init(params), []
    for batch in (1.0, 2.0):
        given = {NEEDS[name]: jnp.asarray(batch)}
        updates, state = tx.update(params, state, params, **given)
        found.append(float(jnp.asarray(updates)[0]))
    assert found == [0.0, 2.0]


def test_the_three_loops_of_the_pages_hand_the_gradient_on() -> None:
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    (grads,) = noise(params, 1)
    tx: Any = wd.adamw(0.1, wd.controls.gradient_gated_weight_decay(0.5))
    pages = "README.md", "docs/loops.md"
    text = "".join((ROOT / page).read_text("utf-8") for page in pages)

    plain = "tx.update(grads, opt_state, params, grad=grads)"
    assert f"`{plain}`" in text
    given = {"tx": tx, "opt_state": tx.init(params), "params": params, "grads": grads}
    updates, _ = eval(plain, given)
    expected = optax.apply_updates(params, updates)

    state = TrainState.create(apply_fn=model, params=params, tx=tx)
    with pytest.raises(ValueError, match="needs the raw gradient, got none"):
        state.apply_gradients(grads=grads, grad=grads)
    start = text.index("@jax.jit\ndef apply_gradients")
    names: dict[str, Any] = {"jax": jax, "optax": optax}
    exec(text[start : text.index("\n\n", start)], names)
    state = names["apply_gradients"](state, grads)
    assert state.step == 1 and largest_difference(state.params, expected) < 1e-6

    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    gradient = nnx.state(model, nnx.Param)
    nnx.replace_by_pure_dict(gradient, grads)
    line = "optimizer.update(model, grads, grad=grads)"
    assert f"`{line}`" in text
    eval(line, {"optimizer": optimizer, "model": model, "grads": gradient})
    found = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert largest_difference(found, expected) < 1e-6
