# SPDX-License-Identifier: Apache-2.0
"""Parameters among what a whole train state holds, on the command line."""

import json
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import optax
import pytest
from flax import serialization
from flax.training.train_state import TrainState

from optax_wd import __main__ as command
from optax_wd._see.files import states

ARRAY: Any = object()


def found(*paths: str) -> Any:
    return dict.fromkeys(paths, ARRAY)


@pytest.fixture
def state(tmp_path: pathlib.Path) -> str:
    params = {"params": {"mlp": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}}}
    tx = optax.adamw(1e-3)
    train = TrainState.create(apply_fn=None, params=params, tx=tx)  # pyright: ignore
    file = tmp_path / "state.msgpack"
    file.write_bytes(serialization.to_bytes(train))
    return str(file)


def shown(capsys: Any, *arguments: str) -> str:
    assert command.main(arguments) == 0
    return capsys.readouterr().out


def test_of_a_train_state_parameters_are_counted_and_the_rest_is_named(
    state: str, capsys: Any
) -> None:
    out = shown(capsys, "describe", state)
    assert re.search(r"decays +1 of 2 tensors +32 of 40 parameters", out)
    assert "left out, as no parameters: opt_state (5 arrays); --all shows them" in out
    data = json.loads(shown(capsys, "describe", state, "--json"))
    assert [row["path"] for row in data["rows"]] == [
        "params/params/mlp/bias",
        "params/params/mlp/kernel",
    ]
    assert data["notes"] == [
        "left out, as no parameters: opt_state (5 arrays); --all shows them"
    ]


def test_all_shows_everything_and_only_a_subtree(state: str, capsys: Any) -> None:
    assert "of 7 tensors" in shown(capsys, "describe", state, "--all")
    out = shown(capsys, "describe", state, "--only", "opt_state/0/mu")
    assert "of 2 tensors" in out and "left out" not in out
    assert command.main(["describe", state, "--only", "nowhere"]) == 2
    assert capsys.readouterr().err == (
        "optax_wd: there is nothing below 'nowhere'; at the top are 'params', "
        "'opt_state'\n"
    )


def test_strict_exits_with_1_for_a_warning(state: str, capsys: Any) -> None:
    assert command.main(["describe", state, "--strict"]) == 0
    assert command.main(["describe", state, "--strict", "--rule", "everything"]) == 1
    assert "warning: every leaf decays" in capsys.readouterr().out


def test_the_version_is_printed(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--version"])
    assert stopped.value.code == 0
    assert re.fullmatch(r"optax_wd \d+\.\d+\S*\n", capsys.readouterr().out)


def test_a_recipe_that_asks_for_types_says_what_a_file_can_have(
    state: str, capsys: Any
) -> None:
    assert command.main(["describe", state, "--recipe", "hf_trainer"]) == 2
    told = capsys.readouterr().err
    assert "which a file does not have" in told and "mask_of" not in told
    rule = "recipes.hf_trainer(contains('mlp'))"
    assert command.main(["describe", state, "--rule", rule]) == 0


@pytest.mark.parametrize(
    ("paths", "kept", "left"),
    [
        (["params/a", "opt_state/0/mu/a", "step"], ["params/a"], ["opt_state", "step"]),
        (["s/model/a", "s/optimizer/mu/a"], ["s/model/a"], ["s/optimizer"]),
        (
            ["params/a", "batch_stats/m", "opt_state/x"],
            ["params/a", "batch_stats/m"],
            1,
        ),
        (["step/kernel", "params/a"], ["step/kernel", "params/a"], []),
        (["opt_state/a"], ["opt_state/a"], []),
        (["a"], ["a"], []),
    ],
)
def test_only_what_stands_beside_an_optimizer_is_left_out(
    paths: list[str], kept: list[str], left: Any
) -> None:
    rest, out = states.parameters(found(*paths))
    assert list(rest) == kept
    assert list(out) == (["opt_state"] if left == 1 else left)
    assert len(rest) + sum(out.values()) == len(paths)


def test_a_branch_is_whole_tokens() -> None:
    assert list(states.subtree(found("a/b", "ab/c"), "a")) == ["a/b"]
    with pytest.raises(states.CheckpointError, match="at the top are 'a', 'ab'$"):
        states.subtree(found("a/b", "ab/c"), "b")
