# SPDX-License-Identifier: Apache-2.0
"""A description with amounts, and the same description in a notebook."""

import html.parser
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_wd as wd


def leaf(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def model() -> dict[str, Any]:
    return {
        "blocks": {"bias": leaf(3, 4), "kernel": leaf(3, 4, 4)},
        "head": {"kernel": leaf(4, 10)},
    }


BLOCKS = wd.contains("blocks")
LAYERS = wd.ordered_layers((BLOCKS, 3), wd.everything)
FACTORS = wd.layerwise(0.5, LAYERS, stacked=BLOCKS)
WARM_UP = optax.linear_schedule(0.0, 1e-3, 10)


def shrinks(**arguments: Any) -> list[Any]:
    return [row.shrink for row in wd.describe(wd.standard, model(), **arguments).rows]


# ------------------------------------------------------------------------------ shrink


def test_the_shrink_is_learning_rate_times_weight_decay_times_factor() -> None:
    found = shrinks(multiplier=FACTORS, weight_decay=0.1, learning_rate=1e-3)
    none, (low, high), head = found
    assert none is None
    np.testing.assert_allclose([low, high, head], [1.25e-5, 5e-5, 1e-4], rtol=1e-12)


def test_without_a_learning_rate_the_shrink_is_the_weight_decay() -> None:
    assert shrinks(weight_decay=0.25) == [None, 0.25, 0.25]


def test_schedules_are_asked_about_the_step_that_is_named() -> None:
    decay = wd.cosine_schedule(0.0, 0.4, 10)
    found = shrinks(weight_decay=decay, learning_rate=WARM_UP, at_step=5)[-1]
    np.testing.assert_allclose(found, 0.2 * 0.5e-3, rtol=1e-6)


def test_the_shrink_that_is_told_is_the_one_that_happens() -> None:
    params: Any = {"kernel": jnp.full((2, 2), 3.0)}
    decay = wd.proportional(0.5, to=WARM_UP, peak=1e-3)
    tx = optax.chain(wd.masked_decay(decay), optax.scale_by_learning_rate(WARM_UP))
    state: Any = tx.init(params)
    updates: Any = None
    for _ in range(8):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    measured = -np.asarray(updates["kernel"])[0, 0] / 3.0
    told = wd.describe(
        wd.standard, params, weight_decay=decay, learning_rate=WARM_UP, at_step=7
    )
    assert told.rows[0].shrink == pytest.approx(measured, rel=1e-6)


def test_without_a_weight_decay_no_shrink_is_told() -> None:
    description = wd.describe(wd.standard, model())
    assert [row.shrink for row in description.rows] == [None, None, None]
    assert description.amount == "" and "shrink" not in str(description)


def test_the_table_has_a_column_of_shrinks_and_says_what_they_are_made_of() -> None:
    text = str(
        wd.describe(
            wd.standard,
            model(),
            multiplier=FACTORS,
            weight_decay=0.1,
            learning_rate=WARM_UP,
            at_step=10,
        )
    )
    assert text.split("\n")[:5] == [
        "mask: standard",
        "shrink per step: learning_rate 0.001 * weight_decay 0.1, at step 10",
        "leaf           shape      dtype    parameters  decays  factor      shrink"
        "           because",
        "blocks/bias    (3, 4)     float32          12  no      -           -     "
        "           standard: named 'bias'",
        "blocks/kernel  (3, 4, 4)  float32          48  yes     0.125..0.5  "
        "1.25e-05..5e-05  standard: named 'kernel'",
    ]


def blocks(count: int, factors: Any) -> list[list[str]]:
    """Leaf, parameters, factor and shrink of each line of a table of blocks."""
    params = {f"block_{n}": {"kernel": leaf(4, 4)} for n in range(count)}
    description = wd.describe(wd.standard, params, multiplier=factors, weight_decay=0.5)
    lines = [line.split("  ") for line in description.table().split("\n")[1:]]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    return [[line[0], line[3], *line[5:7]] for line in cells]


def test_layers_whose_factors_rise_steadily_make_one_line() -> None:
    factors = wd.layerwise(0.5, wd.numbered_layers("block_#", 12))
    low, high = 0.5**12, 0.5
    [[name, size, factor, shrink]] = blocks(12, factors)
    assert (name, size) == ("block_{0..11}/kernel", "192")
    assert factor == f"{low:.4g}..{high:.4g}"
    assert shrink == f"{low / 2:.4g}..0.25"


def test_layers_whose_factors_go_up_and_down_are_lines_of_their_own() -> None:
    factors = wd.first_match((wd.contains("block_1"), 0.5), default=1.0)
    assert blocks(3, factors) == [
        ["block_{0,2}/kernel", "32", "1", "0.5"],
        ["block_1/kernel", "16", "0.5", "0.25"],
    ]


def test_layers_that_decay_are_not_folded_with_those_that_do_not() -> None:
    factors = wd.first_match((wd.contains("block_0"), 0.0), default=1.0)
    assert [line[:2] for line in blocks(3, factors)] == [
        ["block_0/kernel", "16"],
        ["block_{1,2}/kernel", "32"],
    ]


def test_a_shrink_of_zero_is_warned_of() -> None:
    description = wd.describe(
        wd.standard, model(), weight_decay=0.1, learning_rate=WARM_UP
    )
    expected = "the shrink at step 0 is 0; pass at_step= for another step"
    assert expected in description.warnings
    later = wd.describe(
        wd.standard, model(), weight_decay=0.1, learning_rate=WARM_UP, at_step=1
    )
    assert later.warnings == ()


def test_shrinks_are_plain_data() -> None:
    description = wd.describe(
        wd.standard, model(), multiplier=FACTORS, weight_decay=0.5, learning_rate=0.5
    )
    data = json.loads(json.dumps(description.to_dict()))
    assert data["amount"] == "learning_rate 0.5 * weight_decay 0.5, at step 0"
    assert [row["shrink"] for row in data["rows"]] == [None, [0.03125, 0.125], 0.25]


@pytest.mark.parametrize(
    "step",
    [3, np.int64(3), np.uint8(3), np.asarray(3), jnp.asarray(3), jnp.uint32(3)],
    ids=repr,
)
def test_a_step_is_any_whole_number(step: Any) -> None:
    description = wd.describe(
        wd.standard, model(), weight_decay=0.5, learning_rate=WARM_UP, at_step=step
    )
    assert description.amount == "learning_rate 0.0003 * weight_decay 0.5, at step 3"
    assert description == wd.describe(
        wd.standard, model(), weight_decay=0.5, learning_rate=WARM_UP, at_step=3
    )


def test_a_shrink_without_a_learning_rate_says_so() -> None:
    description = wd.describe(wd.standard, model(), weight_decay=0.1)
    assert description.amount == "weight_decay 0.1, no learning rate, at step 0"
    assert "weight_decay 0.1, no learning rate, at step 0" in str(description)


@pytest.mark.parametrize(
    ("arguments", "is_warned_of"),
    [
        ({"weight_decay": 1.5}, True),
        ({"weight_decay": 1.0}, False),
        ({"weight_decay": 500.0, "learning_rate": 0.01}, True),
        ({"weight_decay": 50.0, "learning_rate": 0.01}, False),
        ({"weight_decay": 0.5, "multiplier": 3.0}, True),
        ({"weight_decay": 5.0, "multiplier": 0.1}, False),
        ({"weight_decay": 1.5, "multiplier": FACTORS}, True),
        ({"weight_decay": 3.5, "multiplier": FACTORS, "mask": BLOCKS}, True),
        ({"weight_decay": 1.5, "multiplier": FACTORS, "mask": BLOCKS}, False),
        ({"weight_decay": lambda step: 0.5 * step, "at_step": 3}, True),
        ({"weight_decay": lambda step: 0.5 * step, "at_step": 2}, False),
        ({"multiplier": 3.0}, False),
    ],
)
def test_more_than_the_whole_weight_is_warned_of(
    arguments: dict[str, Any], is_warned_of: bool
) -> None:
    said = "a step takes away more than the whole weight; check the units"
    options = {"mask": wd.everything, **arguments}
    mask = wd.standard & options.pop("mask")
    found = wd.describe(mask, model(), **options).warnings
    assert found == ((said,) if is_warned_of else ())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.1}, "a shrink needs weight_decay= besides learning_rate="),
        ({"weight_decay": -0.1}, "weight_decay has to be finite and 0 or more"),
        (
            {"weight_decay": 0.1, "learning_rate": -1.0},
            "learning_rate has to be finite and 0 or more",
        ),
    ],
)
def test_amounts_that_make_no_sense_are_refused(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message.replace("(", "\\(")):
        wd.describe(wd.standard, model(), **arguments)


