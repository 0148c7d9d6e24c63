# SPDX-License-Identifier: Apache-2.0
"""A difference between two reports says what differs, once, and nothing else."""

import dataclasses
import json
import math
import re
from typing import Any, NamedTuple

import helpers
import jax.numpy as jnp
import pytest

import optax_wd as wd
from optax_wd._see.diff import Difference


def blocks(layers: int, width: int = 4) -> dict[str, Any]:
    block = {"kernel": jnp.ones((width, width)), "bias": jnp.ones(width)}
    return {f"block_{n}": block for n in range(layers)}


class Row(NamedTuple):
    path: str
    shrink: Any
    kind: Any = "decoupled"


@dataclasses.dataclass(frozen=True)
class Report:
    """A report of another kind than a Description."""

    rows: tuple[Row, ...]


def report(*values: Any) -> Report:
    return Report(tuple(Row(f"leaf_{n}", value) for n, value in enumerate(values)))


def described(mask: Any, params: Any = None, **options: Any) -> wd.Description:
    return wd.describe(mask, helpers.tree() if params is None else params, **options)


def test_a_report_does_not_differ_from_itself() -> None:
    found = wd.diff(described(wd.standard), described(wd.standard))
    assert not found and isinstance(found, Difference)
    assert str(found) == "no difference"
    assert found._repr_html_() == "<pre>no difference</pre>"
    assert found.to_dict() == {"added": [], "removed": [], "changed": []}


def test_two_rules_that_agree_do_not_differ() -> None:
    before = described(wd.standard)
    after = described(wd.named("kernel"))
    assert before.rows != after.rows  # they say why
    assert not wd.diff(before, after)


def test_another_decision_is_told_by_leaf_and_in_words() -> None:
    found = wd.diff(described(wd.standard), described(wd.min_ndim(2)))
    assert found.changed == (("attn/bias", "decays", False, True),)
    assert (found.added, found.removed) == ((), ())
    assert str(found) == (
        "changed attn/bias: decays no -> yes\n0 removed, 0 added, 1 changed"
    )


def test_repeated_layers_are_one_line() -> None:
    params = blocks(12)
    found = wd.diff(described(wd.everything, params), described(wd.standard, params))
    assert str(found).split("\n") == [
        "changed block_{0..11}/bias: decays yes -> no",
        "0 removed, 0 added, 12 changed",
    ]
    assert len(found.changed) == 12


def test_leaves_that_come_and_go_are_told_with_their_facts() -> None:
    before, after = described(wd.standard, blocks(3)), described(wd.standard, blocks(5))
    found = wd.diff(before, after)
    assert str(found).split("\n") == [
        "added block_{3,4}/bias: shape (4,), dtype float32, decays no",
        "added block_{3,4}/kernel: shape (4, 4), dtype float32, decays yes, "
        "multiplier 1",
        "0 removed, 4 added, 0 changed",
    ]
    assert [row.path for row in found.added][:2] == ["block_3/bias", "block_3/kernel"]
    back = wd.diff(after, before)
    assert (back.removed, back.added) == (found.added, ())
    assert str(back).startswith("removed block_{3,4}/bias: ")


def test_a_new_shape_is_told_once_and_not_again_as_a_size() -> None:
    before = described(wd.standard, blocks(1, 2))
    after = described(wd.standard, blocks(1, 3))
    found = wd.diff(before, after)
    assert "block_0/kernel: shape (2, 2) -> (3, 3)\n" in str(found)
    assert {change.field for change in found.changed} == {"shape"}


def test_several_facts_of_a_leaf_are_one_line_and_count_once() -> None:
    before = described(wd.standard, {"kernel": jnp.ones((2, 2), jnp.bfloat16)})
    after = described(wd.nothing, {"kernel": jnp.ones((2, 3))})
    assert str(wd.diff(before, after)) == (
        "changed kernel: shape (2, 2) -> (2, 3), dtype bfloat16 -> float32, "
        "decays yes -> no\n0 removed, 0 added, 1 changed"
    )


def test_factors_and_shrinks_are_compared() -> None:
    options = {"weight_decay": 0.1, "learning_rate": 0.5}
    table = wd.first_match((wd.contains("mlp"), 3.0), default=1.0)
    found = wd.diff(
        described(wd.standard, **options),
        described(wd.standard, multiplier=table, **options),
    )
    assert str(found).startswith(
        "changed mlp/kernel: multiplier 1 -> 3, shrink 0.05 -> 0.15\n"
    )


def test_a_number_that_does_not_apply_is_no_change() -> None:
    with_shrink = described(wd.standard, weight_decay=0.1)
    assert not wd.diff(described(wd.standard), with_shrink)
    assert not wd.diff(with_shrink, described(wd.standard))


