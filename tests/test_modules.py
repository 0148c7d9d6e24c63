# SPDX-License-Identifier: Apache-2.0
"""Masks by the types and the metadata of modules, made once from the model."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import forms
import helpers
import jax
import jax.numpy as jnp
import optax
import pytest
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


def test_a_leaf_knows_its_owner_by_name_only() -> None:
    leaf = wd.Leaf(("a", "weight"), (2,), "float32", owner="LayerNorm")
    assert wd.owned_by("LayerNorm").matches(leaf)
    assert wd.owned_by(nnx.LayerNorm, "RMSNorm").matches(leaf)
    assert not wd.owned_by("RMSNorm", nnx.Linear).matches(leaf)
    assert wd.owned_by("LayerNorm").reason(leaf) == "owned by LayerNorm"


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


def test_the_reasons_say_type_and_metadata() -> None:
    kernel = wd.Leaf(("a",), (2,), "float32", nnx.Linear, {"weight_decay": False})
    assert wd.owned_by(nnx.LayerNorm).reason(kernel) == "owned by Linear"
    assert wd.declared("weight_decay").reason(kernel) == "declares weight_decay=False"
    assert wd.declared("group").reason(kernel) == "declares no group"


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


def test_a_name_that_nnx_does_not_keep_matches_nothing() -> None:
    module = nnx.eval_shape(lambda: Shared(nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"^contains\('second'\) matches no leaf; the"):
        wd.mask_of(module, wd.contains("second"))


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


@pytest.mark.parametrize(
    "tree",
    [
        forms.linen_abstract(),
        nnx.state(forms.nnx_abstract(), nnx.Param),
        nnx.as_pure(nnx.state(forms.nnx_abstract(), nnx.Param)),
    ],
    ids=["linen", "State of Param", "pure State"],
)
@pytest.mark.parametrize(
    ("rule", "asks_for"),
    [
        (wd.owned_by(nnx.LayerNorm), "module that holds"),
        (~wd.owned_by("LayerNorm") & wd.standard, "module that holds"),
        (wd.declared("weight_decay", False), "metadata of"),
        (wd.first_match((wd.owned_by("A"), 0.0), default=1.0), "module that holds"),
    ],
    ids=helpers.label,
)
def test_a_state_has_no_owners_and_the_error_names_mask_of(
    tree: Any, rule: Any, asks_for: str
) -> None:
    with pytest.raises(
        ValueError,
        match=rf"\) asks for the {asks_for} 'attn/key/bias', which is known only from "
        r"the model; make the mask with mask_of\(model, rule\)$",
    ):
        rule(tree)


@pytest.mark.parametrize("rule", ["kernel", None, lambda tree: tree, {"a": True}])
def test_mask_of_takes_a_rule_or_table(rule: Any) -> None:
    with pytest.raises(TypeError, match="^mask_of takes a rule such as `standard`, go"):
        wd.mask_of(abstract(), rule)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"kernel": jnp.ones(2)}, "dict"),
        (nnx.state(forms.nnx_abstract(), nnx.Param), "State"),
        (None, "NoneType"),
        (forms.LinenBlock(), "LinenBlock"),
        (nnx.Linear, "ModuleMeta"),
    ],
    ids=["dict", "State", "None", "linen", "class"],
)
def test_mask_of_takes_a_module(given: Any, kind: str) -> None:
    with pytest.raises(
        TypeError,
        match=f"^mask_of takes an NNX module, got {kind}; call the rule itself with a "
        r"tree of parameters: rule\(params\)$",
    ):
        wd.mask_of(given, wd.standard)


def test_mask_of_finds_names_that_match_nothing_and_rows_that_lack() -> None:
    with pytest.raises(ValueError, match=r"^named\('kernels'\) matches no leaf; the n"):
        wd.mask_of(abstract(), wd.standard | wd.named("kernels"))
    with pytest.raises(ValueError, match="^no row of the table matches "):
        wd.mask_of(abstract(), wd.first_match((wd.owned_by(nnx.LayerNorm), 0.0)))


def test_owned_by_takes_types_or_names() -> None:
    with pytest.raises(
        ValueError, match=r"^owned_by\(\) has no type; write owned_by\("
    ):
        wd.owned_by()
    kinds: list[Any] = [nnx.LayerNorm(2, rngs=nnx.Rngs(0)), None, 3, (nnx.Linear,)]
    for kind in kinds:
        with pytest.raises(TypeError, match="^owned_by takes module types or their na"):
            wd.owned_by(nnx.Linear, kind)


@pytest.mark.parametrize("key", [None, 3, nnx.Param], ids=helpers.label)
def test_declared_takes_the_name_of_an_entry(key: Any) -> None:
    with pytest.raises(
        TypeError, match="^declared takes the name of a metadata entry,"
    ):
        wd.declared(key)


def test_a_model_built_eagerly_or_abstractly_gives_the_same_mask() -> None:
    rule = wd.standard & ~wd.declared("weight_decay", False)
    assert wd.mask_of(model(), rule) == wd.mask_of(abstract(), rule)


def test_a_variable_that_holds_several_arrays_has_one_owner() -> None:
    class Pair(nnx.Module):
        def __init__(self) -> None:
            self.pair = nnx.Param({"a": jnp.ones(2), "b": jnp.ones(2)}, group=1)

    mask = wd.mask_of(Pair(), wd.owned_by(Pair) & wd.declared("group", 1))
    assert forms.answers(mask) == {"pair/a": True, "pair/b": True}
