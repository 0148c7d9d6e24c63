# SPDX-License-Identifier: Apache-2.0
"""Masks by the types and the metadata of modules, made once from the model."""

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import forms
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import optax_wd as wd


class Scaled(nnx.LayerNorm):
    """A norm of your own, which is a LayerNorm still."""


class Model(nnx.Module):
    """Every container in which NNX holds modules, and metadata of each kind."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.List(
            [
                nnx.Dict(fc=nnx.Linear(2, 2, rngs=rngs), norm=Scaled(2, rngs=rngs))
                for _ in range(2)
            ]
        )
        self.table = nnx.Dict({"keys": nnx.Embed(3, 2, rngs=rngs)})
        self.top = nnx.Sequential(
            nnx.Linear(2, 2, rngs=rngs), jax.nn.relu, nnx.RMSNorm(2, rngs=rngs)
        )
        self.lora = nnx.LoRA(2, 1, 2, rngs=rngs)
        self.gain = nnx.Param(jnp.ones((2, 2)), weight_decay=False)
        self.tagged = nnx.Linear(
            2,
            2,
            kernel_metadata={"weight_decay": True, "group": "a"},
            bias_metadata={"weight_decay": False},
            rngs=rngs,
        )
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.batch = nnx.BatchNorm(2, rngs=rngs)


class Shared(nnx.Module):
    """A Linear under two names, and a norm."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.second = nnx.Linear(2, 2, rngs=rngs)
        self.first = self.second
        self.norm = nnx.LayerNorm(2, rngs=rngs)


class Tied(nnx.Module):
    """An embedding that is also the kernel of the decoder."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(2, 2, rngs=rngs)
        self.decoder = nnx.Linear(2, 2, use_bias=False, rngs=rngs)
        self.decoder.kernel = self.embed.embedding


@functools.cache
def abstract() -> Model:
    return nnx.eval_shape(lambda: Model(nnx.Rngs(0)))


@functools.cache
def model() -> Model:
    return Model(nnx.Rngs(0))


def chosen(tree: Any) -> set[str]:
    return {path for path, answer in forms.answers(tree).items() if answer}


def moved(model: Any, tx: optax.GradientTransformation) -> dict[str, float]:
    """By how much one step with zero gradients moves ones under `nnx.Optimizer`."""
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    gradients = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
    before = forms.answers(nnx.as_pure(nnx.state(model, nnx.Param)))
    optimizer.update(model, gradients)
    after = forms.answers(nnx.as_pure(nnx.state(model, nnx.Param)))
    return {path: float(jnp.sum(before[path] - after[path])) for path in before}


def ones(abstract: Any) -> Any:
    """A module whose arrays are ones, for the shapes of an abstract one."""
    graph, params, rest = nnx.split(abstract, nnx.Param, ...)
    params = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), params)
    return nnx.merge(graph, params, forms.zeros(rest))


class Plain(nnx.Module):
    """Two layers and a norm, without random state."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fc = nnx.Linear(2, 2, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(11)])
        self.norm = nnx.LayerNorm(2, rngs=rngs)


def plain() -> Any:
    return ones(nnx.eval_shape(lambda: Plain(nnx.Rngs(0))))


@pytest.mark.parametrize("make", [model, abstract])
def test_a_leaf_is_owned_by_the_module_that_holds_it(make: Callable[[], Any]) -> None:
    def owned(*kinds: type | str) -> set[str]:
        return chosen(wd.mask_of(make(), wd.owned_by(*kinds)))

    norms = {f"blocks/{n}/norm/{name}" for n in (0, 1) for name in ("bias", "scale")}
    linears = {f"blocks/{n}/fc/{name}" for n in (0, 1) for name in ("bias", "kernel")}
    linears |= {"top/layers/0/bias", "top/layers/0/kernel"}
    linears |= {"tagged/bias", "tagged/kernel"}
    assert owned(nnx.LayerNorm) == norms
    assert owned(Scaled) == norms
    assert owned(nnx.Linear) == linears
    assert owned(nnx.RMSNorm) == {"top/layers/2/scale"}
    assert owned(nnx.Embed) == {"table/keys/embedding"}
    assert owned(nnx.LoRA) == {"lora/lora_a", "lora/lora_b"}
    assert owned(nnx.BatchNorm) == {"batch/bias", "batch/scale"}
    assert owned(Model) == {"gain"}
    assert owned(nnx.Linear, nnx.RMSNorm) == linears | {"top/layers/2/scale"}
    assert owned(nnx.Conv) == set()


def test_an_owner_may_be_given_by_the_name_of_its_type_or_of_a_base() -> None:
    rules = wd.owned_by("LayerNorm"), wd.owned_by(nnx.LayerNorm)
    one, two = (wd.mask_of(abstract(), rule) for rule in rules)
    assert chosen(one) == chosen(two) != set()
    assert len(chosen(wd.mask_of(abstract(), wd.owned_by("Scaled")))) == 4


def test_containers_own_nothing() -> None:
    for kind in (nnx.List, nnx.Dict, nnx.Sequential):
        assert chosen(wd.mask_of(abstract(), wd.owned_by(kind))) == set()


def test_a_variable_in_a_container_is_owned_by_the_module_around_it() -> None:
    class Outer(nnx.Module):
        def __init__(self) -> None:
            self.listed = nnx.List([nnx.Param(jnp.ones(2))])
            self.keyed = nnx.Dict({"a": nnx.Param(jnp.ones(2))})
            self.plain = nnx.data([nnx.Param(jnp.ones(2))])

    mask = wd.mask_of(Outer(), wd.owned_by(Outer))
    assert chosen(mask) == {"keyed/a", "listed/0", "plain/0"}


class Two(NamedTuple):
    """A container with named fields."""

    count: Any
    other: Any


