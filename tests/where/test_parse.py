# SPDX-License-Identifier: Apache-2.0
"""Rules from text: what reads back, what is refused, and where errors point."""

import ast
import builtins
import inspect
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any

import helpers
import jax.numpy as jnp
import pytest

import optax_wd as wd
from optax_wd._text import parse as _text

CONSTANTS = ["everything", "nothing", "standard", "matrices"]
CALLS = [
    "optional",
    "min_ndim",
    "named",
    "contains",
    "path",
    "regex",
    "standard_with",
    "owned_by",
    "declared",
    "first_match",
]
SCOPE = {name: getattr(wd, name) for name in [*CONSTANTS, *CALLS]}

# Read as text, each is equal to what Python makes of it.
CODE = [
    "everything",
    "nothing",
    "standard",
    "optional(named('pos_embed'))",
    "optional(rule=named('pos_embed'))",
    "min_ndim(2)",
    "min_ndim(n=2)",
    "min_ndim(3, stacked=contains('blocks'))",
    "min_ndim(2, stacked=((contains('a'), 0), (contains('b'), 1)))",
    "min_ndim(2, stacked=[[contains('a'), 0], (contains('b') | named('c'), 1)])",
    "min_ndim(0x2, stacked=((named('x') & min_ndim(1), 1),),)",
    "named('bias', '*_bias')",
    "named('bi' 'as', u'b')",
    'contains("LayerNorm_*")',
    "path('**/attn/*/kernel', 'head/kernel')",
    r"""regex('.*/(kernel|\\w+)', "it's")""",
    r"regex(r'block_\d+/.*')",
    "standard_with()",
    "standard_with(stacked=contains('blocks'))",
    "standard_with(also=('router',))",
    "standard_with(also=['router', 'gate_*'], stacked=((contains('a'), 1),))",
    "owned_by('LayerNorm', 'RMSNorm')",
    "declared('decay')",
    "declared('weight_decay', False)",
    "declared('weight_decay', value=None)",
    "declared('axes', ('a', None, ('b', -1), ()))",
    "declared('rate', -0.25)",
    "declared('rate', 1e300)",
    "declared('seed', 340282366920938463463374607431768211456)",
    "first_match((named('bias'), False), (everything, True))",
    "first_match([named('bias'), False], default=True)",
    "first_match((everything, True), default=False) & named('a')",
    "~named('bias')",
    "~~named('bias')",
    "(((standard)))",
    "named('a') & named('b') & named('c')",
    "named('a') | named('b') & named('c') | ~named('d')",
    "named('a') & (named('b') | named('c'))",
    "(named('a') | named('b')) & named('c')",
    "~(named('a') & named('b'))",
    "~(named('a') | ~named('b')) | ~optional(~named('c') & everything)",
    "named('\\x00\\ud800', '\\t', '\\u2028', 'é', '🙂', '#', '\"', '{0}')",
    "min_ndim(2)  # a comment",
    "(\n  min_ndim(2)  # weights\n  & ~named('bias')\n)",
]
TEXTS = ["bias", "*_bias", "LayerNorm_?", "it's", 'a"b', "é", "a\nb", "\\d", "🙂", "#"]
VALUES = [True, False, None, 0, -1, 2.5, -1e-9, 10**20, "a", (), ("a", None, (-1,))]


def refused(text: str) -> str:
    """The message about a text that is no rule."""
    with pytest.raises(ValueError) as caught:
        wd.parse_rule(text)
    assert type(caught.value) is ValueError
    return str(caught.value)


def pointed(text: str) -> tuple[str, str]:
    """The sentence of a message, and the piece of the text that has carets under it."""
    sentence, line, carets = refused(text).rsplit("\n", 2)
    assert line[:2] == carets[:2] == "  " and set(carets.lstrip()) == {"^"}
    return sentence, line[carets.index("^") : len(carets)]


