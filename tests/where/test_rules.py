# SPDX-License-Identifier: Apache-2.0
"""Rules as values: combined, compared, printed, and called with trees."""

import copy
import dataclasses
import functools
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import forms
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_wd as wd

LEAVES = [
    wd.Leaf(path, shape, dtype)
    for path in [("attn", "kernel"), ("attn", "bias"), ("head", "scale")]
    for shape in [(), (3,), (2, 3)]
    for dtype in ["float32", "int32"]
]

RULES = [
    wd.everything,
    wd.nothing,
    wd.named("bias", "scale"),
    wd.contains("attn"),
    wd.path("*/kernel"),
    wd.regex(".*/kernel"),
    wd.min_ndim(2),
    wd.standard,
    wd.named("bias") & wd.min_ndim(2),
    wd.named("bias") | wd.contains("head"),
    ~wd.contains("attn"),
]

# What each piece of code makes prints itself again, and is equal to it.
CODE = [
    "everything",
    "nothing",
    "standard",
    "optional(named('pos_embed'))",
    "min_ndim(2)",
    "min_ndim(3, stacked=contains('blocks'))",
    "min_ndim(2, stacked=((contains('a'), 0), (contains('b'), 1)))",
    "min_ndim(2, stacked=((named('x') & min_ndim(1), 1),))",
    "named('bias', '*_bias')",
    "contains('LayerNorm_*')",
    "path('**/attn/*/kernel', 'head/kernel')",
    r"""regex('.*/(kernel|\\w+)', "it's")""",
    "standard_with(stacked=contains('blocks'))",
    "standard_with(also=('router',))",
    "standard_with(stacked=((contains('a'), 1),), also=('router', 'gate_*'))",
    "owned_by('LayerNorm', 'RMSNorm')",
    "declared('weight_decay', False)",
    "declared('axes', ('a', None))",
    "first_match((named('bias'), False), (everything, True))",
    "first_match((named('bias'), 0.5), (contains('a', 'b'), 2), default=1.0)",
    "first_match((standard, 'decay'), default='no_decay')",
    "first_match((everything, True), default=False) & named('a')",
    "~named('bias')",
    "named('a') & named('b') & named('c')",
    "named('a') | (named('b') & named('c'))",
    "(named('a') | named('b')) & named('c')",
    "~(named('a') & named('b'))",
    "~(named('a') | ~named('b')) | ~optional(~named('c') & everything)",
]
ALL_FORMS = {**forms.single(), **forms.stacked()}
SCOPE = {name: getattr(wd, name) for name in wd.__dict__ if not name.startswith("_")}


@pytest.mark.parametrize("code", CODE)
def test_a_rule_prints_the_code_that_made_it(code: str) -> None:
    rule = eval(code, dict(SCOPE))
    assert eval(repr(rule), dict(SCOPE)) == rule
    assert repr(rule) == code


def test_a_rule_of_module_types_prints_their_names() -> None:
    rule = wd.owned_by(nnx.LayerNorm, "RMSNorm")
    assert repr(rule) == "owned_by(LayerNorm, 'RMSNorm')"
    assert eval(repr(rule), {**SCOPE, "LayerNorm": nnx.LayerNorm}) == rule


def test_a_rule_prints_without_clauses_that_say_nothing() -> None:
    assert repr(~~wd.named("a")) == "named('a')"
    assert repr(wd.standard_with()) == "standard"
    assert repr(wd.min_ndim(2, stacked=None)) == "min_ndim(2)"
    assert repr(wd.declared("frozen")) == "declared('frozen', True)"


@pytest.mark.parametrize("code", CODE)
def test_rules_made_alike_are_equal_and_hash_alike(code: str) -> None:
    one, two = eval(code, dict(SCOPE)), eval(code, dict(SCOPE))
    assert one == two
    assert hash(one) == hash(two)
    assert {one: "found"}[two] == "found"


def test_rules_made_otherwise_are_not_equal() -> None:
    rules = [eval(code, dict(SCOPE)) for code in CODE]
    for one, two in itertools.combinations(rules, 2):
        assert one != two


def test_kinds_of_rules_with_the_same_patterns_are_not_equal() -> None:
    rules: list[wd.Rule] = [
        kind("a") for kind in (wd.named, wd.contains, wd.path, wd.regex)
    ]
    rules += [wd.optional(wd.named("a")), ~wd.named("a"), wd.owned_by("a")]
    assert len(set(rules)) == len(rules)
    assert all(one != two for one, two in itertools.combinations(rules, 2))


