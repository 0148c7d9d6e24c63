# SPDX-License-Identifier: Apache-2.0
"""Folded lines stand for exactly the lines they seem to stand for."""

import itertools
import random
import re
from collections.abc import Sequence

import pytest

from optax_wd._tree.fold import align, fold, printable

BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|(\d+(?:,\d+)*))\}")


def expand(folded: str) -> list[str]:
    """All names that a reader takes a folded name for."""
    texts, choices, end = [], [], 0
    for match in BRACES.finditer(folded):
        texts.append(folded[end : match.start()])
        end = match.end()
        first, last, listed = match.groups()
        numbers = listed.split(",") if listed else range(int(first), int(last) + 1)
        choices.append([str(number) for number in numbers])
    texts.append(folded[end:])
    return [
        "".join(a + b for a, b in itertools.zip_longest(texts, chosen, fillvalue=""))
        for chosen in itertools.product(*choices)
    ]


def rows(names: Sequence[str], facts: str = "") -> list[tuple[str, str]]:
    return [(name, facts) for name in names]


def folded(names: Sequence[str]) -> list[str]:
    return [name for name, _ in fold(rows(names))]


def blocks(numbers: Sequence[object]) -> list[str]:
    return [f"block_{n}/kernel" for n in numbers]


def random_rows(seed: int) -> list[tuple[str, str]]:
    """Distinct names over few templates and few numbers, so that much can be folded."""
    rng = random.Random(seed)
    templates = ("a{}", "a{}/b{}", "{}", "x", "e{}_{}/k{}", "{}{}", "a{}/c", "a0{}")
    names = set()
    for _ in range(rng.randrange(1, 40)):
        template = rng.choice(templates)
        numbers = [rng.randrange(4) for _ in range(template.count("{}"))]
        names.add(template.format(*numbers))
    ordered = sorted(names)
    rng.shuffle(ordered)
    return [(name, rng.choice(("yes", "no", "no"))) for name in ordered]


@pytest.mark.parametrize("seed", range(60))
def test_folded_names_expand_to_exactly_the_names_of_their_rows(seed: int) -> None:
    given = random_rows(seed)
    groups = fold(given)
    for name, where in groups:
        assert sorted(expand(name)) == sorted(given[n][0] for n in where)
        assert len({given[n][1] for n in where}) == 1
    positions = sorted(n for _, where in groups for n in where)
    assert positions == list(range(len(given)))


@pytest.mark.parametrize("seed", range(60))
def test_groups_and_their_rows_come_in_the_order_of_first_occurrence(seed: int) -> None:
    groups = fold(random_rows(seed))
    firsts = [where[0] for _, where in groups]
    assert firsts == sorted(firsts)
    assert all(where == sorted(where) for _, where in groups)


@pytest.mark.parametrize("seed", range(20))
def test_a_full_grid_in_any_order_becomes_one_line(seed: int) -> None:
    rng = random.Random(seed)
    sides = [rng.sample(range(30), rng.randrange(1, 6)) for _ in range(3)]
    names = [f"a{i}/b{j}_{k}/kernel" for i, j, k in itertools.product(*sides)]
    rng.shuffle(names)
    [(name, where)] = fold(rows(names))
    assert sorted(expand(name)) == sorted(names)
    assert where == list(range(len(names)))


def test_layers_become_one_line() -> None:
    names = [f"block_{n}/{part}/kernel" for n in range(12) for part in ("attn", "mlp")]
    assert fold(rows(names)) == [
        ("block_{0..11}/attn/kernel", list(range(0, 24, 2))),
        ("block_{0..11}/mlp/kernel", list(range(1, 24, 2))),
    ]