class Data(nnx.Module):
    """Modules in plain Python containers, under keys that dicts have as methods."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.plain = nnx.data(
            {
                "items": nnx.LayerNorm(2, rngs=rngs),
                "a": [nnx.LayerNorm(2, rngs=rngs)],
                "values": {"pop": (nnx.Linear(2, 2, rngs=rngs),)},
                "named": Two(nnx.LayerNorm(2, rngs=rngs), None),
            }
        )
        self.dict = nnx.Dict(
            {"items": nnx.LayerNorm(2, rngs=rngs), "pop": nnx.Linear(2, 2, rngs=rngs)}
        )


def test_owners_are_found_in_plain_containers_whatever_their_keys() -> None:
    model = nnx.eval_shape(lambda: Data(nnx.Rngs(0)))
    norms = {"plain/items/bias", "plain/items/scale", "plain/a/0/bias"}
    norms |= {"plain/a/0/scale", "dict/items/bias", "dict/items/scale"}
    norms |= {"plain/named/count/bias", "plain/named/count/scale"}
    assert chosen(wd.mask_of(model, wd.owned_by(nnx.LayerNorm))) == norms
    linears = {"plain/values/pop/0/bias", "plain/values/pop/0/kernel"}
    linears |= {"dict/pop/bias", "dict/pop/kernel"}
    assert chosen(wd.mask_of(model, wd.owned_by(nnx.Linear))) == linears


def test_owners_are_found_under_keys_with_slashes() -> None:
    class Slashes(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first = nnx.Dict({"a/b": nnx.LayerNorm(2, rngs=rngs)})
            self.second = nnx.Dict({"c/d": self.first["a/b"]})

    model = nnx.eval_shape(lambda: Slashes(nnx.Rngs(0)))
    mask = wd.mask_of(model, wd.owned_by(nnx.LayerNorm) & wd.path("first/a/b/scale"))
    assert chosen(mask) == {"first/a/b/scale"}
    warnings = wd.describe(wd.standard, model).warnings
    assert "first/a/b/scale is shared, and is also second/c/d/scale" in warnings


def test_metadata_of_a_variable_chooses_it() -> None:
    def declared(*given: Any) -> set[str]:
        return chosen(wd.mask_of(abstract(), wd.declared(*given)))

    assert declared("weight_decay", False) == {"gain", "tagged/bias"}
    assert declared("weight_decay") == {"tagged/kernel"}
    assert declared("group", "a") == {"tagged/kernel"}
    assert declared("group", "b") == set()
    with pytest.raises(
        ValueError, match="^no Variable declares 'unknown'; what they d"
    ):
        declared("unknown", None)
    with pytest.raises(
        ValueError, match=r"^owned_by\('LayrNorm'\) matches no leaf; owne"
    ):
        wd.mask_of(abstract(), ~wd.owned_by("LayrNorm"))
    assert chosen(wd.mask_of(abstract(), wd.owned_by(nnx.GroupNorm))) == set()


def test_rules_of_modules_combine_with_all_others() -> None:
    norms = wd.owned_by(nnx.LayerNorm, nnx.RMSNorm, nnx.BatchNorm)
    rule = wd.standard & ~norms & ~wd.declared("weight_decay", False)
    assert chosen(wd.mask_of(abstract(), rule)) == {
        "blocks/0/fc/kernel",
        "blocks/1/fc/kernel",
        "lora/lora_a",
        "lora/lora_b",
        "tagged/kernel",
        "top/layers/0/kernel",
    }


def test_a_mask_has_the_structure_of_the_pure_state() -> None:
    for wrt in (None, nnx.Param, nnx.LoRAParam, nnx.PathContains("fc")):
        mask = wd.mask_of(model(), wd.everything, wrt=wrt)
        kept = nnx.Param if wrt is None else wrt
        pure = nnx.as_pure(nnx.state(model(), kept))
        assert jax.tree.structure(mask) == jax.tree.structure(pure)
        assert set(jax.tree.leaves(mask)) == {True}


def test_only_what_wrt_selects_is_in_the_mask() -> None:
    mask = wd.mask_of(abstract(), wd.everything, wrt=nnx.LoRAParam)
    assert chosen(mask) == {"lora/lora_a", "lora/lora_b"}
    everything = wd.mask_of(abstract(), wd.everything, wrt=nnx.Variable)
    assert forms.answers(everything)["dropout/rngs/count"] is False
    assert forms.answers(everything)["batch/mean"] is True


def test_the_mask_of_a_rule_by_names_is_that_of_the_rule_itself() -> None:
    for rule in (wd.standard, wd.named("kernel"), wd.path("blocks/*/fc/*")):
        mask = wd.mask_of(model(), rule)
        state = nnx.as_pure(nnx.state(model(), nnx.Param))
        assert forms.answers(mask) == forms.answers(rule(state))


@pytest.mark.parametrize(
    "make",
    [
        lambda mask: optax.chain(optax.add_decayed_weights(1.0, mask), optax.sgd(1.0)),
        lambda mask: optax.chain(
            optax.masked(optax.add_decayed_weights(1.0), mask), optax.sgd(1.0)
        ),
        lambda mask: wd.sgdw(1.0, wd.masked_decay(1.0, mask)),
        lambda mask: optax.adamw(1.0, weight_decay=1.0, mask=mask),
    ],
    ids=["add_decayed_weights", "masked", "sgdw", "adamw"],
)
def test_a_mask_of_types_drives_nnx_optimizer(
    make: Callable[[Any], optax.GradientTransformation],
) -> None:
    module = plain()
    mask = wd.mask_of(module, ~wd.owned_by(nnx.LayerNorm) & ~wd.named("bias"))
    steps = moved(module, make(mask))
    assert {path for path, step in steps.items() if step != 0.0} == chosen(mask)
    assert chosen(mask) == {"fc/kernel"} | {f"layers/{n}/kernel" for n in range(11)}
    assert steps["fc/kernel"] == pytest.approx(4.0)


def test_answers_of_many_layers_are_not_mixed_up() -> None:
    module = plain()
    rule = wd.path("layers/2/*", "layers/10/kernel")
    steps = moved(module, wd.sgdw(1.0, wd.masked_decay(1.0, wd.mask_of(module, rule))))
    assert {path for path, step in steps.items() if step} == {
        "layers/2/bias",
        "layers/2/kernel",
        "layers/10/kernel",
    }


def test_labels_of_types_drive_partition_under_nnx_optimizer() -> None:
    module = plain()
    table = wd.first_match((wd.owned_by(nnx.LayerNorm), "norms"), default="rest")
    labels = wd.mask_of(module, table)
    groups: dict[Any, Any] = {
        "norms": optax.identity(),
        "rest": optax.add_decayed_weights(-1.0),
    }
    steps = moved(module, optax.partition(groups, labels))
    assert {path for path, step in steps.items() if step == 0.0} == {
        "norm/bias",
        "norm/scale",
    }
    assert {steps["fc/kernel"], steps["fc/bias"]} == {4.0, 2.0}


def test_factors_of_types_are_a_multiplier_under_nnx_optimizer() -> None:
    module = plain()
    factors = wd.mask_of(
        module, wd.first_match((wd.owned_by(nnx.LayerNorm), 0.0), default=0.5)
    )
    decay = wd.masked_decay(1.0, wd.everything, multiplier=factors)
    steps = moved(module, wd.sgdw(1.0, decay))
    assert (steps["norm/scale"], steps["fc/kernel"]) == (0.0, 2.0)


def test_a_shared_module_has_one_answer_under_its_first_name() -> None:
    module = ones(nnx.eval_shape(lambda: Shared(nnx.Rngs(0))))
    assert module.first is module.second
    mask = wd.mask_of(module, wd.owned_by(nnx.Linear))
    assert forms.answers(mask) == {
        "first/bias": True,
        "first/kernel": True,
        "norm/bias": False,
        "norm/scale": False,
    }
    steps = moved(module, wd.sgdw(1.0, wd.masked_decay(0.5, mask)))
    assert steps == {
        "first/bias": 1.0,
        "first/kernel": 2.0,
        "norm/bias": 0.0,
        "norm/scale": 0.0,
    }


def test_a_name_that_nnx_does_not_keep_counts_too() -> None:
    module = nnx.eval_shape(lambda: Shared(nnx.Rngs(0)))
    assert chosen(wd.mask_of(module, wd.contains("second"))) == {
        "first/bias",
        "first/kernel",
    }
    with pytest.raises(ValueError, match=r"^contains\('third'\) matches no leaf; the"):
        wd.mask_of(module, wd.contains("third"))


def test_describe_shows_owners_and_metadata() -> None:
    module = nnx.eval_shape(lambda: Shared(nnx.Rngs(0)))
    shown = wd.describe(~wd.owned_by(nnx.LayerNorm), module)
    rows = {row.path: (row.decays, row.because) for row in shown.rows}
    assert rows["first/kernel"] == (True, "owned by Linear")
    assert rows["norm/scale"] == (False, "owned by LayerNorm")
    declared = wd.describe(~wd.declared("weight_decay", False), abstract())
    because = {row.path: row.because for row in declared.rows}
    assert because["gain"] == "declares weight_decay=False"
    assert because["lora/lora_a"] == "declares no weight_decay"


def test_describe_shows_the_other_names_of_a_shared_variable() -> None:
    module = nnx.eval_shape(lambda: Tied(nnx.Rngs(0)))
    shown = wd.describe(wd.standard, module)
    assert [row.path for row in shown.rows] == ["decoder/kernel"]
    said = "decoder/kernel is shared, and is also embed/embedding"
    assert said in shown.warnings


def test_describe_shows_the_other_names_of_a_shared_module() -> None:
    module = nnx.eval_shape(lambda: Shared(nnx.Rngs(0)))
    shown = wd.describe(wd.standard, module)
    assert "first/kernel is shared, and is also second/kernel" in shown.warnings
    assert not any("norm" in text for text in shown.warnings)


def test_stacked_layers_keep_their_owners() -> None:
    norms = wd.mask_of(forms.nnx_stacked(), wd.owned_by(nnx.LayerNorm))
    assert chosen(norms) == {"norm/bias", "norm/scale"}
    rule = wd.min_ndim(2, stacked=wd.everything) & ~wd.named("bias")
    mask = wd.mask_of(forms.nnx_stacked(), rule)
    assert forms.answers(mask) == forms.WEIGHTS


def test_a_stacked_model_under_nnx_optimizer_decays_as_one_layer() -> None:
    module = ones(forms.nnx_stacked())
    rule = ~wd.owned_by(nnx.LayerNorm) & wd.standard
    steps = moved(module, wd.sgdw(1.0, wd.masked_decay(0.5, wd.mask_of(module, rule))))
    assert {path: step != 0.0 for path, step in steps.items()} == forms.WEIGHTS


@pytest.mark.parametrize("rule", ["kernel", None, lambda tree: tree, {"a": True}])
def test_mask_of_takes_a_rule_or_table(rule: Any) -> None:
    with pytest.raises(TypeError, match="^mask_of takes a rule such as `standard`, go"):
        wd.mask_of(abstract(), rule)


def test_mask_of_finds_names_that_match_nothing_and_rows_that_lack() -> None:
    with pytest.raises(ValueError, match=r"^named\('kernels'\) matches no leaf; the n"):
        wd.mask_of(abstract(), wd.standard | wd.named("kernels"))
    with pytest.raises(ValueError, match="^no row of the table matches "):
        wd.mask_of(abstract(), wd.first_match((wd.owned_by(nnx.LayerNorm), 0.0)))


def test_a_model_built_eagerly_or_abstractly_gives_the_same_mask() -> None:
    rule = wd.standard & ~wd.declared("weight_decay", False)
    assert wd.mask_of(model(), rule) == wd.mask_of(abstract(), rule)


def test_a_variable_that_holds_several_arrays_has_one_owner() -> None:
    class Pair(nnx.Module):
        def __init__(self) -> None:
            self.pair = nnx.Param({"a": jnp.ones(2), "b": jnp.ones(2)}, group=1)

    mask = wd.mask_of(Pair(), wd.owned_by(Pair) & wd.declared("group", 1))
    assert forms.answers(mask) == {"pair/a": True, "pair/b": True}


# ------------------------------------------------------------- shared names in NNX


class Thrice(nnx.Module):
    """One Variable under three names, and a whole block under two."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(2, 2, rngs=rngs)
        self.decoder = nnx.Linear(2, 2, use_bias=False, rngs=rngs)
        self.decoder.kernel = self.embed.embedding
        self.also = self.embed.embedding
        self.second = Plain(rngs)
        self.first = nnx.List([self.second])


