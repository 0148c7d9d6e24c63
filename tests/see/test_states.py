# SPDX-License-Identifier: Apache-2.0
"""Parameters among what a whole train state holds, on the command line."""

import json
import pathlib
import re
import time
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState

from optax_wd import __main__ as command
from optax_wd._see.files import states

LEFT = (
    "left out, as no parameters: opt_state (2 copies of the parameters, 5 arrays); "
    "--all shows them"
)
COUNTERS = ("step", "count", "key")


def found(*paths: str) -> Any:
    """Arrays by path: counters are whole numbers, each other name has its own shape."""
    names = sorted({path.split("/")[-1] for path in paths})
    return {
        path: jax.ShapeDtypeStruct((), "int32")
        if path.split("/")[-1] in COUNTERS
        else jax.ShapeDtypeStruct((2, 3 + names.index(path.split("/")[-1])), "float32")
        for path in paths
    }


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
    assert f"\n{LEFT}\n" in out
    data = json.loads(shown(capsys, "describe", state, "--json"))
    assert [row["path"] for row in data["rows"]] == [
        "params/params/mlp/bias",
        "params/params/mlp/kernel",
    ]
    assert data["notes"] == [LEFT]


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
    out, err = capsys.readouterr()
    assert "warning: every leaf decays" in out
    assert re.fullmatch(
        r"optax_wd: \d warnings?, and --strict was given\n", err
    )  # of biases too, perhaps
    assert command.main(["diff", state, state, "--strict"]) == 2
    assert "unrecognized arguments: --strict" in capsys.readouterr().err


def test_diff_names_what_it_leaves_out(state: str, capsys: Any) -> None:
    assert shown(capsys, "diff", state, state) == (
        f"no difference\n{state}: {LEFT}\n{state}: {LEFT}\n"
    )
    data = json.loads(shown(capsys, "diff", state, state, "--json"))
    assert data["notes"] == [f"{state}: {LEFT}"] * 2
    assert "left out" not in shown(capsys, "diff", state, state, "--all")


