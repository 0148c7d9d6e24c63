# SPDX-License-Identifier: Apache-2.0
"""What separates the tokens of flat names: one separator for each file."""

import pytest

from optax_wd._see.files.separators import paths_of


def paths(*names: str) -> list[str]:
    return ["|".join(path) for path in paths_of(names).values()]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.b.weight", "a.c"], ["a|b|weight", "a|c"]),
        (["a/b/kernel", "a/c"], ["a|b|kernel", "a|c"]),
        (["params,Dense_0,kernel", "params,b"], ["params|Dense_0|kernel", "params|b"]),
        (["params|Dense_0|kernel"], ["params|Dense_0|kernel"]),
        (["evoformer/attention//query_w"], ["evoformer|attention|query_w"]),
        (["['params']['emb']['embedding']"], ["params|emb|embedding"]),
        (["['a'][0].kernel", '["a"][1].kernel'], ["a|0|kernel", "a|1|kernel"]),
        ([".mu['a/b']"], ["mu|a|b"]),
        (["a/layers.0/kernel"], ["a|layers|0|kernel"]),
        (["kernel"], ["kernel"]),
        ([], []),
    ],
)
def test_names_are_split_at_the_separator_of_their_file(
    names: list[str], expected: list[str]
) -> None:
    assert paths(*names) == expected


def test_a_separator_that_makes_an_array_a_branch_is_none() -> None:
    # By the dots `a` would be an array and a branch, so these commas separate.
    assert paths("a", "a.b,c", "a.b,d") == ["a", "a.b|c", "a.b|d"]


def test_two_names_do_not_become_one() -> None:
    assert paths("a.b,c", "a,b,c", "x,y") == ["a.b|c", "a|b|c", "x|y"]


def test_names_that_only_look_like_keys_are_no_keys() -> None:
    assert paths("w[0,1] 8x0e") == ["w[0|1] 8x0e"]
    assert paths("['a'", "b") == ["['a'", "b"]
