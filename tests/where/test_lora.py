# SPDX-License-Identifier: Apache-2.0
"""What decay means for LoRA: the factors go to zero, and the weights to pretrained."""

from typing import Any

import forms
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_wd as wd

RATE, DECAY, STEPS = 0.1, 0.5, 7
SHRINK = 1.0 - RATE * DECAY


class Model(nnx.Module):
    """A pretrained layer with factors of rank 2 beside it, and a plain layer."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layer = nnx.LoRALinear(4, 3, lora_rank=2, rngs=rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)


def model(seed: int = 0) -> Model:
    """Every parameter normal, `lora_b` and biases among them, which Flax makes zero."""
    made = nnx.eval_shape(lambda: Model(nnx.Rngs(0)))
    graph, params, rest = nnx.split(made, nnx.Param, ...)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params
    )
    return nnx.merge(graph, params, forms.zeros(rest))


def weights(module: Model) -> dict[str, Any]:
    """The pretrained kernel, the factors' product, and what the layer computes with."""
    kernel = np.asarray(module.layer.kernel[...], np.float64)
    a, b = module.layer.lora.lora_a[...], module.layer.lora.lora_b[...]
    product = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    return {"kernel": kernel, "product": product, "merged": kernel + product}


def decayed(module: Model, mask: Any, wrt: Any) -> dict[str, Any]:
    """The weights after some steps of decay alone: all gradients are zero."""
    tx = wd.sgdw(RATE, wd.masked_decay(DECAY, mask))
    optimizer = nnx.Optimizer(module, tx, wrt=wrt)
    gradients = jax.tree.map(jnp.zeros_like, nnx.state(module, wrt))
    for _ in range(STEPS):
        optimizer.update(module, gradients)
    return weights(module)


def chosen(tree: Any) -> list[str]:
    return sorted(path for path, answer in forms.answers(tree).items() if answer)


def test_the_merged_weight_is_what_the_layer_computes_with() -> None:
    module, x_BxD = model(), jnp.eye(4)
    shown = np.asarray(module.layer(x_BxD) - module.layer(0.0 * x_BxD))
    np.testing.assert_allclose(shown, weights(module)["merged"], rtol=1e-5, atol=1e-6)


def test_standard_decays_both_factors_and_the_frozen_kernel_is_not_there() -> None:
    mask = wd.mask_of(model(), wd.standard, wrt=nnx.LoRAParam)
    assert forms.answers(mask) == {
        "layer/lora/lora_a": True,
        "layer/lora/lora_b": True,
    }
    whole = wd.mask_of(model(), wd.standard)
    kernels = ["head/kernel", "layer/kernel"]
    assert chosen(whole) == [*kernels, "layer/lora/lora_a", "layer/lora/lora_b"]


@pytest.mark.parametrize("with_tree", [True, False], ids=["a tree", "a rule"])
def test_decayed_factors_pull_the_weight_to_the_pretrained_one(with_tree: bool) -> None:
    module = model()
    before = weights(module)
    mask = wd.mask_of(module, wd.standard, wrt=nnx.LoRAParam)
    after = decayed(module, mask if with_tree else wd.standard, nnx.LoRAParam)
    np.testing.assert_array_equal(after["kernel"], before["kernel"])
    np.testing.assert_allclose(
        after["product"], SHRINK ** (2 * STEPS) * before["product"], rtol=1e-5
    )
    np.testing.assert_allclose(
        after["merged"],
        before["kernel"] + SHRINK ** (2 * STEPS) * before["product"],
        rtol=1e-5,
    )


def test_one_factor_that_decays_shrinks_the_product_once_per_step() -> None:
    module = model()
    before = weights(module)
    after = decayed(module, wd.named("lora_b"), nnx.LoRAParam)
    expected = before["kernel"] + SHRINK**STEPS * before["product"]
    np.testing.assert_allclose(after["merged"], expected, rtol=1e-5)


def test_where_all_parameters_decay_the_pretrained_weight_shrinks_too() -> None:
    module = model()
    before = weights(module)
    after = decayed(module, wd.standard, nnx.Param)
    np.testing.assert_allclose(
        after["kernel"], SHRINK**STEPS * before["kernel"], rtol=1e-5
    )
    np.testing.assert_allclose(
        after["merged"],
        SHRINK**STEPS * before["kernel"] + SHRINK ** (2 * STEPS) * before["product"],
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    "exempt",
    [
        wd.contains("lora_a", "lora_b"),
        wd.owned_by(nnx.LoRA),
        wd.owned_by("LoRA"),
    ],
    ids=["by name", "by type", "by name of type"],
)
def test_factors_can_be_left_out(exempt: wd.Rule) -> None:
    rule = wd.standard & ~exempt
    assert chosen(wd.mask_of(model(), rule)) == ["head/kernel", "layer/kernel"]
    assert chosen(wd.mask_of(model(), rule, wrt=nnx.LoRAParam)) == []
    module = model()
    before = weights(module)
    after = decayed(module, wd.mask_of(module, rule), nnx.Param)
    np.testing.assert_array_equal(after["product"], before["product"])
    assert not any("LoRA" in text for text in wd.describe(rule, module).warnings)


def test_describe_warns_of_factors_that_decay() -> None:
    def said(mask: Any, params: Any) -> list[str]:
        texts = wd.describe(mask, params).warnings
        return [text for text in texts if "LoRA" in text]

    alone = (
        "factors of LoRA decay; the merged weights go to the pretrained ones: "
        "layer/lora/lora_a, layer/lora/lora_b"
    )
    with_weights = (
        "factors of LoRA decay; so do their weights, unless wrt=nnx.LoRAParam leaves "
        "these out: layer/lora/lora_a, layer/lora/lora_b"
    )
    module = model()
    factors = nnx.as_pure(nnx.state(module, nnx.LoRAParam))
    whole = nnx.as_pure(nnx.state(module, nnx.Param))
    assert said(wd.standard, factors) == [alone]
    for params in (module, whole):
        assert said(wd.standard, params) == [with_weights]
        # Other layers that decay are no weights that these factors are added to.
        assert said(wd.standard & ~wd.path("layer/kernel"), params) == [alone]
    assert said(wd.named("lora_b"), module) == [
        alone.replace("layer/lora/lora_a, ", "")
    ]


def test_the_state_of_the_optimizer_holds_factors_only() -> None:
    module = model()
    tx = wd.adamw(RATE, wd.masked_decay(DECAY))
    optimizer = nnx.Optimizer(module, tx, wrt=nnx.LoRAParam)
    held = optax.tree.get(nnx.as_pure(optimizer.opt_state), "mu")
    assert sorted(forms.answers(held)) == ["layer/lora/lora_a", "layer/lora/lora_b"]


@pytest.mark.parametrize(
    ("paths", "both"),
    [
        (("layer/lora/lora_a", "layer/kernel"), True),
        (("layer/lora_a", "layer/base_module/kernel"), True),
        (("dense/lora_a", "dense/kernel"), True),
        (("dense/lora_a", "pos/kernel"), False),
        (("lora_a", "kernel"), True),
        (("dense/lora_a", "kernel"), False),
    ],
)
def test_describe_knows_the_weights_beside_factors(
    paths: tuple[str, str], both: bool
) -> None:
    params = {path: jax.ShapeDtypeStruct((2, 2), jnp.float32) for path in paths}
    [said] = [w for w in wd.describe(wd.everything, params).warnings if "LoRA" in w]
    assert ("so do their weights" in said) is both
    assert ("go to the pretrained ones" in said) is not both