def test_a_rule_is_not_equal_to_what_is_no_rule() -> None:
    assert wd.everything != True  # noqa: E712
    assert wd.named("a") != ("a",)
    assert wd.named("a") not in [None, "a"]


def test_the_same_rule_written_in_two_ways_is_equal() -> None:
    assert wd.standard_with() == wd.standard
    assert wd.min_ndim(2, stacked=((wd.named("a"), 0),)) == wd.min_ndim(
        2, stacked=wd.named("a")
    )
    a, b, c = wd.named("a"), wd.named("b"), wd.named("c")
    assert (a & b) & c == a & (b & c)
    assert (a | b) | c == a | (b | c)


@pytest.mark.parametrize("code", CODE)
def test_a_rule_survives_copies_and_pickles(code: str) -> None:
    rule = eval(code, dict(SCOPE))
    assert copy.deepcopy(rule) == rule
    assert pickle.loads(pickle.dumps(rule)) == rule


def test_a_rule_cannot_be_changed() -> None:
    rule: Any = wd.named("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.patterns = ("b",)


@pytest.mark.parametrize("rule", RULES, ids=helpers.label)
def test_operators_are_those_of_sets_of_leaves(rule: wd.Rule) -> None:
    for other, leaf in itertools.product(RULES, LEAVES):
        a, b = rule.matches(leaf), other.matches(leaf)
        assert (rule & other).matches(leaf) is (a and b)
        assert (rule | other).matches(leaf) is (a or b)
        assert (~rule).matches(leaf) is (not a)


@pytest.mark.parametrize("rule", RULES, ids=helpers.label)
def test_de_morgan_holds(rule: wd.Rule) -> None:
    for other, leaf in itertools.product(RULES, LEAVES):
        for one, two in (
            (~(rule & other), ~rule | ~other),
            (~(rule | other), ~rule & ~other),
        ):
            assert one.matches(leaf) is two.matches(leaf)
            assert one.decide(leaf) is two.decide(leaf)


@pytest.mark.parametrize("rule", RULES, ids=helpers.label)
def test_negated_twice_is_the_rule_itself(rule: wd.Rule) -> None:
    assert ~~rule == rule


@pytest.mark.parametrize(
    "rule", [*RULES, *[~rule for rule in RULES]], ids=helpers.label
)
def test_no_rule_chooses_a_leaf_that_is_not_inexact(rule: wd.Rule) -> None:
    assert not any(rule.decide(leaf) for leaf in LEAVES if leaf.dtype == jnp.int32)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (wd.named("bias") & wd.min_ndim(2), "not named('bias')"),
        (wd.min_ndim(2) & wd.named("bias"), "not named('bias')"),
        (wd.min_ndim(2) & wd.named("kernel"), "ndim 2; named('kernel')"),
        (wd.named("bias") | wd.min_ndim(2), "ndim 2"),
        (wd.min_ndim(2) | wd.named("kernel"), "ndim 2"),
        (wd.named("a") | wd.named("b"), "not named('a'); not named('b')"),
        (wd.min_ndim(1) & wd.min_ndim(2), "ndim 2"),
        (~wd.named("kernel"), "named('kernel')"),
        (~(wd.named("a") | wd.min_ndim(2)), "ndim 2"),
        (wd.everything & ~wd.nothing, "everything; nothing"),
    ],
    ids=helpers.label,
)
def test_a_combined_rule_names_the_clause_that_decides(
    rule: wd.Rule, reason: str
) -> None:
    leaf = wd.Leaf(("attn", "kernel"), (2, 3), "float32")
    assert rule.reason(leaf) == reason


@pytest.mark.parametrize(
    "use",
    [
        lambda rule: rule and rule,
        lambda rule: rule or rule,
        lambda rule: not rule,
        lambda rule: bool(rule),
        lambda rule: 1 if rule else 2,
    ],
    ids=["and", "or", "not", "bool", "if"],
)
@pytest.mark.parametrize("rule", [wd.standard, wd.first_match((wd.everything, True))])
def test_and_or_not_are_refused(use: Callable[[Any], Any], rule: Any) -> None:
    with pytest.raises(
        TypeError, match="^combine rules with `&`, `|`, `~`, not `and`, `or`, `not`$"
    ):
        use(rule)


@pytest.mark.parametrize(
    "other", [True, "bias", None, {"a": True}, lambda tree: tree], ids=helpers.label
)
@pytest.mark.parametrize("operator", ["__and__", "__or__"])
def test_a_rule_is_combined_with_rules_only(operator: str, other: Any) -> None:
    with pytest.raises(
        TypeError, match="^an operator between rules takes a rule such as min_ndim"
    ):
        getattr(wd.everything, operator)(other)