def test_a_variable_with_three_names_is_described_with_all_of_them() -> None:
    shown = wd.describe(wd.standard, nnx.eval_shape(lambda: Thrice(nnx.Rngs(0))))
    said = "also is shared, and is also decoder/kernel, embed/embedding"
    assert said in shown.warnings
    paths = {row.path for row in shown.rows}
    assert "also" in paths
    assert not paths & {"decoder/kernel", "embed/embedding"}


def test_every_leaf_of_a_shared_block_is_described_with_its_other_name() -> None:
    shown = wd.describe(wd.standard, nnx.eval_shape(lambda: Thrice(nnx.Rngs(0))))
    inside = [row.path for row in shown.rows if row.path.startswith("first/0/")]
    assert len(inside) == 26
    for path in inside:
        other = path.replace("first/0/", "second/")
        assert f"{path} is shared, and is also {other}" in shown.warnings
    assert len(shown.rows) == 27


# -------------------------------------------------------------------------- Linen


class LinenScaled(nn.LayerNorm):
    """A norm of your own, which is a LayerNorm still."""


class Inner(nn.Module):
    """A norm, a layer, a norm of your own, and a parameter."""

    @nn.compact
    def __call__(self, x_BxD: jax.Array) -> jax.Array:
        x_BxD = LinenScaled(name="own")(nn.Dense(2)(nn.LayerNorm()(x_BxD)))
        return x_BxD * self.param("gain", nn.initializers.ones, (2,))