@pytest.mark.parametrize(
    ("numbers", "braces"),
    [
        ([7], "7"),
        ([0, 1], "{0,1}"),
        ([0, 1, 2], "{0..2}"),
        ([9, 10, 11], "{9..11}"),
        ([0, 2, 5], "{0,2,5}"),
        ([2, 10, 1], "{1,2,10}"),
        (["00", "01", "02"], "{00,01,02}"),
        (["08", "09", "10"], "{08,09,10}"),
        ([0, 1, 3, 4], "{0,1,3,4}"),
    ],
)
def test_ranges_are_written_for_full_ranges_only(
    numbers: list[object], braces: str
) -> None:
    assert folded(blocks(numbers)) == [f"block_{braces}/kernel"]


def test_several_numbers_are_folded_where_they_form_a_grid() -> None:
    names = [f"stage{s}/block{b}" for s in range(2) for b in range(3)]
    assert folded(names) == ["stage{0,1}/block{0..2}"]


def test_what_is_no_grid_is_split_and_nothing_is_made_up() -> None:
    depths = {0: 3, 1: 2, 2: 3}
    names = [f"stage{s}/block{b}" for s, depth in depths.items() for b in range(depth)]
    lines = folded(names)
    assert lines == ["stage0/block{0..2}", "stage1/block{0,1}", "stage2/block{0..2}"]


def test_rows_of_other_facts_are_not_folded_together() -> None:
    given = rows(blocks([0, 1, 3]), "yes") + rows(blocks([2]), "no")
    assert fold(given) == [
        ("block_{0,1,3}/kernel", [0, 1, 2]),
        ("block_2/kernel", [3]),
    ]


def test_names_of_other_texts_are_not_folded_together() -> None:
    assert folded(["a0/b", "a1/c", "b0/b"]) == ["a0/b", "a1/c", "b0/b"]


def test_names_without_numbers_stay_as_they_are() -> None:
    assert folded(["head/kernel", "head/bias"]) == ["head/kernel", "head/bias"]
    assert fold([]) == []


def test_equal_names_are_all_kept_and_promise_no_others() -> None:
    # {"a/b": x, "a": {"b": y}} has two leaves of one name.
    assert sorted(n for _, where in fold(rows(["a", "a"])) for n in where) == [0, 1]
    given = rows(["a0_0", "a0_1", "a1_0", "a1_0"])  # no a1_1
    groups = fold(given)
    assert sorted(n for _, where in groups for n in where) == [0, 1, 2, 3]
    names = {name for name, _ in given}
    assert all(set(expand(name)) <= names for name, _ in groups)


def test_numbers_of_one_value_are_listed_in_one_order_whatever_the_hash_seed() -> None:
    numbers = ["0" * n + "7" for n in range(12)]  # 7, 07, 007, ...
    orders = (numbers, numbers[::-1], sorted(numbers[::2]) + sorted(numbers[1::2]))
    lines = {line for order in orders for line in folded(blocks(order))}
    assert len(lines) == 1
    listed = lines.pop().partition("{")[2].partition("}")[0].split(",")
    assert listed in (numbers, numbers[::-1])


def test_twice_the_rows_are_twice_the_work() -> None:
    class Counted(str):
        hashed = 0

        def __hash__(self) -> int:
            Counted.hashed += 1
            return super().__hash__()

    def hashes(count: int) -> int:
        before = Counted.hashed
        fold([(f"layer_{n}/k", Counted("facts")) for n in range(count)])
        return Counted.hashed - before

    assert hashes(2000) == 2 * hashes(1000) > 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("block_0/kernel", "block_0/kernel"),
        ("größe/重み", "größe/重み"),
        ("a\nb", r"a\nb"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\u202eb\u2028", r"a\u202eb\u2028"),
        ("\x00\x7f\x85", r"\x00\x7f\x85"),
        ("", ""),
    ],
)
def test_control_characters_are_escaped_and_letters_are_not(
    text: str, expected: str
) -> None:
    assert printable(text) == expected
    assert printable(text).isprintable()


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    lines = [("leaf", "n", "because"), ("a/b/c", "1,000", "x"), ("d", "7", "")]
    assert align(lines, right=(1,)).split("\n") == [
        "leaf       n  because",
        "a/b/c  1,000  x",
        "d          7",
    ]
    assert align(lines).split("\n")[2] == "d      7"
