# SPDX-License-Identifier: Apache-2.0
"""`describe` says which leaves decay, why, and what looks unintended."""

import json
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_wd as wd


def leaf(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def block() -> dict[str, Any]:
    """A layer in which ranks alone mislead."""
    return {
        "attn": {"bias": leaf(2, 2), "kernel": leaf(4, 4)},
        "norm": {"scale": leaf(4)},
    }


def model(layers: int = 12) -> dict[str, Any]:
    blocks = {f"block_{n}": block() for n in range(layers)}
    return {**blocks, "head": {"kernel": leaf(4, 10)}, "step": leaf(dtype=jnp.int32)}


def lines(text: str) -> list[str]:
    return text.split("\n")


# ------------------------------------------------------------------- rows and totals


def test_a_row_says_all_about_one_leaf_in_the_order_of_the_tree() -> None:
    rows = wd.describe(wd.standard, model(1)).rows
    assert [tuple(row) for row in rows] == [
        (
            "block_0/attn/bias",
            (2, 2),
            "float32",
            4,
            False,
            None,
            None,
            "standard: named 'bias'",
            False,
        ),
        (
            "block_0/attn/kernel",
            (4, 4),
            "float32",
            16,
            True,
            1.0,
            None,
            "standard: named 'kernel'",
            False,
        ),
        (
            "block_0/norm/scale",
            (4,),
            "float32",
            4,
            False,
            None,
            None,
            "standard: named 'scale'",
            False,
        ),
        (
            "head/kernel",
            (4, 10),
            "float32",
            40,
            True,
            1.0,
            None,
            "standard: named 'kernel'",
            False,
        ),
        ("step", (), "int32", 1, False, None, None, "int32 is not inexact", False),
    ]
    fields = list(rows[0]._fields)
    assert (
        fields
        == "path shape dtype size decays multiplier shrink because unsure".split()
    )


def test_the_clause_that_decides_is_named() -> None:
    rule = wd.min_ndim(2) & ~wd.named("bias", "missing") | wd.path("**/scale")
    because = {row.path: row.because for row in wd.describe(rule, model(1)).rows}
    assert because["block_0/attn/bias"] == "named('bias'); not path('**/scale')"
    assert because["block_0/attn/kernel"] == "ndim 2; not named('bias', 'missing')"
    assert because["block_0/norm/scale"] == "path('**/scale')"
    table = wd.first_match((wd.contains("norm"), False), default=True)
    because = {row.path: row.because for row in wd.describe(table, model(1)).rows}
    assert because["block_0/norm/scale"] == "contains('norm')"
    assert because["head/kernel"] == "default"


def test_the_summary_is_two_lines_of_totals() -> None:
    assert lines(wd.describe(wd.standard, model()).summary()) == [
        "decays          13 of 38 tensors  232 of 329 parameters",
        "does not decay  25 of 38 tensors   97 of 329 parameters",
    ]


def test_the_text_is_a_plain_table_with_totals_and_warnings() -> None:
    description = wd.describe(wd.standard | wd.named("scale"), model(3))
    text = str(description)
    assert lines(text) == [
        "mask: standard | named('scale')",
        "leaf                      shape    dtype    parameters  decays  because",
        "block_{0..2}/attn/bias    (2, 2)   float32          12  no      "
        "standard: named 'bias'; not named('scale')",
        "block_{0..2}/attn/kernel  (4, 4)   float32          48  yes     "
        "standard: named 'kernel'",
        "block_{0..2}/norm/scale   (4,)     float32          12  yes     "
        "named('scale')",
        "head/kernel               (4, 10)  float32          40  yes     "
        "standard: named 'kernel'",
        "step                      ()       int32             1  no      "
        "int32 is not inexact",
        "decays          7 of 11 tensors  100 of 113 parameters",
        "does not decay  4 of 11 tensors   13 of 113 parameters",
        "warning: biases, scales or the like decay: block_0/norm/scale, "
        "block_1/norm/scale, block_2/norm/scale",
    ]
    assert text.isascii() and not text.endswith("\n")
    assert all(line == line.rstrip() for line in lines(text))


def test_numbers_are_grouped_by_thousands() -> None:
    description = wd.describe(wd.everything, {"w": leaf(1000, 2000), "b": leaf(1234)})
    assert "  2,000,000  yes" in description.table()
    assert "2,001,234 of 2,001,234 parameters" in description.summary()


def test_what_is_no_array_has_no_row() -> None:
    tree = {"w": leaf(2, 2), "none": None, "masked": optax.MaskedNode(), "text": "x"}
    assert [row.path for row in wd.describe(wd.standard, tree).rows] == ["w"]


def test_a_description_is_a_value() -> None:
    first, second = (wd.describe(wd.standard, model()) for _ in range(2))
    assert first == second and hash(first) == hash(second)
    assert isinstance(first, wd.Description)
    assert first != wd.describe(wd.everything, model())


# ----------------------------------------------------------------------------- folding


def test_layers_fold_into_one_line_with_the_parameters_of_all() -> None:
    table = wd.describe(wd.standard, model()).table()
    assert len(lines(table)) == 1 + 5
    assert "block_{0..11}/attn/kernel  (4, 4)   float32         192  yes" in table


def test_unfolded_tables_have_a_line_for_each_array() -> None:
    description = wd.describe(wd.standard, model())
    unfolded = lines(description.table(fold=False))
    assert len(unfolded) == 1 + 3 * 12 + 2
    assert [line.split()[0] for line in unfolded[1:]] == [
        row.path for row in description.rows
    ]
    assert "{" not in description.table(fold=False)


def test_several_numbers_fold_where_they_form_a_grid_only() -> None:
    grid = {f"stage{s}": {f"block{b}": {"w": leaf(2, 2)}} for s in "01" for b in "0"}
    for stage in grid.values():
        stage.update({f"block{b}": {"w": leaf(2, 2)} for b in range(3)})
    table = wd.describe(wd.standard, grid).table()
    assert [line.split()[0] for line in lines(table)[1:]] == [
        "stage{0,1}/block{0..2}/w"
    ]

    del grid["stage0"]["block2"]
    table = wd.describe(wd.standard, grid).table()
    assert [line.split()[0] for line in lines(table)[1:]] == [
        "stage0/block{0,1}/w",
        "stage1/block{0..2}/w",
    ]


def test_layers_that_differ_do_not_fold_together() -> None:
    params = model(4)
    params["block_1"]["attn"]["kernel"] = leaf(4, 8)
    params["block_2"]["attn"]["kernel"] = leaf(4, 4, dtype=jnp.bfloat16)
    names = [
        line.split()[0] for line in lines(wd.describe(wd.standard, params).table())
    ]
    assert [name for name in names if "kernel" in name] == [
        "block_{0,3}/attn/kernel",
        "block_1/attn/kernel",
        "block_2/attn/kernel",
        "head/kernel",
    ]
    factors = wd.first_match((wd.contains("block_1"), 2.0), default=1.0)
    table = wd.describe(wd.standard, model(4), multiplier=factors).table()
    assert "block_{0,2,3}/attn/kernel" in table and "block_1/attn/kernel" in table


def test_leaves_of_one_name_each_have_a_line() -> None:
    params = {"a/w": leaf(2, 2), "a": {"w": leaf(2, 2)}}
    description = wd.describe(wd.standard, params)
    assert [row.path for row in description.rows] == ["a/w", "a/w"]
    assert "2 of 2 tensors" in str(description)
    assert sum("a/w" in line for line in lines(description.table(fold=False))) == 2


def test_control_characters_are_escaped_wherever_they_are_printed() -> None:
    params = {"a\x1b[31m": {"bias\n": leaf(2, 2), "scale": leaf(2), "\u202e": leaf(3)}}
    rule = wd.contains("a\x1b[31m") & ~wd.optional(wd.named("x\ry"))
    description = wd.describe(rule, params)
    text = str(description)
    assert r"a\x1b[31m/bias\n" in text and r"\u202e" in text
    assert all(line.isprintable() for line in lines(text))
    assert len(lines(description.table())) == 1 + 3
    assert description.rows[0].path == "a\x1b[31m/bias\n"


def test_control_characters_in_reasons_break_no_line() -> None:
    rule = wd.satisfies(lambda leaf: True, "two\nlines, \x1b[31mred")
    table = wd.describe(rule, {"w": leaf(2, 2)}).table()
    assert len(lines(table)) == 2
    assert all(line.isprintable() for line in lines(table))


# ------------------------------------------------------------------------------ to_dict


def test_the_dict_is_plain_data_with_everything_in_it() -> None:
    factors = wd.first_match((wd.contains("head"), float(np.float32(0.5))), default=1.0)
    description = wd.describe(wd.everything, model(2), multiplier=factors)
    data = json.loads(json.dumps(description.to_dict()))
    assert set(data) == {
        *(
            "mask",
            "amount",
            "rows",
            "decays",
            "does_not_decay",
            "unsure",
            "warnings",
            "notes",
        )
    }
    assert data["amount"] == ""
    assert data["mask"] == "everything"
    assert data["decays"] == {"tensors": 7, "parameters": 88}
    assert data["does_not_decay"] == {"tensors": 1, "parameters": 1}
    assert data["warnings"] == list(description.warnings) != []
    assert data["rows"][-2] == {
        "path": "head/kernel",
        "shape": [4, 10],
        "dtype": "float32",
        "size": 40,
        "decays": True,
        "multiplier": 0.5,
        "shrink": None,
        "because": "everything",
        "unsure": False,
    }


# -------------------------------------------------------------------- forms of the mask


def by_rank(tree: Any) -> Any:
    return jax.tree.map(lambda x: len(x.shape) > 1, tree)


def test_functions_and_trees_say_that_they_say_so() -> None:
    params = model(1)
    function = wd.describe(by_rank, params)
    tree = wd.describe(by_rank(params), params)
    prefix = wd.describe({"block_0": False, "head": np.True_, "step": True}, params)
    assert [row.decays for row in function.rows] == [True, True, False, True, False]
    assert [row.decays for row in tree.rows] == [row.decays for row in function.rows]
    assert [row.decays for row in prefix.rows] == [False, False, False, True, False]
    assert {row.because for row in function.rows[:4]} == {"a function says so"}
    assert {row.because for row in tree.rows[:4]} == {"a tree says so"}
    assert function.mask == repr(by_rank) and tree.mask == "a tree of bools"
    assert wd.describe(wd.named("bias"), params).mask == "named('bias')"
    everywhere = wd.describe(True, params)
    assert [row.decays for row in everywhere.rows] == [True] * 4 + [False]


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (None, TypeError, "mask=None is ambiguous; write mask=everything"),
        (".*kernel", TypeError, r"write regex\('.*kernel'\), path"),
        (0.1, TypeError, r"mask is 0\.1; .* comes first, before the par"),
        ({"head": "x"}, TypeError, "the mask is 'x' at 'head', where a bool belongs"),
        ({"head": True}, ValueError, "has no entry for 'block_0/attn/bias'; make it"),
        (
            {"block_0": True, "head": {"kernel": True, "bias": True}, "step": True},
            ValueError,
            "an entry for 'head/bias', where the parameters have no leaf",
        ),
        (
            wd.first_match((wd.everything, 2.0)),
            TypeError,
            "a table of factors or labels; pass factors as multiplier=",
        ),
        (lambda tree: 1, TypeError, "the mask is 1 as a whole, where a bool belongs"),
    ],
)
def test_what_is_no_mask_for_the_tree_is_refused(
    mask: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        wd.describe(mask, model(1))


# ------------------------------------------------------------------------------ factors


def factors_shown(multiplier: Any, params: Any = None) -> dict[str, Any]:
    description = wd.describe(wd.standard, params or model(2), multiplier=multiplier)
    return {row.path: row.multiplier for row in description.rows if row.decays}


def test_factors_are_shown_in_a_column_where_there_are_any() -> None:
    assert " factor " not in wd.describe(wd.standard, model()).table()
    assert " factor " not in wd.describe(wd.standard, model(), multiplier=1.0).table()

    factors = wd.first_match(
        (wd.contains("block_0"), 0.0), (wd.contains("head"), 2.5), default=1.0
    )
    description = wd.describe(wd.standard, model(3), multiplier=factors)
    assert [line for line in lines(description.table()) if "norm" not in line] == [
        "leaf                     shape    dtype    parameters  decays  factor  "
        "because",
        "block_{0..2}/attn/bias   (2, 2)   float32          12  no      -       "
        "standard: named 'bias'",
        "block_0/attn/kernel      (4, 4)   float32          16  no      -       "
        "standard: named 'kernel'; factor 0",
        "block_{1,2}/attn/kernel  (4, 4)   float32          32  yes     1       "
        "standard: named 'kernel'",
        "head/kernel              (4, 10)  float32          40  yes     2.5     "
        "standard: named 'kernel'",
        "step                     ()       int32             1  no      -       "
        "int32 is not inexact",
    ]
    zero = next(row for row in description.rows if row.path == "block_0/attn/kernel")
    assert not zero.decays and zero.multiplier is None


def test_factors_may_be_a_number_a_table_a_function_or_a_tree() -> None:
    kernels = {"block_0/attn/kernel", "block_1/attn/kernel", "head/kernel"}
    assert factors_shown(0.5) == dict.fromkeys(kernels, 0.5)
    assert factors_shown(np.float32(0.5)) == dict.fromkeys(kernels, 0.5)
    halved = {
        "block_0/attn/kernel": 1.0,
        "block_1/attn/kernel": 1.0,
        "head/kernel": 0.5,
    }
    table = wd.first_match((wd.contains("head"), 0.5), default=1.0)
    assert factors_shown(table) == halved
    assert factors_shown(lambda tree: table(tree)) == halved
    assert factors_shown(table(model(2))) == halved
    prefix = {"block_0": 1.0, "block_1": 1.0, "head": 0.5, "step": 3}
    assert factors_shown(prefix) == halved
    assert factors_shown(0.0) == {}


def test_arrays_of_factors_are_shown_by_their_least_and_largest() -> None:
    params = {"w": leaf(3, 2)}
    for array in (np.asarray, jnp.asarray):
        assert factors_shown({"w": array([[1.0], [2.0], [4.0]])}, params) == {
            "w": (1.0, 4.0)
        }
        assert factors_shown({"w": array([[2.0, 2.0]])}, params) == {"w": 2.0}
        assert factors_shown({"w": array([[0.0, 0.0]])}, params) == {}
        assert factors_shown({"w": array(2.0)}, params) == {"w": 2.0}
    description = wd.describe(
        wd.everything, params, multiplier={"w": np.ones((3, 1)) / 3}
    )
    assert description.rows[0].multiplier == pytest.approx(1 / 3)
    part = {"w": np.asarray([[0.25], [0.5], [1.0]])}
    description = wd.describe(wd.standard, params, multiplier=part)
    assert "yes     0.25..1  standard: named 'w'" in description.table()
    assert json.loads(json.dumps(description.to_dict()))["rows"][0]["multiplier"] == [
        0.25,
        1.0,
    ]


@pytest.mark.parametrize(
    ("multiplier", "error", "message"),
    [
        (
            -1.0,
            ValueError,
            r"the multiplier is -1\.0; factors are finite and 0 or more",
        ),
        (
            wd.standard,
            TypeError,
            "multiplier takes factors, got standard; pass a choice",
        ),
        (
            {"w": np.ones(2)},
            ValueError,
            r"shape \(2,\) at 'w', where the leaf has \(3, 2",
        ),
        ({"w": "big"}, TypeError, "the multiplier is 'big' at 'w'; write a number"),
        ({"v": 1.0}, ValueError, "multiplier is a tree that has no entry for 'w'"),
    ],
)
def test_what_is_no_factor_for_the_tree_is_refused(
    multiplier: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        wd.describe(wd.standard, {"w": leaf(3, 2)}, multiplier=multiplier)


# ----------------------------------------------------------------------------- warnings


def warnings_of(mask: Any, params: Any, **options: Any) -> tuple[str, ...]:
    return wd.describe(mask, params, **options).warnings


def test_an_ordinary_mask_has_no_warnings() -> None:
    assert warnings_of(wd.standard, model()) == ()
    assert warnings_of(wd.named("kernel"), model(), multiplier=0.5) == ()


def test_everything_and_nothing_are_warned_of() -> None:
    biased = {"dense": {"kernel": leaf(2, 2), "offset": leaf(2)}}
    biases = "biases, scales or the like decay: dense/offset"
    assert warnings_of(wd.everything, biased) == ("every leaf decays", biases)
    with_integers = {**biased, "step": leaf(dtype=jnp.int32)}
    assert len(warnings_of(wd.everything, with_integers)) == 2
    assert warnings_of(wd.nothing, biased) == ("no leaf decays",)
    assert warnings_of(wd.everything, {"step": leaf(dtype=jnp.int32)}) == (
        "no leaf decays",
    )
    assert warnings_of(wd.standard, biased, multiplier=0.0) == ("no leaf decays",)


@pytest.mark.parametrize(
    "name", ["bias", "b", "scale", "Gamma", "beta", "rel_pos_bias"]
)
def test_a_bias_like_leaf_that_decays_is_named(name: str) -> None:
    params = {"a": {name: leaf(2, 2)}, "z": {"kernel": leaf(2, 2), "other": leaf(3)}}
    text = f"biases, scales or the like decay: a/{name}"
    assert warnings_of(wd.min_ndim(2), params) == (text,)
    assert warnings_of(wd.named("kernel"), params) == ()


def test_scalars_that_decay_are_named() -> None:
    params = {"temperature": leaf(), "count": leaf(dtype=jnp.int32), "w": leaf(2)}
    rule = ~wd.named("w")
    assert warnings_of(rule, params) == ("scalars decay: temperature",)


def test_at_most_three_leaves_are_named_and_the_others_counted() -> None:
    [warning] = warnings_of(wd.min_ndim(2), model(5))
    assert warning == (
        "biases, scales or the like decay: block_0/attn/bias, block_1/attn/bias, "
        "block_2/attn/bias and 2 more"
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn])
def test_low_precision_that_decays_is_warned_of(dtype: Any) -> None:
    params = {"w": leaf(2, 2, dtype=dtype), "W": leaf(2, 2), "b": leaf(2, dtype=dtype)}
    assert warnings_of(wd.standard, params) == (
        "low-precision leaves decay; where the shrink per step is less than half a "
        "unit in the last place, rounding undoes it: w",
    )
    assert warnings_of(wd.named("W"), params) == ()


def test_factors_of_lora_that_decay_are_warned_of() -> None:
    lora = nnx.eval_shape(lambda: nnx.LoRA(2, 1, 2, rngs=nnx.Rngs(0)))
    params = {"dense": nnx.state(lora), "LORA_A": {"kernel": leaf(2, 2)}}
    text = "factors of LoRA decay; the merged weights go to the pretrained ones: "
    assert warnings_of(wd.standard & ~wd.contains("LORA_A"), params) == (
        text + "dense/lora_a, dense/lora_b",
    )
    assert text + "LORA_A/kernel, dense/lora_a, dense/lora_b" in warnings_of(
        wd.everything, params
    )
    assert warnings_of(~wd.named("lora_?") & ~wd.contains("LORA_A"), params) == (
        "no leaf decays",
    )


def test_a_name_that_matches_nothing_is_warned_of_with_the_nearest() -> None:
    rule = wd.min_ndim(2) & ~wd.named("bais", "bias") & ~wd.optional(wd.named("token"))
    assert warnings_of(rule, model()) == (
        "named('bais') matches no leaf; the nearest are 'bias'; write "
        "optional(named('bais')) if that is meant",
    )
    factors = wd.first_match((wd.path("haed/kernel"), 2.0), default=1.0)
    [warning] = warnings_of(wd.standard, model(), multiplier=factors)
    assert warning.startswith(
        "path('haed/kernel') matches no leaf; the nearest are 'head/k"
    )
    with pytest.raises(ValueError, match="matches no leaf"):
        rule(model())


def test_a_row_that_earlier_rows_shadow_is_warned_of() -> None:
    rows = (wd.named("kernel"), 0.5), (wd.path("head/*"), 2.0), (wd.named("bias"), 1.0)
    text = (
        "the row (path('head/*'), 2.0) never decides: earlier rows match all of its "
        "leaves"
    )
    table = wd.first_match(*rows, default=1.0)
    assert warnings_of(wd.standard, model(), multiplier=table) == (text,)
    other_order = wd.first_match(rows[1], rows[0], rows[2], default=1.0)
    assert warnings_of(wd.standard, model(), multiplier=other_order) == ()

    bools = [(rule, bool(value > 0.75)) for rule, value in rows]
    warnings = warnings_of(wd.first_match(*bools, default=False), model())
    assert text.replace("2.0", "True") in warnings


def test_a_row_that_matches_nothing_is_reported_once() -> None:
    table = wd.first_match((wd.named("kernal"), True), default=False)
    warnings = warnings_of(table, model())
    assert len([text for text in warnings if "kernal" in text]) == 1


class Tied(nnx.Module):
    """Three layers of one kernel."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.a, self.b, self.c = (
            nnx.Linear(2, 2, use_bias=False, rngs=rngs) for _ in range(3)
        )
        self.b.kernel = self.c.kernel = self.a.kernel
        self.norm = nnx.LayerNorm(2, rngs=rngs)


def test_shared_leaves_of_a_module_are_shown_with_their_other_names() -> None:
    tied = nnx.eval_shape(lambda: Tied(nnx.Rngs(0)))
    description = wd.describe(wd.standard, tied)
    assert [row.path for row in description.rows] == [
        "a/kernel",
        "norm/bias",
        "norm/scale",
    ]
    assert description.warnings == (
        "a/kernel is shared, and is also b/kernel, c/kernel",
    )
    assert warnings_of(wd.standard, nnx.state(tied)) == ()


# --------------------------------------------------------------------- kinds of trees


def test_a_module_can_be_asked_about_owners() -> None:
    tied = nnx.eval_shape(lambda: Tied(nnx.Rngs(0)))
    description = wd.describe(~wd.owned_by(nnx.LayerNorm), tied)
    assert [row.decays for row in description.rows] == [True, False, False]
    assert description.rows[1].because == "owned by LayerNorm"
    with pytest.raises(ValueError, match=r"make the mask with mask_of\(model, rule\)"):
        wd.describe(~wd.owned_by(nnx.LayerNorm), nnx.state(tied))


def test_masks_made_from_a_module_describe_it() -> None:
    tied = nnx.eval_shape(lambda: Tied(nnx.Rngs(0)))
    rows = wd.describe(wd.mask_of(tied, wd.standard), tied).rows
    assert [row.decays for row in rows] == [True, False, False]


class Dense(eqx.Module):
    kernel: Any
    bias: Any


def test_all_forms_of_one_layer_have_the_same_rows() -> None:
    layer = nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    linen = jax.eval_shape(nn.Dense(3).init, jax.random.key(0), jnp.ones((1, 2)))
    params = linen["params"]
    boxed = {k: nn.Partitioned(v, names=(None,) * v.ndim) for k, v in params.items()}
    forms = (
        params,
        boxed,
        layer,
        nnx.state(layer),
        nnx.as_pure(nnx.state(layer)),
        nnx.to_pure_dict(nnx.state(layer)),
        Dense(**params),
    )
    described = [
        # a module is known to be one, so that its type may be what decides
        {row._replace(because="") for row in wd.describe(wd.standard, form).rows}
        for form in forms
    ]
    assert all(rows == described[0] for rows in described)
    assert {row.path for row in described[0]} == {"kernel", "bias"}


def test_terabytes_are_described_without_being_allocated() -> None:
    def init() -> Any:
        return {"w": jnp.ones((1 << 20, 1 << 22)), "b": jnp.zeros(1 << 20)}

    abstract = jax.eval_shape(init)
    module = nnx.eval_shape(lambda: nnx.Linear(1 << 20, 1 << 22, rngs=nnx.Rngs(0)))
    assert "4,398,046,511,104 of 4,398,047,559,680 parameters" in str(
        wd.describe(wd.standard, abstract)
    )
    row = wd.describe(wd.standard, module).rows[1]
    assert (row.path, row.size, row.decays) == ("kernel", 1 << 42, True)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (nn.Dense(3), "Dense"),
        ([nn.Dense(3)], "list"),
        ({}, "dict"),
        (None, "NoneType"),
        ({"kernel": (3, 4)}, "dict"),
        (optax.adamw(1e-3), "GradientTransformation"),
        ("params", "str"),
        (nn.Dense(3).init, "method"),
    ],
)
def test_what_holds_no_arrays_is_refused_by_its_kind(given: Any, kind: str) -> None:
    for mask in (wd.everything, wd.standard, lambda tree: True):
        message = f"no arrays in the {kind}.*; pass the tree of parameters, or"
        with pytest.raises(TypeError, match=message):
            wd.describe(mask, given)


def test_a_single_array_is_described_by_rules_that_need_no_path_only() -> None:
    for array in (jnp.ones(3), leaf(3), np.ones(3)):
        with pytest.raises(ValueError, match="a single array, which has no path"):
            wd.describe(wd.standard, array)
        assert wd.describe(wd.everything, array).rows[0].decays


# ----------------------------------------------------------------------- amount of work


@pytest.mark.parametrize("kind", ["rule", "table", "factors"])
def test_twice_the_leaves_are_twice_the_work(kind: str) -> None:
    calls = 0

    def counted(asked: wd.Leaf) -> bool:
        nonlocal calls
        calls += 1
        return asked.name == "kernel"

    rule = wd.satisfies(counted, "counted")
    table = wd.first_match((rule, 2.0), (wd.contains("norm"), 1.0), default=1.0)

    def work(layers: int) -> int:
        nonlocal calls
        calls = 0
        params = {f"block_{n}": block() for n in range(layers)}
        if kind == "factors":
            text = str(wd.describe(wd.standard, params, multiplier=table))
        elif kind == "table":
            mask = wd.first_match(
                (rule, True), (wd.contains("norm"), False), default=True
            )
            text = str(wd.describe(mask, params))
        else:
            text = str(
                wd.describe(rule & ~wd.named("bias") | wd.named("scale"), params)
            )
        assert text
        return calls

    assert work(40) == 2 * work(20) > 0
    assert work(40) <= 5 * 3 * 40


def test_a_row_that_matches_no_leaf_is_told_once() -> None:
    params = {"a": {"kernel": leaf(2, 2), "bias": leaf(2)}}
    table = wd.first_match(
        (wd.min_ndim(9), 2.0),
        (wd.named("bias") & wd.min_ndim(4), 3.0),
        (wd.named("kernal"), 4.0),
        default=1.0,
    )
    warnings = wd.describe(wd.standard, params, multiplier=table).warnings
    assert [text.partition(";")[0] for text in warnings] == [
        "named('kernal') matches no leaf",
        "the row (min_ndim(9), 2.0) never decides: it matches no leaf",
        "the row (named('bias') & min_ndim(4), 3.0) never decides: it matches no leaf",
    ]


def test_a_reason_in_any_words_changes_no_warning() -> None:
    rule = wd.satisfies(lambda leaf: True, "not inexact, or so it says")
    assert wd.describe(rule, {"a": leaf(2, 2)}).warnings == ("every leaf decays",)


def test_swapped_arguments_are_told_apart() -> None:
    with pytest.raises(TypeError, match=r"the order of arguments is \(mask, params\)$"):
        wd.describe({"a": leaf(2, 2)}, wd.standard)