def a_rule(rng: random.Random, depth: int) -> wd.Rule:
    """A random rule of at most `depth` levels."""

    def inner() -> wd.Rule:
        return a_rule(rng, depth - 1)

    def some(count: int = 3) -> list[str]:
        return rng.choices(TEXTS, k=rng.randint(1, count))

    def pairs() -> tuple[tuple[wd.Rule, int], ...]:
        return tuple((inner(), rng.randint(0, 3)) for _ in range(rng.randint(1, 2)))

    leaves: list[Callable[[], wd.Rule]] = [
        lambda: rng.choice([wd.everything, wd.nothing, wd.standard]),
        lambda: wd.min_ndim(rng.randint(1, 9)),
        lambda: rng.choice([wd.named, wd.contains, wd.path])(*some()),
        lambda: wd.regex(*rng.choices([".*", r"a\d+/(b|c)", "'", '"'], k=2)),
        lambda: wd.owned_by(*some()),
        lambda: wd.declared(rng.choice(TEXTS), rng.choice(VALUES)),
        lambda: wd.standard_with(also=tuple(some())),
    ]
    nodes: list[Callable[[], wd.Rule]] = [
        lambda: ~inner(),
        lambda: inner() & inner(),
        lambda: inner() | inner(),
        lambda: wd.optional(inner()),
        lambda: wd.min_ndim(rng.randint(1, 9), stacked=pairs()),
        lambda: wd.standard_with(stacked=pairs(), also=tuple(some())),
        lambda: a_table(rng, inner),
    ]
    return rng.choice(leaves if depth == 0 else nodes)()


def a_table(rng: random.Random, inner: Callable[[], wd.Rule]) -> wd.Rule:
    rows = [(inner(), rng.random() < 0.5) for _ in range(rng.randint(1, 3))]
    table = wd.first_match(*rows, **rng.choice([{}, {"default": True}]))
    assert isinstance(table, wd.Rule)
    return table


# ----------------------------------------------------------------------- what is read


@pytest.mark.parametrize("code", CODE, ids=range(len(CODE)))
def test_a_text_means_what_the_code_means(code: str) -> None:
    rule = wd.parse_rule(code)
    assert rule == eval(code, {"__builtins__": {}}, dict(SCOPE))
    assert isinstance(rule, wd.Rule)


@pytest.mark.parametrize("code", CODE, ids=range(len(CODE)))
def test_what_a_rule_prints_reads_back(code: str) -> None:
    rule = wd.parse_rule(code)
    again = wd.parse_rule(repr(rule))
    assert again == rule
    assert hash(again) == hash(rule)
    assert repr(again) == repr(rule)


def test_200_random_rules_read_back_from_what_they_print() -> None:
    rng = random.Random(20)
    rules = [a_rule(rng, depth=rng.randint(0, 4)) for _ in range(200)]
    for rule in rules:
        again = wd.parse_rule(repr(rule))
        assert again == rule
        assert hash(again) == hash(rule)
    assert len({repr(rule) for rule in rules}) > 150
    for name in CALLS:
        assert any(f"{name}(" in repr(rule) for rule in rules), name


def test_a_list_in_a_value_stays_a_list() -> None:
    rule = wd.declared("axes", ["a", ["b"]])
    assert wd.parse_rule(repr(rule)) == rule
    assert wd.parse_rule("declared('axes', ('a', ('b',)))") != rule


def test_the_mask_of_a_configuration_file_decays_what_it_says() -> None:
    config = {"optimizer": {"weight_decay": 0.1, "mask": "~named('bias')\n"}}
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    tx = wd.masked_decay(
        config["optimizer"]["weight_decay"],
        wd.parse_rule(config["optimizer"]["mask"]),
    )
    updates = helpers.once(
        tx, {"kernel": jnp.zeros((2, 3)), "bias": params["bias"]}, params
    )
    assert updates["bias"] is params["bias"]
    helpers.assert_same(updates["kernel"], jnp.full((2, 3), 0.1))