def test_a_table_that_is_no_rule_is_not_combined_with_rules() -> None:
    table: Any = wd.first_match((wd.everything, 2.0))
    with pytest.raises(TypeError, match=r"takes a rule .* got first_match\(\(everyth"):
        wd.everything.__and__(table)


@pytest.mark.parametrize(
    "count",
    [3, 0.5, True, np.int32(3), np.asarray(3), jnp.asarray(3), jnp.uint32(0)],
    ids=helpers.label,
)
@pytest.mark.parametrize(
    ("asked", "argument"),
    [
        (wd.standard, "mask"),
        (wd.everything, "mask"),
        (wd.first_match((wd.everything, True)), "mask"),
        (wd.first_match((wd.everything, 2.0)), "multiplier"),
        (wd.layerwise(0.5, wd.ordered_layers(wd.everything)), "multiplier"),
    ],
    ids=helpers.label,
)
def test_a_step_count_is_refused(count: Any, asked: Any, argument: str) -> None:
    with pytest.raises(
        TypeError,
        match="^got a step count, expected a parameter tree; under "
        "optax.inject_hyperparams every argument that is a rule or a function is "
        r"static \(mask, multiplier, stacked, gate, matrices, folds\): pass "
        rf'static_args="{argument}", or for a decay of optax_wd '
        r'static_args=\("mask", "multiplier"\); into muon inject the learning rate '
        "alone, by a function of it that makes the optimizer$",
    ):
        asked(count)


def test_a_traced_step_count_is_refused() -> None:
    with pytest.raises(TypeError, match="^got a step count, expected a parameter tree"):
        jax.eval_shape(wd.standard, jax.ShapeDtypeStruct((), jnp.int32))


