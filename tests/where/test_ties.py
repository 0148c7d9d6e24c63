# SPDX-License-Identifier: Apache-2.0
"""Tied parameters: every name counts where the module is at hand."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import optax_wd as wd


class Out(nnx.Module):
    """A head whose kernel is the table of an embedding."""

    def __init__(self, table: nnx.Param) -> None:
        self.kernel = table


class Tied(nnx.Module):
    """An embedding and a head, of which the alphabet decides who comes first."""

    def __init__(self, first: str, last: str) -> None:
        embed = nnx.Embed(16, 8, rngs=nnx.Rngs(0))
        setattr(self, first, embed)
        self.mlp = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
        setattr(self, last, Out(embed.embedding))


ORDERS = [("embed", "out_proj"), ("token_embed", "out_proj"), ("embed", "decoder")]


@pytest.mark.parametrize(("first", "last"), ORDERS)
def test_one_name_that_exempts_a_tied_array_wins(first: str, last: str) -> None:
    model = Tied(first, last)
    mask = wd.mask_of(model, wd.standard)
    rows = {row.path: row for row in wd.describe(wd.standard, model).rows}
    decayed = {path for path, row in rows.items() if row.decays}
    assert decayed == {"mlp/kernel"}
    tied = next(path for path in rows if not path.startswith("mlp"))
    matrices = {row.path: row.fold for row in wd.describe_matrices(model).rows}
    assert matrices[tied] == ""
    # The mask is what it says: without a gradient the table stays, and the layer goes.
    layer, table = model.mlp.kernel[...], getattr(model, first).embedding[...]
    tx = wd.adamw(0.1, wd.masked_decay(0.5, mask))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    zeros = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
    optimizer.update(model, zeros)
    assert jnp.array_equal(getattr(model, first).embedding[...], table)
    assert not jnp.array_equal(model.mlp.kernel[...], layer)


def test_where_the_path_alone_says_otherwise_both_instruments_say_what_to_write() -> (
    None
):
    model = Tied("token_embed", "out_proj")
    said = " ".join(wd.describe(wd.standard, model).warnings)
    assert "out_proj/kernel decays; pass mask=mask_of(model, standard)" in said
    assert "out_proj/kernel is shared, and is also token_embed/embedding" in said
    (told,) = wd.describe_matrices(model).warnings
    assert told.endswith(
        "write matrices=matrices & ~path('out_proj/kernel'), and for the decay "
        "mask=mask_of(model, standard)"
    )
    # What the advice is for: an optimizer that sees the state decays the table.
    tx = optax.adamw(0.1, weight_decay=0.1, mask=wd.standard)
    kinds = {row.path: row.kind for row in wd.audit(tx, model).rows}
    assert kinds["out_proj/kernel"] == "decoupled"


def test_without_ties_nothing_is_said() -> None:
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    assert wd.describe(wd.standard, model).warnings == ()
    assert wd.describe_matrices(model).warnings == ()


def test_a_rule_about_names_counts_under_every_name() -> None:
    model = Tied("embed", "out_proj")
    tree: Any = wd.mask_of(model, ~wd.contains("out_proj"))
    assert tree["embed"]["embedding"] is False
    rows = {row.path: row for row in wd.describe(~wd.contains("out_proj"), model).rows}
    assert rows["embed/embedding"].because.endswith("shared as out_proj/kernel")


def test_types_of_modules_that_speak_against_a_path_are_told() -> None:
    class Mystery(nnx.Module):
        def __init__(self) -> None:
            self.lookup = nnx.Embed(7, 4, rngs=nnx.Rngs(0))
            self.lookup.weight = nnx.Param(jnp.ones((7, 4)))  # pyright: ignore

    said = " ".join(wd.describe(wd.standard, Mystery()).warnings)
    assert "lookup/weight decays; pass mask=mask_of(model, standard)" in said


def test_a_weight_norm_that_undoes_decay_is_told() -> None:
    model = nnx.WeightNorm(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    said = " ".join(wd.describe(wd.standard, model).warnings)
    assert "the model is an nnx.WeightNorm, which writes the normalised kernel" in said