@pytest.mark.parametrize("text", ["  standard", "standard\n", "\n\tstandard \r\n"])
def test_space_around_a_rule_counts_for_nothing(text: str) -> None:
    assert wd.parse_rule(text) == wd.standard


def test_a_backslash_that_is_no_escape_stays_and_nobody_warns() -> None:
    filters = list(warnings.filters)
    rule = wd.parse_rule(r"regex('block_\d+/.*', 'a\.b')")
    assert rule == wd.regex(r"block_\d+/.*", r"a\.b")
    assert warnings.filters == filters


def test_rows_of_operators_and_levels_may_be_long() -> None:
    names = [f"a{n}" for n in range(1000)]
    rule = wd.parse_rule(" | ".join(f"named({name!r})" for name in names))
    assert wd.parse_rule(repr(rule)) == rule
    assert repr(rule).count("|") == 999
    deep = "optional(" * 100 + "standard" + ")" * 100
    assert repr(wd.parse_rule(deep)) == deep


# -------------------------------------------------------------------- what is refused

MEANS_NOTHING = (
    "this means nothing in a rule; write names such as standard, calls such as "
    "named('bias'), and `&`, `|`, `~`"
)
OPERATORS = "combine rules with `&`, `|`, `~`, nothing else"
NOT_AND = "combine rules with `&`, `|`, `~`, not `and`, `or`, `not`"
NO_RULE = "this is no rule; write one such as named('bias')"
SATISFIES = "satisfies holds a function, which no text can; make the rule in Python"
ONCE = "write each argument by its name, and once"
TYPES = "types go by name here; write owned_by('LayerNorm'), a string"
KNOWN = f"known are {', '.join([*CONSTANTS, *CALLS, 'True', 'False', 'None'])}"
PREFIX, WITHOUT = "with the prefix", "write it without parentheses"
QUOTED = "a name in the model is quoted"
PREFIX = "write recipes.mae_finetune(...), with the prefix"
TABLE = "this is no rule; a table is one if its values are bools"
LARGE = "this number is too large to mean anything"
UNREADABLE = "a rule holds no null byte, no lone surrogate, no number of 400 digits"