def test_inject_hyperparams_without_static_args_is_refused_and_with_them_runs() -> None:
    params = helpers.tree()
    inject = optax.inject_hyperparams
    tx = inject(optax.adamw)(1e-3, weight_decay=0.1, mask=wd.standard)
    with pytest.raises(TypeError, match='pass static_args="mask", or for a decay'):
        tx.init(params)
    make: Any = inject(wd.masked_decay, static_args=("mask", "multiplier"))
    tx = make(0.5, wd.named("kernel"), multiplier=2.0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = helpers.once(tx, zeros, params)
    helpers.assert_same(updates["mlp"]["kernel"], params["mlp"]["kernel"])
    helpers.assert_same(updates["attn"]["bias"], zeros["attn"]["bias"])


@pytest.mark.parametrize(
    "lone",
    [
        jnp.zeros(7),
        jnp.asarray(1.0),
        np.zeros((2, 3)),
        jax.ShapeDtypeStruct((7,), jnp.float32),
        nn.Partitioned(jnp.zeros(7), (None,)),
        nnx.Param(jnp.zeros(7)),
    ],
    ids=lambda lone: type(lone).__name__,
)
def test_a_single_array_is_refused_by_all_but_the_constant_rules(lone: Any) -> None:
    for rule in [rule for rule in RULES if rule not in (wd.everything, wd.nothing)]:
        with pytest.raises(ValueError, match="was asked about a single array, which"):
            rule(lone)
    for rule in (wd.everything, ~wd.nothing, wd.everything | wd.nothing):
        assert jax.tree.leaves(rule(lone)) == [True]
    assert jax.tree.leaves(wd.nothing(lone)) == [False]


def test_the_refusal_of_a_single_array_says_why_and_what_to_write() -> None:
    with pytest.raises(
        ValueError,
        match=r"^named\('bias'\) was asked about a single array, which has no path; "
        r"call it with the tree of parameters \(outside optax.flatten\), or use "
        "`everything`$",
    ):
        wd.named("bias")(jnp.zeros(3))
    table = wd.first_match((wd.named("bias"), 0.0), default=1.0)
    with pytest.raises(ValueError, match=r"^first_match\(.* a single array"):
        table(jnp.zeros(3))
    assert wd.first_match((wd.everything, 3.0))(jnp.zeros(3)) == 3.0


def test_optax_flatten_is_refused_by_rules_that_need_a_path() -> None:
    params = helpers.tree()
    tx = optax.flatten(optax.adamw(1e-3, weight_decay=0.1, mask=wd.standard))
    with pytest.raises(ValueError, match=r"outside optax\.flatten"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize("rule", [*RULES, wd.first_match((wd.everything, 1.0))])
def test_a_rule_is_one_leaf_of_a_tree_and_no_tree(rule: Any) -> None:
    assert jax.tree.leaves(rule) == [rule]
    assert jax.tree.leaves({"mask": rule}) == [rule]


def test_a_rule_is_a_static_argument_that_compiles_once_for_equal_rules() -> None:
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def total(rule: wd.Rule, tree: Any) -> jax.Array:
        traced.append(rule)
        kept = jax.tree.map(lambda x, keep: x.sum() * keep, tree, rule(tree))
        return jax.tree.reduce(jnp.add, kept)

    params = jax.tree.map(jnp.ones_like, helpers.tree())
    assert total(wd.named("kernel"), params) == 4 * 2 * 3 + 3 * 5
    assert total(wd.named("kernel"), params) == 4 * 2 * 3 + 3 * 5
    assert total(wd.named("scale"), params) == 4
    assert len(traced) == 2


@pytest.mark.parametrize("form", ALL_FORMS)
def test_the_answer_has_the_structure_that_arrived_and_python_bools(form: str) -> None:
    tree = ALL_FORMS[form]
    for rule in (wd.standard, ~wd.named("kernel"), wd.everything):
        answer = rule(tree)
        assert jax.tree.structure(answer) == jax.tree.structure(tree)
        assert {type(leaf) for leaf in jax.tree.leaves(answer)} == {bool}


@pytest.mark.parametrize("form", ALL_FORMS)
@pytest.mark.parametrize(
    ("rule", "chosen"),
    [
        (wd.standard, [k for k, decays in forms.WEIGHTS.items() if decays]),
        (wd.named("bias"), [k for k in forms.WEIGHTS if k.endswith("/bias")]),
        (wd.regex(".*/kernel"), [k for k in forms.WEIGHTS if k.endswith("/kernel")]),
        (
            wd.path("attn/*/kernel"),
            [f"attn/{name}/kernel" for name in ("key", "out", "query", "value")],
        ),
        (wd.contains("value"), ["attn/value/bias", "attn/value/kernel"]),
        (
            ~(wd.contains("attn") | wd.named("scale")),
            ["mlp/bias", "mlp/kernel", "norm/bias"],
        ),
    ],
    ids=helpers.label,
)
def test_a_rule_chooses_the_same_leaves_in_every_form_of_a_model(
    form: str, rule: wd.Rule, chosen: list[str]
) -> None:
    answer = forms.answers(rule(ALL_FORMS[form]))
    assert [path for path, decays in answer.items() if decays] == chosen
    assert list(answer) == list(forms.WEIGHTS)


@pytest.mark.parametrize("form", forms.stacked())
def test_stacked_axes_taken_off_give_the_answer_of_one_layer(form: str) -> None:
    rule = wd.min_ndim(3)
    one = forms.answers(rule(forms.linen_abstract()))
    assert sum(one.values()) == 4  # the projections of the attention
    answer = wd.min_ndim(3, stacked=wd.everything)(forms.stacked()[form])
    assert forms.answers(answer) == one


@pytest.mark.parametrize("form", ALL_FORMS)
def test_labels_are_the_same_in_every_form_of_a_model(form: str) -> None:
    labels = wd.first_match((wd.standard, "decay"), default="no_decay")
    assert forms.answers(labels(ALL_FORMS[form])) == {
        path: "decay" if decays else "no_decay"
        for path, decays in forms.WEIGHTS.items()
    }


def test_an_equinox_model_gets_the_same_answers_whole_filtered_or_abstract() -> None:
    make = functools.partial(eqx.nn.MLP, 2, 2, 3, 1, key=jax.random.key(0))
    abstract = eqx.filter_eval_shape(make)
    arrays, rest = eqx.partition(abstract, lambda x: hasattr(x, "dtype"))
    params = forms.zeros(arrays)
    weights = {"layers/0/weight": True, "layers/0/bias": False}
    weights |= {"layers/1/weight": True, "layers/1/bias": False}
    for tree in (abstract, arrays, params, eqx.combine(params, rest)):
        for rule in (wd.standard, wd.named("weight"), wd.path("layers/*/weight")):
            answer = rule(tree)
            assert jax.tree.structure(answer) == jax.tree.structure(tree)
            assert forms.answers(answer).items() >= weights.items()
            assert sum(jax.tree.leaves(answer)) == 2
    assert not any(jax.tree.leaves(wd.everything(rest)))


@pytest.mark.parametrize("hole", [None, optax.MaskedNode()], ids=helpers.label)
def test_a_partial_tree_keeps_its_holes(hole: Any) -> None:
    params = forms.single()["linen dict"]
    answer = wd.standard(forms.without(params, "attn", hole))
    assert answer["mlp"] == {"bias": hole, "kernel": hole}
    assert answer["attn"] == wd.standard(params)["attn"]


@pytest.mark.parametrize("empty", [None, {}, [], optax.MaskedNode()], ids=helpers.label)
def test_an_empty_tree_gets_an_empty_answer(empty: Any) -> None:
    assert wd.named("kernel")(empty) == empty


def test_leaves_that_are_not_inexact_are_false_in_a_tree() -> None:
    tree = {
        "kernel": jnp.zeros((2, 2)),
        "table": jnp.zeros((2, 2), jnp.int32),
        "key": jax.random.key(0),
        "number": 1.5,
        "text": "kernel",
        "function": jax.nn.relu,
        "complex": jnp.zeros((2, 2), jnp.complex64),
    }
    expected = {name: name in ("kernel", "complex") for name in tree}
    assert wd.everything(tree) == expected
    assert (~wd.nothing)(tree) == expected


def test_a_rule_never_looks_at_values() -> None:
    @jax.jit
    def masked(tree: Any) -> Any:
        return jax.tree.map(jnp.asarray, wd.standard(tree))

    params = helpers.tree()
    assert jax.tree.map(bool, masked(params)) == wd.standard(params)
    not_numbers = jax.tree.map(lambda x: x * jnp.nan, params)
    assert wd.standard(not_numbers) == wd.standard(params)


@pytest.mark.parametrize("form", ["linen dict", "linen FrozenDict", "nnx pure State"])
def test_optax_takes_a_rule_as_a_mask_and_a_table_as_labels(form: str) -> None:
    params = jax.tree.map(jnp.ones_like, ALL_FORMS[form])
    zeros = jax.tree.map(jnp.zeros_like, params)
    labels = wd.first_match((wd.standard, "decay"), default="no_decay")
    groups: dict[Any, Any] = {
        "decay": optax.add_decayed_weights(0.5),
        "no_decay": optax.identity(),
    }
    for tx in (
        optax.add_decayed_weights(0.5, mask=wd.standard),
        optax.masked(optax.add_decayed_weights(0.5), wd.standard),
        optax.partition(groups, labels),
        wd.masked_decay(0.5),
    ):
        updates = helpers.once(tx, zeros, params)
        decays = {k: bool(u.any()) for k, u in forms.answers(updates).items()}
        assert decays == forms.WEIGHTS


class Unsure(wd.Rule):
    """A rule of tests that is unsure about leaves whose name has a question mark."""

    def matches(self, leaf: wd.Leaf) -> bool:
        return leaf.name.startswith("yes")

    def reason(self, leaf: wd.Leaf) -> str:
        return "unsure" if self.unsure(leaf) else "sure"

    def unsure(self, leaf: wd.Leaf) -> bool:
        return "?" in leaf.name


UNSURE, NAMED_A = Unsure(), wd.contains("a")


@pytest.mark.parametrize(
    ("rule", "path", "unsure"),
    [
        (UNSURE, ("yes?",), True),
        (UNSURE, ("yes",), False),
        (~UNSURE, ("yes?",), True),
        (wd.optional(UNSURE), ("no?",), True),
        (UNSURE & NAMED_A, ("a", "yes?"), True),
        (UNSURE & NAMED_A, ("yes?",), False),  # a sure no is enough
        (UNSURE & NAMED_A, ("a", "no?"), True),
        (UNSURE & NAMED_A, ("no?",), False),
        (UNSURE | NAMED_A, ("yes?",), True),
        (UNSURE | NAMED_A, ("a", "yes?"), False),  # a sure yes is enough
        (UNSURE | NAMED_A, ("no?",), True),
        (wd.first_match((NAMED_A, True), (UNSURE, False), default=True), ("a?",), True),
        (wd.first_match((NAMED_A, 2.0), (UNSURE, 1.0), default=0.0), ("no?",), True),
        (wd.first_match((NAMED_A, 2.0), (UNSURE, 1.0)), ("a", "no?"), False),
    ],
)
def test_an_answer_is_unsure_where_no_sure_part_decides(
    rule: Any, path: tuple[str, ...], unsure: bool
) -> None:
    leaf = wd.Leaf(path, (2, 3), "float32")
    assert rule.unsure(leaf) is unsure
    if isinstance(rule, wd.Rule) and not unsure and rule is not UNSURE:
        assert "unsure" not in rule.reason(leaf)
