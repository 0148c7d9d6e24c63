# SPDX-License-Identifier: Apache-2.0
"""What separates the tokens of flat names: one separator for each file."""

import time

import pytest

from optax_wd._see.files.separators import paths_of


def paths(*names: str) -> list[str]:
    return ["|".join(path) for path in paths_of(names).values()]


HAIKU = ["mlp/~/linear_0|w", "mlp/~/linear_0|b"]
WEIGHT_NORM = ["a|WeightNorm_0|Dense_0/kernel/scale", "a|b"]
CONVOLUTION = ["conv_(3, 3)|kernel", "conv_(3, 3)|bias"]


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
        (["params['a'][0]", "model.layers[1].w"], ["params|a|0", "model|layers|1|w"]),
        (["['a']['b']", "step"], ["a|b", "step"]),
        (["mlp/~/linear_0,w", "mlp/~/linear_0,b"], HAIKU),
        (["a,WeightNorm_0,Dense_0/kernel/scale", "a,b"], WEIGHT_NORM),
        (["conv_(3, 3)/kernel", "conv_(3, 3)/bias"], CONVOLUTION),
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


def test_where_no_separator_makes_a_tree_torch_is_the_best_guess() -> None:
    # Quantised weights have their tables below them.
    names = ["a.weight", "a.weight.absmax", "b.bias"]
    assert paths(*names) == ["a|weight", "a|weight|absmax", "b|bias"]


def test_names_of_very_many_tokens_take_no_time() -> None:
    names = [f"{n}/" + "a/" * 240 + f"{n}" for n in range(20_000)]
    start = time.process_time()
    assert len(set(paths_of(names).values())) == 20_000
    assert time.process_time() - start < 10


def test_two_names_do_not_become_one() -> None:
    assert paths("a.b,c", "a,b,c", "x,y") == ["a.b|c", "a|b|c", "x|y"]


def test_names_that_only_look_like_keys_are_no_keys() -> None:
    assert paths("w[0,1] 8x0e") == ["w[0|1] 8x0e"]
    assert paths("['a'", "b") == ["['a'", "b"]