# A text, the piece of it that the carets are under, and the sentence.
REFUSED = [
    ("~nmaed('bias')", "nmaed", "unknown name 'nmaed'; the nearest is 'named'"),
    ("Standard", "Standard", "unknown name 'Standard'; the nearest is 'standard'"),
    ("declared('x', false)", "false", "unknown name 'false'; the nearest is 'False'"),
    ("zzz & standard", "zzz", f"unknown name 'zzz'; {KNOWN}; {QUOTED}, 'zzz'"),
    ("named(kernel)", "kernel", f"unknown name 'kernel'; {KNOWN}; {QUOTED}, 'kernel'"),
    (
        "~named('a', bias)",
        "bias",
        f"write roles.bias, with the prefix; {QUOTED}, 'bias'",
    ),
    ("named('a', dense)", "dense", f"unknown name 'dense'; {KNOWN}; {QUOTED}, 'dense'"),
    ("roles.baas", "roles.baas", "unknown role 'baas'; the nearest is 'bias'"),
    (
        "roles.bias()",
        "roles.bias",
        "roles.bias is a rule; write it without parentheses",
    ),
    ("timm()", "timm", "write recipes.timm(...), with the prefix"),
    ("timm", "timm", "write recipes.timm(...), with the prefix"),
    ("~mae_finetune() & a", "mae_finetune", PREFIX),
    (
        "stan",
        "stan",
        "unknown name 'stan'; the nearest is 'standard' or 'standard_with'",
    ),
    ("named", "named", "named is a function; write named(...) with its arguments"),
    ("standard()", "standard", "standard is a rule; write it without parentheses"),
    ("wd.min_ndim(2)", "wd.min_ndim", "write it without the prefix `wd.`"),
    ("~wd.standard", "wd.standard", "write it without the prefix `wd.`"),
    ("optax_wd.x", "optax_wd.x", "write it without the prefix `optax_wd.`"),
    ("wd.recipes.a()", "wd.recipes.a", "write it without the prefix `wd.`"),
    ("satisfies(f, 'x')", "satisfies", SATISFIES),
    ("owned_by('a', LayerNorm)", "LayerNorm", TYPES),
    ("owned_by(nnx.LayerNorm)", "nnx.LayerNorm", TYPES),
    # values
    ("'standard'", "'standard'", NO_RULE),
    ("12", "12", NO_RULE),
    ("-1", "-1", NO_RULE),
    ("None", "None", NO_RULE),
    ("(standard, nothing)", "(standard, nothing)", NO_RULE),
    ("[standard]", "[standard]", NO_RULE),
    ("~'a'", "'a'", NO_RULE),
    ("'a' & standard", "'a'", NO_RULE),
    ("standard | 1", "1", NO_RULE),
    ("declared('x', 1 | 2)", "1", NO_RULE),
    ("declared('x', 1e999)", "1e999", LARGE),
    ("declared('x', -1e999)", "1e999", LARGE),
    (f"min_ndim(0x{'f' * 300})", f"0x{'f' * 69}", LARGE),
    (f"min_ndim({'9' * 401})", f"{'9' * 71}", UNREADABLE),
    ("named(b'a')", "b'a'", MEANS_NOTHING),
    ("declared('x', 1j)", "1j", MEANS_NOTHING),
    ("declared('x', ...)", "...", MEANS_NOTHING),
    ("declared('x', {'a': 1})", "{'a': 1}", MEANS_NOTHING),
    ("declared('x', {1})", "{1}", MEANS_NOTHING),
    ("declared('x', -True)", "-True", MEANS_NOTHING),
    ("declared('x', +1)", "+1", MEANS_NOTHING),
    ("declared('x', --1)", "--1", MEANS_NOTHING),
    # operators and syntax
    ("standard and nothing", "standard and nothing", NOT_AND),
    ("standard or nothing", "standard or nothing", NOT_AND),
    ("~(not standard)", "not standard", NOT_AND),
    ("standard ^ nothing", "standard ^ nothing", OPERATORS),
    ("standard & (named('a') - named('b'))", "named('a') - named('b')", OPERATORS),
    ("10**10**10", "10**10**10", OPERATORS),
    ("standard == nothing", "standard == nothing", MEANS_NOTHING),
    ("standard if 1 else nothing", "standard if 1 else nothing", MEANS_NOTHING),
    ("(x := standard)", "x := standard", MEANS_NOTHING),
    ("named(*'ab')", "*'ab'", MEANS_NOTHING),
    ("named(f'a')", "f'a'", MEANS_NOTHING),
    ("lambda: standard", "lambda: standard", MEANS_NOTHING),
    ("[x for x in 'ab']", "[x for x in 'ab']", MEANS_NOTHING),
    ("named(x for x in 'ab')", "(x for x in 'ab')", MEANS_NOTHING),
    ("(standard,)[0]", "(standard,)[0]", MEANS_NOTHING),
    ("named('a')('b')", "named('a')", MEANS_NOTHING),
    ("min_ndim(**{'n': 2})", "**{'n': 2}", ONCE),
    ("min_ndim(n=1, n=2)", "n=2", ONCE),
    ("standard & $", "$", "this does not parse: invalid syntax"),
    ("named('a') named('b')", "named", "this does not parse: invalid syntax"),
    ("(standard", "(", "this does not parse: '(' was never closed"),
    # tables
    ("first_match((standard, 0.5))", "first_match((standard, 0.5))", TABLE),
    ("~first_match((standard, 'a'))", "first_match((standard, 'a'))", TABLE),
    # what the functions themselves refuse
    (
        "named('a') | min_ndim(0)",
        "0",
        "min_ndim takes 1 or more, got 0; write `everything` for 0",
    ),
    (
        "~named()",
        "named()",
        "named() has nothing to match; write `nothing` for no leaf",
    ),
    (
        "regex('(')",
        "'('",
        "regex('(') is no regular expression: missing ), unterminated subpattern at "
        "position 0; escape special characters, or write a glob with path(...)",
    ),
    (
        "min_ndim(n_dim=2)",
        "n_dim=2",
        "min_ndim() got an unexpected keyword argument 'n_dim'",
    ),
    (
        "min_ndim(2, stack=standard)",
        "stack=standard",
        "min_ndim() got an unexpected keyword argument 'stack'",
    ),
    (
        "min_ndim(2, stacked=nothing, stack=standard)",
        "stack=standard",
        "min_ndim() got an unexpected keyword argument 'stack'",
    ),
    (
        "min_ndim(2, stacked='blocks')",
        "min_ndim(2, stacked='blocks')",
        "stacked takes a rule, for axis 0, or pairs such as ((contains('blocks'), 1),),"
        " got 'blocks'",
    ),
    (
        "standard_with(stacked='blocks')",
        "stacked='blocks'",
        "stacked takes a rule, for axis 0, or pairs such as ((contains('blocks'), 1),),"
        " got 'blocks'",
    ),
    (
        "first_match((standard, True), 3)",
        "first_match((standard, True), 3)",
        "a row of first_match is a pair (rule, value), got 3",
    ),
]