class Body(nn.Module):
    """`Inner` as the body of a scan."""

    @nn.compact
    def __call__(self, x_BxD: jax.Array, _: None) -> tuple[jax.Array, None]:
        return Inner(name="inner")(x_BxD), None


AXES: dict[str, Any] = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
# Lifted once, as in a module of one's own: nn.jit remembers what it has traced.
LIFTED: dict[str, Any] = {
    "plain": Inner,
    "remat": nn.remat(Inner),
    "jit": nn.jit(Inner),
    "vmap": nn.vmap(Inner, **AXES),
    "jit of remat": nn.jit(nn.remat(Inner)),
    "map_variables": nn.map_variables(Inner, "params", init=True),
    "scan": nn.scan(Body, **AXES, length=3),
    "remat of scan": nn.remat(nn.scan(Body, **AXES, length=3)),
    "scan of remat": nn.scan(nn.remat(Body), **AXES, length=3),
    "scan of jit": nn.scan(nn.jit(Body), **AXES, length=3),
}


class Lifted(nn.Module):
    """A lifted class beside a norm and below another module."""

    kind: str

    @nn.compact
    def __call__(self, x_BxD: jax.Array) -> jax.Array:
        scanned = "scan" in self.kind
        given = (x_BxD, None) if scanned else (x_BxD,)
        found = LIFTED[self.kind](name="lifted")(*given)
        return nn.LayerNorm(name="last")(found[0] if scanned else found)


class Everywhere(nn.Module):
    """What `setup` may hold: lists, dicts, parameters, modules that are read only."""

    def setup(self) -> None:
        self.layers = [nn.Dense(2), [nn.LayerNorm()]]
        self.table = {"a": nn.Dense(2)}
        self.embed = nn.Embed(3, 2)
        self.seq = nn.Sequential([nn.Dense(2), nn.relu, nn.LayerNorm()])
        self.wn = nn.WeightNorm(nn.Dense(2))
        self.batch = nn.BatchNorm()
        names = nn.with_partitioning(nn.initializers.ones, ("model",))
        self.gain = self.param("gain", names, (2,))
        self.pair = self.param("pair", lambda key: {"a": [jnp.ones(2)]})
        self.drop = nn.Dropout(0.5)

    def __call__(self, x_BxD: jax.Array, train: bool = False) -> jax.Array:
        x_BxD = self.table["a"](self.layers[1][0](self.layers[0](x_BxD)))
        x_BxD = self.wn(self.seq(x_BxD + self.embed.embedding[0])) * self.gain
        x_BxD = self.batch(x_BxD, use_running_average=not train)
        return self.drop(x_BxD, deterministic=not train)


LEAVES = ("bias", "scale")
X = jax.ShapeDtypeStruct((3, 2), "float32")


@pytest.mark.parametrize("kind", LIFTED)
def test_lifted_linen_modules_own_what_they_hold(kind: str) -> None:
    inner = "lifted/inner" if "scan" in kind else "lifted"
    norms = {f"{inner}/{n}/{x}" for n in ("LayerNorm_0", "own") for x in LEAVES}
    for _ in range(2):  # the second time from the caches
        for kind_of_norm in (nn.LayerNorm, "LayerNorm"):
            mask = wd.mask_of(Lifted(kind), wd.owned_by(kind_of_norm), X)
            assert chosen(mask) == norms | {"last/bias", "last/scale"}
    mask = wd.mask_of(Lifted(kind), wd.owned_by(LinenScaled), X)
    assert chosen(mask) == {f"{inner}/own/bias", f"{inner}/own/scale"}
    for owner in (Inner, "Inner"):
        mask = wd.mask_of(Lifted(kind), wd.owned_by(owner), X)
        assert chosen(mask) == {f"{inner}/gain"}