@pytest.mark.parametrize(
    ("before", "after", "differ"),
    [
        (1.0, 1.0005, False),
        (1.0, 1.002, True),
        (-1.0, 1.0, True),
        (0.0, 1e-9, True),
        (math.nan, math.nan, False),
        (math.nan, 1.0, True),
        ((0.1, 0.5), (0.1, 0.5001), False),
        ((0.1, 0.5), (0.1, 0.6), True),
        ((0.1, 0.5), (0.2, 0.5), True),
        (0.5, (0.5, 0.5001), False),
        (0.5, (0.1, 0.5), True),
        (None, (0.1, 0.5), True),  # as in an audit; see below for descriptions
        (0.5, None, True),
        (None, "coupled", True),
        ("coupled", None, True),
        (1000, 1001, True),
        (True, False, True),
    ],
    ids=helpers.label,
)
def test_numbers_may_differ_by_noise(before: Any, after: Any, differ: bool) -> None:
    assert bool(wd.diff(report(before), report(after))) is differ


def test_the_tolerance_is_given_and_0_compares_exactly() -> None:
    before, after = report(1.0, 2.0), report(1.000001, 2.2)
    assert [x.path for x in wd.diff(before, after, rtol=0).changed] == [
        "leaf_0",
        "leaf_1",
    ]
    assert not wd.diff(before, after, rtol=0.1)
    assert "leaf_0: shrink 1.0 -> 1.000001" in str(wd.diff(before, after, rtol=0))


def test_ranges_are_told_by_their_ends() -> None:
    found = wd.diff(report((0.1, 0.5)), report(0.25))
    assert str(found).startswith("changed leaf_0: shrink 0.1..0.5 -> 0.25\n")


def test_leaves_of_one_path_are_compared_in_order() -> None:
    # {"a/b": x, "a": {"b": y}} has two leaves of one name.
    before = Report((Row("a/b", 1.0), Row("a/b", 2.0)))
    after = Report((Row("a/b", 1.0), Row("a/b", 3.0), Row("a/b", 4.0)))
    found = wd.diff(before, after)
    assert found.changed == (("a/b", "shrink", 2.0, 3.0),)
    assert found.added == (Row("a/b", 4.0),)


def test_the_data_goes_through_json() -> None:
    found = wd.diff(described(wd.standard), described(wd.min_ndim(2), blocks(1)))
    data = json.loads(json.dumps(found.to_dict()))
    assert [row["path"] for row in data["added"]] == ["block_0/bias", "block_0/kernel"]
    assert len(data["removed"]) == 5 and data["changed"] == []
    change = wd.diff(described(wd.standard), described(wd.min_ndim(2))).to_dict()
    assert change["changed"] == [
        {"path": "attn/bias", "field": "decays", "before": False, "after": True}
    ]


def test_hostile_names_do_nothing_to_a_terminal_or_a_page() -> None:
    before = described(wd.standard, {"a": jnp.ones(2)})
    after = described(wd.standard, {"\x1b[2J<script>\n": jnp.ones(2)})
    found = wd.diff(before, after)
    assert str(found).split("\n")[1].startswith("added \\x1b[2J<script>\\n: ")
    page = found._repr_html_()
    assert "&lt;script&gt;" in page and "<script>" not in page and "\x1b" not in page


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (report(1.0), described(wd.standard), "diff got a Report and a Description; "),
        (
            wd.standard,
            wd.standard,
            "diff got a .*; pass what describe or audit returns",
        ),
        (
            described(wd.standard),
            {},
            "diff got a dict; pass what describe or audit returns",
        ),
    ],
    ids=["two kinds", "rules", "tree"],
)
def test_only_two_reports_of_one_kind_are_compared(
    before: Any, after: Any, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        wd.diff(before, after)


@pytest.mark.parametrize("rtol", [-0.1, math.nan, math.inf])
def test_a_tolerance_that_is_none_is_refused(rtol: float) -> None:
    message = re.escape(f"rtol is a fraction such as 1e-3, 0 or more, got {rtol!r}")
    with pytest.raises(ValueError, match=message):
        wd.diff(report(1.0), report(1.0), rtol=rtol)


def test_audits_are_compared_too() -> None:
    params = blocks(1)
    plain, weaker = (
        wd.audit(wd.sgdw(0.01, wd.masked_decay(rate)), params, steps=1)
        for rate in (0.1, 0.05)
    )
    assert not wd.diff(plain, plain)
    assert str(wd.diff(plain, weaker)) == (
        "changed block_0/kernel: shrink 0.001 -> 0.0005\n0 removed, 0 added, 1 changed"
    )