@pytest.mark.parametrize(
    ("text", "piece", "sentence"), REFUSED, ids=[text[:40] for text, _, _ in REFUSED]
)
def test_an_error_has_a_sentence_and_points_at_the_piece(
    text: str, piece: str, sentence: str
) -> None:
    said, pointed_at = pointed(text)
    # What Python says of a keyword has a suggestion behind it from 3.13 on.
    assert (said.partition(". Did you mean")[0], pointed_at) == (sentence, piece)


def test_a_whole_message_is_a_sentence_the_text_and_carets() -> None:
    assert refused("min_ndim(2) & ~nmaed('bias')") == (
        "unknown name 'nmaed'; the nearest is 'named'\n"
        "  min_ndim(2) & ~nmaed('bias')\n"
        "                 ^^^^^"
    )


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=ascii)
def test_an_error_in_several_lines_shows_the_line(newline: str) -> None:
    text = newline.join(["(", "  named('é\f') & ", "  ~named('ü') & nmaed", ")"])
    assert refused(text) == (
        "line 3: unknown name 'nmaed'; the nearest is 'named'\n"
        "    ~named('ü') & nmaed\n"
        "                  ^^^^^"
    )


def test_a_piece_of_several_lines_has_carets_under_its_first() -> None:
    sentence, piece = pointed("(standard &\n optional((\n  'a', 'b')))")
    assert piece == "("
    assert sentence.startswith("line 2: optional takes a rule such as")
    assert pointed("(standard &\n named(\n ))")[1] == "named("


def test_lines_without_parentheses_are_told_about_them() -> None:
    assert pointed("standard\n& named('a')") == (
        "line 2: this does not parse: invalid syntax; a rule of several lines stands "
        "in parentheses",
        "&",
    )


def test_a_text_that_ends_too_early_has_a_caret_behind_it() -> None:
    assert refused("standard &") == (
        "this does not parse: invalid syntax\n  standard &\n            ^"
    )
    assert refused("# nothing").endswith("\n  # nothing\n           ^")


@pytest.mark.parametrize(
    "before", ["'é', 'üß'", "'🙂'", "'日本'", "'a',\t'b'", "'\x07'"]
)
def test_columns_are_those_of_what_is_shown(before: str) -> None:
    assert pointed(f"named({before}) & nmaed('é')")[1] == "nmaed"
    assert pointed(f"named({before}) & $")[1] == "$"


def test_control_characters_do_not_reach_the_terminal() -> None:
    message = refused("named('\t\x1b[2J') & nmaed('a')")
    assert "named('\\t\\x1b[2J') & nmaed('a')" in message
    assert message.replace("\n", "").isprintable()