@pytest.mark.parametrize("lift", [nn.remat, nn.jit], ids=["remat", "jit"])
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_a_root_that_is_lifted_is_known_whatever_ran_before(
    lift: Callable[[Any], Any], used: bool
) -> None:
    lifted = lift(Inner)
    if used:
        jax.eval_shape(lambda x: lifted().init(jax.random.key(0), x), X)
    mask = wd.mask_of(lifted(), wd.owned_by(nn.Dense), X)
    assert chosen(mask) == {"Dense_0/bias", "Dense_0/kernel"}
    lifted_norm = lift(nn.LayerNorm)()
    mask = wd.mask_of(lifted_norm, wd.owned_by(nn.LayerNorm), X)
    assert mask == {"bias": True, "scale": True}


def test_linen_modules_own_what_they_hold_wherever_they_are_made() -> None:
    def owned(*kinds: type | str) -> set[str]:
        return chosen(wd.mask_of(Everywhere(), wd.owned_by(*kinds), X))

    norms = {f"{path}/{x}" for path in ("layers_1_0", "seq/layers_2") for x in LEAVES}
    assert owned(nn.LayerNorm) == owned("LayerNorm") == norms
    held = ("layers_0", "table_a", "seq/layers_0", "wn/layer_instance")
    linears = {f"{path}/{x}" for path in held for x in ("bias", "kernel")}
    assert owned(nn.Dense) == linears
    assert owned(nn.WeightNorm) == {"wn/layer_instance/kernel/scale"}
    assert owned(nn.Embed) == {"embed/embedding"}
    assert owned(nn.BatchNorm) == {"batch/bias", "batch/scale"}
    assert owned(Everywhere) == {"gain", "pair/a/0"}
    assert owned(nn.Sequential, nn.Dropout) == set()


class Sharing(nn.Module):
    """A module that puts its own parameter among those of another one."""

    base: nn.Module

    def setup(self) -> None:
        nn.share_scope(self, self.base)
        self.gain = self.param("gain", nn.initializers.ones, (2,))

    def __call__(self, x_BxD: jax.Array) -> jax.Array:
        return self.base(x_BxD) * self.gain


def test_of_linen_modules_that_share_a_scope_the_outer_one_owns() -> None:
    model = nn.Sequential([nn.LayerNorm(), Sharing(nn.Dense(2))])
    mask = wd.mask_of(model, wd.owned_by(Sharing), X)
    assert chosen(mask) == {f"layers_1/{x}" for x in ("bias", "gain", "kernel")}


def test_what_a_function_declares_in_the_scope_is_owned_by_the_root() -> None:
    def method(module: nn.Module, x_BxD: jax.Array) -> Any:
        assert module.scope is not None
        return x_BxD * module.scope.param("gain", nn.initializers.ones, (2,))

    mask = wd.mask_of(nn.Dense(2), wd.owned_by(nn.Dense), X, method=method)
    assert mask == {"gain": True}


def test_fields_of_linen_boxes_are_metadata() -> None:
    def declared(*given: Any) -> set[str]:
        return chosen(wd.mask_of(Everywhere(), wd.declared(*given), X))

    assert declared("names", ("model",)) == {"gain"}
    assert declared("names", ("data",)) == set()
    assert declared("mesh", None) == {"gain"}
    with pytest.raises(ValueError, match="what they declare is names, mesh; write opt"):
        declared("value")


def test_the_mask_of_a_linen_module_has_the_structure_of_unboxed_parameters() -> None:
    for model in (Everywhere(), forms.LinenBlock(), forms.LinenBlock(boxed=True)):
        x = X if isinstance(model, Everywhere) else jnp.ones((1, 2, 6))
        mask = wd.mask_of(model, wd.standard, x)
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        params = jax.eval_shape(nn.unbox, variables["params"])
        assert jax.tree.structure(mask) == jax.tree.structure(params)
        assert mask == wd.standard(params)
        assert type(mask) is dict


def test_example_inputs_may_be_arrays_or_shapes_and_other_values_are_passed_on() -> (
    None
):
    rule = wd.owned_by(nn.BatchNorm)
    for x in (X, jnp.ones((3, 2)), np.ones((3, 2), np.float32)):
        for given in ((x,), (x, True), (x, False)):
            assert len(chosen(wd.mask_of(Everywhere(), rule, *given))) == 2
        for train in (True, False):
            assert len(chosen(wd.mask_of(Everywhere(), rule, x, train=train))) == 2
    assert len(chosen(wd.mask_of(Everywhere(), rule, x_BxD=X, train=True))) == 2


def test_inputs_may_be_trees_and_init_is_told_the_method() -> None:
    class Pairs(nn.Module):
        @nn.compact
        def encode(self, pair: dict[str, Any], mode: str) -> jax.Array:
            assert mode == "fast" and pair["twice"] is True
            return nn.Dense(2)(pair["x"]) * (2 if pair["twice"] else 1)

    pair = {"x": X, "twice": True}
    mask = wd.mask_of(Pairs(), wd.named("kernel"), pair, mode="fast", method="encode")
    assert mask == {"Dense_0": {"bias": False, "kernel": True}}


def test_another_collection_may_be_asked_about() -> None:
    mask = wd.mask_of(
        Everywhere(), wd.owned_by(nn.BatchNorm), X, train=True, wrt="batch_stats"
    )
    assert mask == {"batch": {"mean": True, "var": True}}
    with pytest.raises(
        ValueError,
        match="^Everywhere makes no collection 'cache'; wrt is one of those that it "
        "makes: 'batch_stats', 'params'$",
    ):
        wd.mask_of(Everywhere(), wd.everything, X, wrt="cache")
    with pytest.raises(
        TypeError, match=r"^wrt of a Linen module is the name of a col.*'params'$"
    ):
        wd.mask_of(Everywhere(), wd.everything, X, wrt=nnx.Param)


@pytest.mark.parametrize(
    ("model", "inputs", "named", "said"),
    [
        (Everywhere(), (), {}, "missing 1 required positional argument: 'x_BxD'"),
        (nn.Embed(3, 2), (None,), {}, "'NoneType' object has no attribute 'dtype'"),
        (Everywhere(), (X,), {"training": True}, "unexpected keyword argument 'train"),
    ],
    ids=["missing", "None", "unknown"],
)
def test_inputs_that_init_refuses_are_an_error_that_asks_for_examples(
    model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], said: str
) -> None:
    with pytest.raises(
        TypeError,
        match=f"^{type(model).__name__} cannot be initialized with these inputs: "
        f".*{said}.*; pass example inputs as its init takes them: "
        r"mask_of\(model, rule, x\)$",
    ) as caught:
        wd.mask_of(model, wd.everything, *inputs, **named)
    assert said in str(caught.value.__cause__)