def test_help_says_what_is_left_out(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "\n    python -m optax_wd diff BEFORE AFTER [--rule EXPR" in out
    assert "what is left out is named; `--all`\nshows everything, `--only PATH`" in out


def test_the_version_is_printed(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--version"])
    assert stopped.value.code == 0
    assert re.fullmatch(r"optax_wd \d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("option", "given", "advice"),
    [
        ("--recipe", "hf_trainer", "recipes.hf_trainer(contains('LayerNorm_*'))"),
        ("--recipe", "detectron2", "recipes.detectron2(contains('*Norm_*'))"),
        ("--rule", "~owned_by('LayerNorm')", "contains('LayerNorm_*')"),
        ("--rule", "declared('weight_decay')", "named('scale')"),
    ],
)
def test_a_rule_that_asks_the_model_says_what_a_file_can_have(
    option: str, given: str, advice: str, state: str, capsys: Any
) -> None:
    assert command.main(["describe", state, option, given]) == 2
    told = capsys.readouterr().err
    assert f'a file does not have; go by names: --rule "{advice}", with' in told
    assert "mask_of" not in told and told.count("\n") == 1
    assert command.main(["describe", state, "--rule", advice]) == 0


def adam(top: str, *names: str) -> list[str]:
    moments = [f"{top}/0/{moment}/{name}" for moment in ("mu", "nu") for name in names]
    return [f"{top}/0/count", *moments, f"{top}/2/count"]


WHOLE = ["params/w", "params/b"]


@pytest.mark.parametrize(
    ("paths", "left"),
    [
        ([*WHOLE, *adam("opt_state", "w", "b"), "step"], {"opt_state": 2, "step": 0}),
        (["s/model/w", *adam("s/optimizer", "w")], {"s/optimizer": 2}),
        ([*WHOLE, *adam("state", "w", "b")], {"state": 2}),
        ([*WHOLE, *adam("opt_state", "w")], {"opt_state": 0}),  # b is masked
        (["0/w", *adam("1", "w")], {"1": 2}),
        (["w", "d/b", *adam("adam", "w", "d/b")], {"adam": 2}),
        (["params/w", "mu/w", "nu/w", "count"], {"mu": 1, "nu": 1, "count": 0}),
        (["params/w", "trace/w", "count"], {"trace": 1, "count": 0}),
        (["0/w", "1/0/trace/w"], {"1": 1}),
        (["params/w", "optimizer/v_row/w", "rng/key"], {"optimizer": 1, "rng": 0}),
        (
            ["a/params/w", "a/opt_state/0/mu/w", "b/params/b", "b/opt_state/count"],
            {"a/opt_state": 1, "b/opt_state": 0},
        ),
        (
            [*WHOLE, "ema_params/w", "ema_params/b", "batch_stats/m", "opt_state/x"],
            {"ema_params": 1, "opt_state": 0},
        ),
        (["params/w", "step"], {"step": 0}),
        (["optimizer/target/w", "optimizer/state/param_states/w/m"], None),
    ],
    ids=helpers.label,
)
def test_what_is_no_parameter_of_a_state_is_left_out_and_named(
    paths: list[str], left: dict[str, int] | None
) -> None:
    rest, out = states.parameters(found(*paths))
    if left is None:
        left = {"optimizer/state": 0}
    assert {name: branch.copies for name, branch in out.items()} == left
    inside = [path for path in paths for name in left if f"{path}/".startswith(name)]
    assert [path for path in paths if path not in rest] == inside
    assert len(rest) + sum(branch.arrays for branch in out.values()) == len(paths)


@pytest.mark.parametrize(
    "paths",
    [
        ["a"],
        ["step/w", "params/a"],
        ["params/w", "state/w"],  # of one shape
        ["params/w", "params/params/w", "params/state/b"],
        ["params/w", "state/ema/average", "state/ema/count"],  # as of Haiku
        ["heads/mu/w", "heads/nu/w", "heads/sigma/w"],  # of a distribution
        ["encoder/mu/w", "encoder/mu/b", "encoder/logvar/w", "encoder/logvar/b"],
        ["layers/0/w", "layers/1/mu/w", "layers/2/optimizer/w"],
        ["0/w", "1/linear/w", "1/rngs/count", "1/rngs/key"],  # with dropout
        ["0/w", "0/b", "1/trace/w"],
        ["actor_params/w", "target_params/w"],  # without an optimizer
        [*adam("opt_state", "w")],  # nothing else is there
        [*adam("0", "w"), "1/count"],
        ["opt_state/w", "step"],
    ],
    ids=helpers.label,
)
def test_of_what_is_no_train_state_all_is_shown(paths: list[str]) -> None:
    given = found(*paths)
    assert states.parameters(given) == (given, {})


@pytest.mark.parametrize(
    "tx",
    [
        optax.masked(optax.adam(0.1), {"d": {"kernel": True, "bias": False}}),
        optax.sgd(0.1, momentum=0.9),
        optax.lion(0.1),
        optax.adafactor(0.1),
        optax.rmsprop(0.1),
        optax.amsgrad(0.1),
        optax.lbfgs(),
        optax.contrib.muon(0.1),
        optax.contrib.schedule_free_adamw(0.1),
        optax.inject_hyperparams(optax.adamw)(0.1),
        optax.MultiSteps(optax.adam(0.1), 2),
        optax.chain(optax.adam(optax.linear_schedule(1.0, 0.0, 9)), optax.ema(0.9)),
    ],
    ids=[
        *("masked", "sgd", "lion", "adafactor", "rmsprop", "amsgrad", "lbfgs", "muon"),
        *("schedule-free", "inject", "MultiSteps", "schedule"),
    ],
)
def test_the_states_of_optax_are_known_without_a_name(
    tx: Any, tmp_path: pathlib.Path, capsys: Any
) -> None:
    params = {"d": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}}
    file = tmp_path / "pair.msgpack"
    file.write_bytes(serialization.to_bytes((params, tx.init(params))))
    out = shown(capsys, "describe", str(file))
    assert "32 of 40 parameters" in out
    assert re.search(r"left out, as no parameters: 1 \(.*\); --all shows them", out)


def test_what_is_left_out_is_one_line_however_much_it_is() -> None:
    left = {f"{n}/opt_state": states.Branch(n, 1) for n in range(1, 8)}
    assert states.told(left) == (
        "left out, as no parameters: 1/opt_state (1 copy of the parameters, 1 array), "
        + "".join(
            f"{n}/opt_state (1 copy of the parameters, {n} arrays), " for n in (2, 3, 4)
        )
        + "5/opt_state (1 copy of the parameters, 5 arrays) and 2 more; "
        "--all shows them"
    )


def test_many_nodes_that_look_like_states_take_no_time() -> None:
    paths = [f"n{n}/{x}" for n in range(20_000) for x in ("mu/w", "count")]
    start = time.process_time()
    assert states.parameters(found(*paths, "w"))[1] == {}
    assert time.process_time() - start < 20


@pytest.mark.parametrize("form", ["one item", "items", "nnx"])
def test_a_state_of_orbax_is_known(
    form: str, tmp_path: pathlib.Path, capsys: Any
) -> None:
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)
    state: dict[str, Any] = {
        "model": nnx.state(model),
        "optimizer": nnx.state(optimizer),
    }
    if form != "nnx":
        state = jax.tree.map(jnp.asarray, nnx.to_pure_dict(nnx.State(state)))
    if form == "items":
        items = {name: ocp.args.StandardSave(item) for name, item in state.items()}
        with ocp.CheckpointManager(tmp_path / "run", item_names=(*items,)) as manager:
            manager.save(3, args=ocp.args.Composite(**items))
    else:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "run", state)
    out = shown(capsys, "describe", str(tmp_path / "run"))
    assert "of 2 tensors" in out and "model/kernel" in out
    assert re.search(
        r"left out, as no parameters: optimizer \(2 copies of the parameters, \d arrays"
        r"\); --all shows them",
        out,
    )


def test_a_branch_is_whole_tokens() -> None:
    assert list(states.subtree(found("a/b", "ab/c"), "a")) == ["a/b"]
    with pytest.raises(states.CheckpointError, match="at the top are 'a', 'ab'$"):
        states.subtree(found("a/b", "ab/c"), "b")