def test_of_a_long_line_what_surrounds_the_piece_is_shown() -> None:
    row = " & ".join(["named('a')"] * 300)
    sentence, line, carets = refused(f"{row} & nope & {row}").split("\n")
    assert pointed(f"{row} & nope & {row}")[1] == "nope"
    assert pointed(f"nope & {row}")[1] == pointed(f"{row} & nope")[1] == "nope"
    assert line.startswith("  ...") and line.endswith("...")
    assert len(line) == len("  ......") + 80 and len(carets) < len(line)


def test_a_sentence_that_quotes_much_is_shortened() -> None:
    message = refused(f"optional(({'0, ' * 20_000}))")
    assert message.startswith("optional takes a rule such as min_ndim(2)")
    assert " ... 0, 0" in message and len(message) < 1300


@pytest.mark.parametrize("text", ["", "  ", "\n\r\n\t"], ids=ascii)
def test_an_empty_text_is_told_what_to_write(text: str) -> None:
    assert refused(text) == (
        "the text is empty; write a rule such as standard or nothing"
    )


@pytest.mark.parametrize(
    "value", [None, True, 2, b"standard", ["standard"], wd.standard], ids=helpers.label
)
def test_what_is_no_string_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        wd.parse_rule(value)
    expected = f"parse_rule takes a string such as 'standard', got {value!r}"
    assert str(caught.value) == expected


class LayerNorm:
    """A type, to be printed by its name."""


def test_printed_rules_of_functions_and_types_are_refused_and_explained() -> None:
    assert pointed(repr(wd.satisfies(lambda leaf: True, "all")))[0] == SATISFIES
    assert pointed(repr(~wd.satisfies(bool, "all") & wd.standard))[0] == SATISFIES
    assert pointed(repr(wd.owned_by(LayerNorm, "a"))) == (TYPES, "LayerNorm")


# --------------------------------------------------------------------------- recipes


def recipe_names() -> list[str]:
    """The recipes of rules that need no argument."""
    found = inspect.getmembers(wd.recipes, inspect.isfunction)
    parameters = {name: inspect.signature(f).parameters for name, f in found}
    return [
        name
        for name, function in found
        if inspect.signature(function).return_annotation is wd.Rule
        and all(p.default is not p.empty for p in parameters[name].values())
    ]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_called_and_what_it_prints_reads_back(name: str) -> None:
    rule = getattr(wd.recipes, name)()
    assert wd.parse_rule(f"recipes.{name}()") == rule
    assert wd.parse_rule(repr(rule)) == rule
    sentence = f"recipes.{name} is a function; write recipes.{name}()"
    assert pointed(f"~recipes.{name}") == (sentence, f"recipes.{name}")


def test_recipes_take_arguments_and_stand_in_combinations() -> None:
    assert {"timm", "nanogpt"} < set(recipe_names())
    rule = wd.parse_rule(
        "recipes.timm(('pos_*',)) & ~recipes.keras(exclude=['gamma']) | "
        "recipes.nanogpt(stacked=contains('blocks'))"
    )
    assert rule == wd.recipes.timm(("pos_*",)) & ~wd.recipes.keras(
        exclude=["gamma"]
    ) | wd.recipes.nanogpt(stacked=wd.contains("blocks"))
    assert wd.parse_rule(repr(rule)) == rule