@pytest.mark.parametrize(
    "step",
    [
        *(-1, np.int64(-1), jnp.asarray(-1)),
        *(True, False, np.bool_(True), jnp.asarray(True)),
        *(1.5, 2.0, np.float32(1.0), np.asarray(1.0), jnp.asarray(1.0)),
        *("1", None, (1,), np.arange(2)),
    ],
    ids=repr,
)
def test_what_is_no_number_of_a_step_is_refused(step: Any) -> None:
    with pytest.raises(ValueError) as caught:
        wd.describe(wd.standard, model(), weight_decay=0.1, at_step=step)
    assert str(caught.value) == f"at_step is a whole number, 0 or more, got {step!r}"


# -------------------------------------------------------------------------------- HTML


class Cells(html.parser.HTMLParser):
    """The cells of tables as a browser reads them, and the names of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.names: set[str] = set()
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.lasttag = ""

    def handle_data(self, data: str) -> None:
        if self.lasttag in ("td", "th"):
            self.rows[-1][-1] += data
        else:
            self.texts.append(data)


def test_a_notebook_shows_the_same_table() -> None:
    description = wd.describe(
        wd.standard, model(), multiplier=FACTORS, weight_decay=0.1, learning_rate=0.1
    )
    page = Cells(description._repr_html_())
    table = [line.split("  ") for line in description.table().split("\n")]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in table]
    assert page.rows == cells and len(cells) == 4
    shown = "\n".join(page.texts)
    assert "mask: standard" in shown and description.summary() in shown
    assert description.amount in shown


def test_a_notebook_shows_warnings() -> None:
    description = wd.describe(wd.everything, model())
    assert description.warnings
    page = "\n".join(Cells(description._repr_html_()).texts)
    assert all(f"warning: {text}" in page for text in description.warnings)


def test_no_name_is_taken_for_markup() -> None:
    evil = "<script>alert('x')</script>&amp;\x1b[31m"
    rule = wd.contains("<img src=x onerror=y>", evil)
    description = wd.describe(rule, {evil: {"k": leaf(2, 2)}})
    page = Cells(description._repr_html_())
    assert page.names == {"pre", "table", "tr", "th", "td"}
    assert page.rows[1][0] == evil.replace("\x1b", "\\x1b") + "/k"
    assert any("<img src=x onerror=y>" in text for text in page.texts)


def test_numbers_are_aligned_to_the_right_in_a_notebook() -> None:
    text = wd.describe(wd.standard, model())._repr_html_()
    assert '<td style="text-align: right">48</td>' in text
    assert '<td style="text-align: left">blocks/kernel</td>' in text
