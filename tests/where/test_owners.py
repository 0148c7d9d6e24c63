# SPDX-License-Identifier: Apache-2.0
"""Rules about owners and metadata, asked about leaves that know them or do not."""

from typing import Any

import equinox as eqx
import forms
import helpers
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import optax_wd as wd


def test_a_leaf_knows_its_owner_by_name_only() -> None:
    leaf = wd.Leaf(("a", "weight"), (2,), "float32", owner="LayerNorm")
    assert wd.owned_by("LayerNorm").matches(leaf)
    assert wd.owned_by(nnx.LayerNorm, "RMSNorm").matches(leaf)
    assert not wd.owned_by("RMSNorm", nnx.Linear).matches(leaf)
    assert wd.owned_by("LayerNorm").reason(leaf) == "owned by LayerNorm"


def test_the_reasons_say_type_and_metadata() -> None:
    kernel = wd.Leaf(("a",), (2,), "float32", nnx.Linear, {"weight_decay": False})
    assert wd.owned_by(nnx.LayerNorm).reason(kernel) == "owned by Linear"
    assert wd.declared("weight_decay").reason(kernel) == "declares weight_decay=False"
    assert wd.declared("group").reason(kernel) == "declares no group"


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


def leaf(owner: type | str | None = None, **metadata: Any) -> wd.Leaf:
    return wd.Leaf(("a", "weight"), (2,), "float32", owner, metadata)


def test_a_type_owns_for_its_bases_and_under_their_names() -> None:
    class Scaled(nn.LayerNorm):
        pass

    for kind in (Scaled, nn.LayerNorm, nn.Module, "Scaled", "LayerNorm", "Module"):
        assert wd.owned_by(kind).matches(leaf(Scaled)), kind
    for kind in (nn.RMSNorm, nnx.LayerNorm, "RMSNorm", "Norm", "layernorm"):
        assert not wd.owned_by(kind).matches(leaf(Scaled)), kind
    assert not wd.owned_by(Scaled).matches(leaf(nn.LayerNorm))


def test_a_value_that_is_declared_has_to_be_equal() -> None:
    rule = wd.declared("names", ("embed", None))
    assert rule.matches(leaf(names=("embed", None)))
    assert not rule.matches(leaf(names=("embed", "mlp")))
    assert not rule.matches(leaf(mesh=("embed", None)))
    assert wd.declared("weight_decay").matches(leaf(weight_decay=True))
    assert not wd.declared("weight_decay").matches(leaf(weight_decay=False))


def test_rules_of_owners_print_as_they_are_written() -> None:
    rule = wd.owned_by(nn.LayerNorm, "RMSNorm") & ~wd.declared("weight_decay", False)
    said = "owned_by(LayerNorm, 'RMSNorm') & ~declared('weight_decay', False)"
    assert repr(rule) == said
    assert wd.owned_by(nn.LayerNorm) == wd.owned_by(nn.LayerNorm) != wd.owned_by("A")
    assert len({rule, wd.owned_by("A"), wd.owned_by("A")}) == 2


def test_what_matches_nothing_names_what_there_is() -> None:
    module = nnx.eval_shape(lambda: nnx.LayerNorm(2, rngs=nnx.Rngs(0)))
    with pytest.raises(
        ValueError,
        match=r"^owned_by\('LayrNorm'\) matches no leaf; owners are LayerNorm; write "
        r"optional\(\.\.\.\) if that is meant$",
    ):
        wd.mask_of(module, wd.owned_by("LayrNorm"))
    with pytest.raises(
        ValueError,
        match="^no Variable declares 'group'; what they declare is .*; write optional"
        r"\(\.\.\.\) if that is meant$",
    ):
        wd.mask_of(module, wd.declared("group"))
    assert not any(jax.tree.leaves(wd.mask_of(module, wd.optional(wd.declared("g")))))


def test_where_there_is_no_metadata_at_all_nothing_is_declared() -> None:
    params = jax.ShapeDtypeStruct((1, 2), "float32")
    with pytest.raises(
        ValueError, match="what they declare is nothing; write optional"
    ):
        wd.mask_of(nn.Dense(2), wd.declared("names"), params)