@pytest.mark.parametrize("kind", [ValueError, IndexError, TypeError, AttributeError])
def test_errors_of_wrong_inputs_keep_their_cause(kind: type[Exception]) -> None:
    class Broken(nn.Module):
        def __call__(self, x: Any) -> Any:
            raise kind("of my own")

    with pytest.raises(
        TypeError,
        match="^Broken cannot be initialized with these inputs: of my own; pass example"
        r" inputs as its init takes them: mask_of\(model, rule, x\)$",
    ) as caught:
        wd.mask_of(Broken(), wd.everything, X)
    assert type(caught.value.__cause__) is kind


def test_other_errors_of_a_linen_module_are_its_own() -> None:
    class Broken(nn.Module):
        def __call__(self, x: Any) -> Any:
            raise ZeroDivisionError("of my own")

    with pytest.raises(ZeroDivisionError, match="^of my own"):
        wd.mask_of(Broken(), wd.everything, X)


def test_inputs_of_too_low_a_rank_are_explained() -> None:
    for model, x in ((nn.Dense(2), jnp.ones(())), (forms.LinenBlock(), jnp.ones(6))):
        kind = type(model).__name__
        with pytest.raises(TypeError, match=f"^{kind} cannot be initialized with the"):
            wd.mask_of(model, wd.everything, x)


KEYS: dict[str, Callable[[], Any]] = {
    "new": lambda: jax.random.key(0),
    "old": lambda: jax.random.PRNGKey(0),
    "old, of NumPy": lambda: np.zeros(2, np.uint32),
    "new, abstract": lambda: jax.eval_shape(lambda: jax.random.key(0)),
    "old, abstract": lambda: jax.ShapeDtypeStruct((2,), "uint32"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_random_key_as_the_first_input_is_refused(kind: str) -> None:
    for inputs in ((KEYS[kind](), X), (KEYS[kind](),)):
        with pytest.raises(
            TypeError,
            match="^mask_of got a random key as the first input; it needs none, leave "
            r"it out: mask_of\(model, rule, x\)$",
        ):
            wd.mask_of(nn.Dense(2), wd.everything, *inputs)


def test_a_key_elsewhere_and_inputs_that_look_like_one_are_passed_on() -> None:
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x_BxD: jax.Array, key: jax.Array) -> jax.Array:
            return nn.Dense(2)(x_BxD + jax.random.normal(key, x_BxD.shape))

    wanted = {"Dense_0": {"bias": False, "kernel": True}}
    for make in KEYS.values():
        assert wd.mask_of(Noisy(), wd.named("kernel"), X, make()) == wanted
        assert wd.mask_of(Noisy(), wd.named("kernel"), X, key=make()) == wanted
    for dtype, shape in (("uint32", (3,)), ("uint32", (2, 2)), ("int32", (2,))):
        tokens = jax.ShapeDtypeStruct(shape, dtype)
        assert wd.mask_of(nn.Embed(3, 2), wd.everything, tokens) == {"embedding": True}


def test_a_module_as_the_first_input_is_passed_on() -> None:
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, inner: nn.Module, x_BxD: jax.Array) -> jax.Array:
            assert isinstance(inner, nn.Dense)
            return nn.Dense(inner.features)(x_BxD)

    for dtype in (None, jnp.bfloat16):
        mask = wd.mask_of(Outer(), wd.named("kernel"), nn.Dense(2, dtype=dtype), X)
        assert mask == {"Dense_0": {"bias": False, "kernel": True}}


def test_nothing_is_allocated_for_a_linen_module() -> None:
    big = nn.Sequential([nn.Embed(2**30, 2**10), nn.Dense(2**20), nn.LayerNorm()])
    tokens = jax.ShapeDtypeStruct((2**20, 2**10), "int32")
    mask = wd.mask_of(big, wd.owned_by(nn.LayerNorm), tokens)
    assert chosen(mask) == {"layers_2/bias", "layers_2/scale"}


def test_the_mask_of_a_linen_module_drives_optax() -> None:
    model, params = Inner(), ones_of(Inner())
    mask = wd.mask_of(model, ~wd.owned_by(nn.LayerNorm) & ~wd.named("bias"), X)
    for tx in (
        optax.adamw(1.0, weight_decay=1.0, mask=mask),
        wd.sgdw(1.0, wd.masked_decay(1.0, mask)),
    ):
        assert changed(tx, params) == {"Dense_0/kernel", "gain"} == chosen(mask)


def test_our_decays_take_the_mask_of_a_linen_module_for_boxed_parameters() -> None:
    model = forms.LinenBlock(boxed=True)
    x = jax.ShapeDtypeStruct((1, 2, 6), "float32")
    rule = ~wd.owned_by(nn.LayerNorm) & wd.named("kernel", "scale")
    mask = wd.mask_of(model, rule, x)
    boxed = forms.zeros(forms.linen_abstract(boxed=True))
    boxed = jax.tree.map(jnp.ones_like, boxed)
    assert isinstance(boxed["mlp"]["kernel"], nn.Partitioned)
    assert changed(wd.sgdw(1.0, wd.masked_decay(1.0, mask)), boxed) == chosen(mask)
    assert chosen(mask) == {path for path, answer in forms.WEIGHTS.items() if answer}