def test_recipes_that_are_unknown_wrong_or_no_rules_are_refused() -> None:
    text = "standard & recipes.tim()"
    unknown = "unknown recipe 'tim'; the nearest is 'timm' or 'timm_layer_decay'"
    assert pointed(text) == pointed("recipes.tim & a") == (unknown, "recipes.tim")
    text = "recipes.modded_nanogpt()"
    assert pointed(f"~{text}") == (TABLE, text)
    sentence, piece = pointed("recipes.keras(1)")
    assert sentence.startswith("keras takes a tuple") and piece == "1"
    both = "unknown recipe 'mae'; the nearest is 'mae_finetune' or 'mae_pretrain'"
    near = "unknown recipe 'nanogtp'; the nearest is 'nanogpt'"
    assert pointed("recipes.nanogtp()")[0] == near
    assert pointed("recipes.mae()") == pointed("recipes.mae") == (both, "recipes.mae")
    assert pointed("recipes.zzz()")[0].startswith(
        "unknown recipe 'zzz'; known are amnl"
    )
    assert not pointed("recipes.zzz()")[0].endswith("quoted, 'zzz'")
    start = "write recipes.NAME(...), where NAME is amnl or beit or big_vision"
    assert pointed("recipes & standard")[0].startswith(start)


# --------------------------------------------------------------------------- security

FORBIDDEN = [
    ("__import__('os')", "__import__"),
    ("__import__('os').system('true')", "__import__('os').system"),
    ("().__class__", "().__class__"),
    ("().__class__.__base__.__subclasses__()", "().__class__.__base__.__subclasses__"),
    ("open('x')", "open"),
    ("print(1)", "print"),
    ("eval('standard')", "eval"),
    ("recipes.__dict__", "recipes.__dict__"),
    ("recipes.__dict__['_private']", "recipes.__dict__['_private']"),
    ("recipes._private()", "recipes._private"),
    ("recipes.Rule()", "recipes.Rule"),
    ("recipes.regex('a')", "recipes.regex"),
    ("recipes.__builtins__", "recipes.__builtins__"),
    ("recipes", "recipes"),
    ("named.__globals__", "named.__globals__"),
    ("named.__call__('a')", "named.__call__"),
    ("named('a').__class__", "named('a').__class__"),
    ("standard.matches(1)", "standard.matches"),
    ("standard & (named.__globals__['x'])", "named.__globals__['x']"),
    ("min_ndim(2, stacked=__builtins__)", "__builtins__"),
    ("declared('x', declared)", "declared"),
    ("first_match((standard, True), default=exit)", "exit"),
    ("optional(rule=[open('x')])", "open"),
    ("owned_by(open)", "open"),
    ("owned_by(open('x'))", "open"),
]


@pytest.mark.parametrize(
    ("text", "piece"), FORBIDDEN, ids=[text for text, _ in FORBIDDEN]
)
def test_nothing_but_the_listed_names_is_reachable(text: str, piece: str) -> None:
    assert pointed(text)[1] == piece


def test_no_builtin_and_no_other_name_of_the_package_is_reachable() -> None:
    others = set(dir(builtins)) | set(vars(wd)) | set(vars(_text))
    others -= {*CONSTANTS, *CALLS, "None", "True", "False", "__debug__"}
    assert {"eval", "masked_decay", "ast", "mask_of"} < others
    for name in sorted(others):
        assert pointed(name)[1] == pointed(f"{name}('x')")[1] == name


def test_private_and_imported_functions_of_recipes_are_not_reachable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wd.recipes, "_private", wd.recipes.timm, raising=False)
    monkeypatch.setattr(wd.recipes, "named", wd.named, raising=False)
    monkeypatch.setattr(wd.recipes, "public", wd.recipes.timm, raising=False)
    assert pointed("recipes._private()")[1] == "recipes._private"
    assert pointed("recipes.named('a')")[1] == "recipes.named"
    assert wd.parse_rule("recipes.public()") == wd.recipes.timm()


RULES_IN = "optax_wd._text.known"


def test_every_role_reads_back() -> None:
    names = [name for name in vars(wd.roles) if not name.startswith("_")]
    assert len(names) == 14
    for name in names:
        assert wd.parse_rule(f"roles.{name}") is getattr(wd.roles, name)