class EqxNorm(eqx.Module):
    """A norm of Equinox, abstract, in a module."""

    norm: Any
    gain: Any


def eqx_norm() -> Any:
    return eqx.filter_eval_shape(lambda: EqxNorm(eqx.nn.LayerNorm(2), jnp.ones(2)))


def nnx_norm() -> Any:
    return nnx.eval_shape(lambda: nnx.LayerNorm(2, rngs=nnx.Rngs(0)))


X = jax.ShapeDtypeStruct((1, 2), "float32")
# Models with a norm, and their inputs.
NORMS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "linen": (nn.LayerNorm(), (X,)),
    "nnx": (nnx_norm(), ()),
    "equinox": (eqx_norm(), ()),
}
TYPES: dict[str, Any] = {
    "linen": nn.LayerNorm,
    "nnx": nnx.LayerNorm,
    "equinox": eqx.nn.LayerNorm,
}
# In which module of its framework a type is made is no stable API.
NAMES = {where: f"{kind.__module__}.LayerNorm" for where, kind in TYPES.items()}
PAIRS = [(asked, held) for asked in TYPES for held in NORMS]


@pytest.mark.parametrize(
    ("asked", "held"), [pair for pair in PAIRS if len({*pair}) > 1]
)
def test_a_type_of_another_framework_is_refused_by_both_names(
    asked: str, held: str
) -> None:
    model, inputs = NORMS[held]
    for rule in (
        wd.owned_by(TYPES[asked]),
        ~wd.owned_by(TYPES[asked]),
        wd.standard & ~wd.owned_by("LayerNorm", nnx.Linear, TYPES[asked]),
    ):
        with pytest.raises(ValueError) as caught:
            wd.mask_of(model, rule, *inputs)
        assert str(caught.value) == (
            f"owned_by(LayerNorm) matches no leaf: it is {NAMES[asked]}, where the "
            f"owners are {NAMES[held]}; write that type"
        )
    mask = wd.mask_of(model, wd.optional(wd.owned_by(TYPES[asked])), *inputs)
    assert not any(jax.tree.leaves(mask))


def test_full_names_tell_the_frameworks_apart() -> None:
    starts = {"linen": "flax.linen.", "nnx": "flax.nnx.", "equinox": "equinox."}
    assert all(name.startswith(starts[where]) for where, name in NAMES.items())


@pytest.mark.parametrize("held", ["nnx", "equinox"])
def test_describe_warns_of_a_type_of_another_framework(held: str) -> None:
    warned = wd.describe(~wd.owned_by(nn.LayerNorm), NORMS[held][0]).warnings
    said = (
        f"owned_by(LayerNorm) matches no leaf: it is {NAMES['linen']}, where the "
        f"owners are {NAMES[held]}; write that type"
    )
    assert said in warned
    fine = wd.describe(~wd.owned_by(TYPES[held]), NORMS[held][0]).warnings
    assert not any("owned_by" in text for text in fine)


@pytest.mark.parametrize("held", NORMS)
def test_a_type_may_own_nothing_where_no_type_has_its_name(held: str) -> None:
    model, inputs = NORMS[held]
    others: list[Any] = [nn.RMSNorm, nnx.Linear, eqx.nn.Conv2d, int]
    for kinds in (*([kind] for kind in others), others):
        mask = wd.mask_of(model, wd.owned_by(*kinds), *inputs)
        assert not any(jax.tree.leaves(mask))
    mine = wd.mask_of(model, wd.owned_by(TYPES[held]), *inputs)
    assert any(jax.tree.leaves(mine))


def test_a_subclass_of_the_same_name_is_no_namesake() -> None:
    base = nnx.LayerNorm

    class LayerNorm(base):
        pass

    model = nnx.eval_shape(lambda: LayerNorm(2, rngs=nnx.Rngs(0)))
    assert all(jax.tree.leaves(wd.mask_of(model, wd.owned_by(base))))
    with pytest.raises(
        ValueError, match=r"it is test_owners\..*LayerNorm, where the o"
    ):
        wd.mask_of(nnx_norm(), wd.owned_by(LayerNorm))