def test_labels_and_factors_of_a_linen_module_work_as_trees() -> None:
    model, params = Inner(), ones_of(Inner())
    rows = [(wd.owned_by(LinenScaled), "own"), (wd.owned_by(nn.LayerNorm), "norm")]
    labels = wd.mask_of(model, wd.first_match(*rows, default="rest"), X)
    groups: dict[Any, Any] = dict.fromkeys(("own", "rest"), optax.set_to_zero())
    groups["norm"] = optax.add_decayed_weights(1.0)
    norms = {"LayerNorm_0/bias", "LayerNorm_0/scale"}
    assert changed(optax.partition(groups, labels), params) == norms
    table = wd.first_match((wd.owned_by(nn.Dense, Inner), 0.0), default=0.5)
    decay = wd.masked_decay(1.0, wd.everything, multiplier=wd.mask_of(model, table, X))
    assert changed(decay, params) == norms | {"own/bias", "own/scale"}


def test_describe_shows_a_linen_mask_and_refuses_the_module() -> None:
    rule = ~wd.owned_by(nn.LayerNorm)
    shown = wd.describe(wd.mask_of(Inner(), rule, X), ones_of(Inner()))
    decaying = {row.path for row in shown.rows if row.decays}
    assert decaying == {"Dense_0/bias", "Dense_0/kernel", "gain"}
    with pytest.raises(
        TypeError,
        match="^describe found no arrays in the Inner, a Linen module; pass the tree "
        r"of .*write describe\(mask_of\(model, rule, x\), params\)$",
    ):
        wd.describe(rule, Inner())


def ones_of(model: nn.Module) -> Any:
    """Ones for the parameters of a Linen module."""
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), X)
    return jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), variables["params"])


def changed(tx: Any, params: Any) -> set[str]:
    """The leaves that one step with zero gradients moves."""
    updates = helpers.once(tx, jax.tree.map(jnp.zeros_like, params), params)
    moves = jax.tree.map(lambda u: bool(jnp.any(u != 0.0)), updates)
    return chosen(moves)


# ------------------------------------------------------------------------ Equinox


class EqxInner(eqx.Module):
    """A norm and an array of its own."""

    norm: eqx.nn.LayerNorm
    own: jax.Array


class Eqx(eqx.Module):
    """Every container that Equinox knows, and leaves that do not decay."""

    mlp: eqx.nn.MLP
    listed: list[Any]
    keyed: dict[str, Any]
    gain: jax.Array
    count: jax.Array
    shared: eqx.nn.Shared
    number: float = 0.5
    name: str = eqx.field(static=True, default="eqx")

    def __call__(self, x_D: jax.Array) -> jax.Array:
        return self.mlp(x_D)


def make_eqx(key: jax.Array) -> Eqx:
    layers = eqx.nn.Embedding(3, 2, key=key), eqx.nn.Linear(2, 3, key=key)
    return Eqx(
        mlp=eqx.nn.MLP(2, 2, 2, 1, key=key),
        listed=[eqx.nn.LayerNorm(2), (eqx.nn.Linear(2, 2, key=key), jnp.ones(2))],
        keyed={"a": EqxInner(eqx.nn.LayerNorm(2), jnp.ones(1)), "b": jnp.ones(2)},
        gain=jnp.ones(2),
        count=jnp.arange(3),
        shared=eqx.nn.Shared(layers, lambda x: x[1].weight, lambda x: x[0].weight),
    )


EQX_LEAVES = ("bias", "weight")


@functools.cache
def eqx_model() -> Eqx:
    return make_eqx(jax.random.key(0))


@functools.cache
def eqx_abstract() -> Any:
    return eqx.filter_eval_shape(make_eqx, jax.random.key(0))


@pytest.mark.parametrize("make", [eqx_model, eqx_abstract])
def test_a_leaf_is_owned_by_the_innermost_equinox_module(
    make: Callable[[], Any],
) -> None:
    def owned(*kinds: type | str) -> set[str]:
        return chosen(wd.mask_of(make(), wd.owned_by(*kinds)))

    norms = {f"{at}/{x}" for at in ("listed/0", "keyed/a/norm") for x in EQX_LEAVES}
    assert owned(eqx.nn.LayerNorm) == owned("LayerNorm") == norms
    linears = {f"mlp/layers/{n}/{x}" for n in (0, 1) for x in EQX_LEAVES}
    linears |= {f"listed/1/0/{x}" for x in EQX_LEAVES}
    assert owned(eqx.nn.Linear) == linears | {"shared/pytree/1/bias"}
    assert owned(eqx.nn.Embedding) == {"shared/pytree/0/weight"}
    assert owned(EqxInner) == {"keyed/a/own"}
    assert owned(Eqx) == {"gain", "keyed/b", "listed/1/1"}
    assert owned(eqx.nn.MLP, eqx.nn.Shared) == set()


def test_the_mask_of_an_equinox_module_fits_what_is_filtered() -> None:
    for keep in (None, eqx.is_inexact_array, eqx.is_array):
        mask = wd.mask_of(eqx_model(), wd.everything, wrt=keep)
        kept = eqx.filter(eqx_model(), keep or eqx.is_inexact_array)
        assert jax.tree.structure(mask) == jax.tree.structure(kept)
    assert wd.mask_of(eqx_model(), wd.everything).count is None
    assert wd.mask_of(eqx_model(), wd.everything, wrt=eqx.is_array).count is False
    for rule in (wd.standard, wd.named("bias"), wd.owned_by("Linear")):
        one, two = (wd.mask_of(make(), rule) for make in (eqx_model, eqx_abstract))
        assert forms.answers(one) == forms.answers(two)


def test_equinox_modules_declare_nothing() -> None:
    with pytest.raises(ValueError, match="what they declare is nothing; write opt"):
        wd.mask_of(eqx_model(), wd.declared("names"))


def test_stacked_equinox_layers_keep_their_owners() -> None:
    def make(key: jax.Array) -> EqxInner:
        return EqxInner(eqx.nn.LayerNorm(2), jax.random.normal(key, (2,)))

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 3))
    stacked = eqx.filter_eval_shape(eqx.filter_vmap(make), keys)
    mask = wd.mask_of(stacked, wd.owned_by(eqx.nn.LayerNorm))
    assert chosen(mask) == {"norm/bias", "norm/weight"}
    rule = wd.min_ndim(2, stacked=wd.everything) | wd.owned_by(EqxInner)
    assert chosen(wd.mask_of(stacked, rule)) == {"own"}