def test_the_source_runs_no_text_and_looks_no_name_up() -> None:
    sources = inspect.getsource(_text), inspect.getsource(sys.modules[RULES_IN])
    tree = ast.parse("\n".join(sources))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    called = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert "parse" in called and "recipes" in names
    assert not names & {"eval", "exec", "compile", "getattr", "globals", "__import__"}
    assert not called & {"eval", "exec", "literal_eval", "import_module"}


def test_damaged_text_is_a_rule_or_one_clear_error() -> None:
    rng = random.Random(3)
    codes = [code for code in CODE if "regex" not in code]
    pieces = [*"()[]{}'\"\\\n\r\t\0#&|~*=,.:@1é🙂\ud800", "not ", "wd.", "recipes."]
    counts = {True: 0, False: 0}
    for _ in range(3000):
        text = rng.choice(codes)
        for _ in range(rng.randint(1, 3)):
            n = rng.randint(0, len(text))
            text = text[:n] + rng.choice(["", *pieces]) + text[n + rng.randint(0, 2) :]
        try:
            is_rule = isinstance(wd.parse_rule(text), wd.Rule)
            assert is_rule
        except ValueError as error:
            is_rule = False
            assert type(error) is ValueError
            assert text.strip() == "" or set(str(error).split("\n")[-1]) <= {" ", "^"}
        counts[is_rule] += 1
    assert min(counts.values()) > 100


DEEP = "the text has too many levels or operators; make the rule in Python"
LEVELS = "this is more than 100 levels deep"
# Where the parser of some Python goes further, the whitelist refuses what it makes.
HOSTILE: dict[str, tuple[str, str | tuple[str, ...]]] = {
    "tildes": ("~" * 99_999 + "a", (DEEP, LEVELS)),
    "more tildes": ("~" * 5_000 + "standard", (DEEP, LEVELS)),
    "levels": ("~" * 500 + "standard", LEVELS),
    "calls": ("optional(" * 101 + "a" + ")" * 101, LEVELS),
    "tuples": ("(" * 150 + "1" + ",)" * 150, LEVELS),
    "parentheses": ("(" * 100_000, "this does not parse: too many nested parentheses"),
    "brackets": ("[" * 100_000, "this does not parse: too many nested parentheses"),
    "closing": (")" * 100_000, "this does not parse: unmatched ')'"),
    "operators": ("a|" * 40_000 + "a", (DEEP, "unknown name 'a'")),
    "powers": ("9**" * 30_000 + "9", (DEEP, OPERATORS)),
    "nots": ("not " * 20_000 + "a", (DEEP, NOT_AND)),
    "lambdas": ("lambda:" * 10_000 + "a", (DEEP, MEANS_NOTHING)),
    "attributes": ("a" + ".b" * 40_000, (DEEP, MEANS_NOTHING)),
    "tuple": ("0," * 50_000, NO_RULE),
    "name": ("a" * 100_000, f"unknown name 'aaaaaaaaaaaa...aaaaaaaaaaaaa'; {KNOWN}"),
    "digits": (f"min_ndim({'9' * 10_000})", UNREADABLE),
    "digits with underscores": (f"min_ndim({'1_' * 10_000}1)", UNREADABLE),
    "hexadecimal digits": (f"min_ndim(0x{'f' * 90_000})", LARGE),
    "null byte": ("standard\0", UNREADABLE),
    "null byte in a string": ("named('a\0b')", UNREADABLE),
    "lone surrogate": ("named('\ud800')", UNREADABLE),
    "pattern": (f"regex('{'(' * 50_000}')", "maximum recursion depth exceeded"),
    "repetition": (f"regex('a{{{10**30}}}')", "the repetition number is too large"),
    "length": (
        "standard " * 20_000,
        "the text of a rule has at most 100000 characters, got 180000; write names "
        "with globs, or make the rule in Python",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text_is_one_clear_error(kind: str) -> None:
    text, sentence = HOSTILE[kind]
    message = refused(text)
    wanted = (sentence,) if isinstance(sentence, str) else sentence
    assert any(part in message.split("\n")[0] for part in wanted)
    assert len(message) < 1300