def test_the_mask_of_an_equinox_module_drives_our_decays_and_optax() -> None:
    norms = wd.owned_by(eqx.nn.LayerNorm)
    mask = wd.mask_of(eqx_model(), ~norms & ~wd.named("bias"))
    assert callable(mask)
    params = eqx.filter(eqx_model(), eqx.is_inexact_array)
    for tx in (
        wd.sgdw(1.0, wd.masked_decay(1.0, mask)),
        wd.cautious_weight_decay(1.0, mask),
        optax.add_decayed_weights(1.0, mask=lambda params: mask),
        optax.masked(optax.add_decayed_weights(1.0), lambda params: mask),
    ):
        assert changed(tx, params) == chosen(mask)
    assert {"gain", "mlp/layers/0/weight"} < chosen(mask)


def test_labels_of_an_equinox_module_drive_partition() -> None:
    table = wd.first_match((wd.owned_by(eqx.nn.LayerNorm), "norms"), default="rest")
    labels = wd.mask_of(eqx_model(), table)
    groups: dict[Any, Any] = {
        "norms": optax.add_decayed_weights(1.0),
        "rest": optax.set_to_zero(),
    }
    params = eqx.filter(eqx_model(), eqx.is_inexact_array)
    params = jax.tree.map(jnp.ones_like, params)
    moves = changed(optax.partition(groups, lambda params: labels), params)
    assert moves == chosen(wd.mask_of(eqx_model(), wd.owned_by(eqx.nn.LayerNorm)))


@pytest.mark.parametrize("make", [eqx_model, eqx_abstract])
def test_describe_reads_owners_of_equinox_modules(make: Callable[[], Any]) -> None:
    rule = ~wd.owned_by(eqx.nn.LayerNorm)
    shown = wd.describe(rule, make())
    rows = {row.path: (row.decays, row.because) for row in shown.rows}
    assert rows["listed/0/weight"] == (False, "owned by LayerNorm")
    assert rows["mlp/layers/0/weight"] == (True, "owned by Linear")
    assert "count" not in rows
    by_tree = wd.describe(wd.mask_of(make(), rule), make())
    decaying = {row.path for row in by_tree.rows if row.decays}
    assert decaying == {path for path, (decays, _) in rows.items() if decays}


@pytest.mark.parametrize(
    "wrt", ["params", True, nnx.Param], ids=["string", "bool", "type of NNX"]
)
def test_wrt_of_an_equinox_module_is_a_function(wrt: Any) -> None:
    with pytest.raises(
        TypeError, match="^wrt of an Equinox module is a function .*is_inexact_array$"
    ):
        wd.mask_of(eqx_model(), wd.everything, wrt=wrt)


# -------------------------------------------------------------- what mask_of takes


def mistyped(path: Any, value: Any) -> bool:
    """A filter of NNX that is written for other names."""
    return "kernels" in path


@pytest.mark.parametrize("rule", [wd.everything, wd.named("kernel")], ids=helpers.label)
@pytest.mark.parametrize(
    "wrt",
    [nnx.LoRAParam, "Params", nnx.PathContains("kernels"), nnx.Nothing(), mistyped],
    ids=["type", "string", "path", "Nothing", "function"],
)
def test_wrt_that_selects_nothing_of_an_nnx_module_is_an_error(
    rule: wd.Rule, wrt: Any
) -> None:
    with pytest.raises(ValueError) as caught:
        wd.mask_of(plain(), rule, wrt=wrt)
    assert str(caught.value) == (
        f"wrt={wrt!r} selects no parameters of Plain; write the filter that the "
        "optimizer is given"
    )


def test_wrt_that_selects_nothing_of_an_equinox_module_is_an_error() -> None:
    with pytest.raises(
        ValueError,
        match="^wrt=<function .*> selects no parameters of Eqx; write the filter that "
        "the optimizer is given$",
    ):
        wd.mask_of(eqx_model(), wd.everything, wrt=lambda leaf: False)


@pytest.mark.parametrize(
    ("make", "kind"), [(plain, "Plain"), (eqx_model, "Eqx")], ids=["NNX", "Equinox"]
)
@pytest.mark.parametrize(
    ("inputs", "named"),
    [((X,), {}), ((), {"train": False})],
    ids=["one input", "a named input"],
)
def test_modules_that_hold_their_parameters_need_no_inputs(
    make: Callable[[], Any], kind: str, inputs: Any, named: Any
) -> None:
    with pytest.raises(
        TypeError,
        match=f"^mask_of got example inputs with {kind}, which holds its parameters "
        r"and needs none, as only Linen modules do; write mask_of\(model, rule\)$",
    ):
        wd.mask_of(make(), wd.standard, *inputs, **named)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"kernel": jnp.ones(2)}, "dict"),
        (nnx.state(forms.nnx_abstract(), nnx.Param), "State"),
        (None, "NoneType"),
        (nnx.Linear, "the class Linear"),
        (eqx.nn.Linear, "the class Linear"),
        (nn.Dense, "the class Dense"),
        (dict, "the class dict"),
    ],
    ids=[
        "dict",
        "State",
        "None",
        "NNX class",
        "Equinox class",
        "Linen class",
        "dict class",
    ],
)
def test_mask_of_takes_a_module(given: Any, kind: str) -> None:
    for inputs in ((), (X,)):
        with pytest.raises(
            TypeError,
            match=f"^mask_of takes an NNX, Linen or Equinox module, got {kind}; call "
            r"the rule itself with a tree of parameters: rule\(params\)$",
        ):
            wd.mask_of(given, wd.standard, *inputs)


def test_equinox_is_never_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "equinox")
    assert chosen(wd.mask_of(plain(), wd.contains("norm")))
    assert wd.describe(wd.standard, {"a": {"b": jnp.ones(2)}}).rows
    with pytest.raises(TypeError, match="^mask_of takes an NNX, Linen or Equinox mod"):
        wd.mask_of(eqx_model(), wd.standard)
    assert "equinox" not in sys.modules
