# SPDX-License-Identifier: Apache-2.0
"""Meshes: how arrays lie on them, what that costs, and that it changes no losses."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import optax
import pytest
from example_runs import (
    ROOT,
    TINY,
    finished,
    lines_of,
    losses,
    options,
    stopped_copy,
    words,
)
from example_runs import compiled as compiled
from example_runs import quick as quick
from example_runs import text_file as text_file
from flax import nnx

import optax_wd as wd

launch = importlib.import_module("launch")
mesh = importlib.import_module("mesh")
vit = importlib.import_module("vit")

MESHES = "data=8", "data=2,model=4"
GIVEN = (
    "--heads 4 --batch 8 --steps 20 --save-every 10 --learning-rate 0.01 "
    "--weight-decay 1"
)
VIT = (
    "--width 16 --heads 2 --depth 1 --registers 1 --batch 32 --classes 3 1 0 2 4 "
    "--steps 20 --save-every 20 --learning-rate 0.01"
)
TOLERANCE = 1e-4  # relative, of losses in float32 over 20 steps
RUN_ALL = """
import importlib, json, sys, trainer
from matplotlib.figure import Figure
# Proofs and pictures take long, and have no mesh to do with.
trainer.Trainer.prove = lambda *_: None
trainer.wd.plot_metrics = lambda _: Figure()
for name, argv in json.loads(sys.argv[1]):
    importlib.import_module(name).main(argv)
"""


def told(**changes: Any) -> Any:
    return options.Options(**dict(batch=8) | changes)


# -------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        (None, {"data": 8, "model": 1}),
        ("data=8", {"data": 8, "model": 1}),
        ("model=8", {"data": 1, "model": 8}),
        ("model=2,data=4", {"data": 4, "model": 2}),
    ],
)
def test_axis_that_is_not_named_has_size_1(text: str | None, sizes: Any) -> None:
    found = mesh.mesh_sizes(told(mesh=text), 8)
    assert found == sizes and list(found) == ["data", "model"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data", "--mesh 'data' has 'data'; write data=4,model=2, say"),
        ("", "--mesh '' has ''; write data=4,model=2, say"),
        ("data=0", "has 'data=0'"),
        ("data=-8", "has 'data=-8'"),
        ("data=4,modle=2", "has 'modle=2'"),
        ("data=two", "has 'data=two'"),
        ("data=4;model=2", "has 'data=4;model=2'"),
        (
            "data=4",
            "--mesh 'data=4' takes 4 devices, there are 8; write sizes whose product "
            "is 8, or --devices for fake ones",
        ),
    ],
)
def test_mesh_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(options.InputError) as refused:
        mesh.mesh_sizes(told(mesh=text), 8)
    assert said in str(refused.value)


def test_batch_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(options.InputError) as refused:
        mesh.mesh_sizes(told(batch=24, accumulate=2), 8)
    assert str(refused.value) == (
        "12 examples (--batch 24, --accumulate 2) cannot be split over data=8; "
        "write a --batch that is a multiple of 16"
    )
    assert mesh.mesh_sizes(told(batch=24, mesh="data=2,model=4"), 8)["data"] == 2


# ----------------------------------------------------------------- devices, processes


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What `join` tells JAX, which hears nothing of it."""
    said: list[tuple[Any, ...]] = []
    stub = SimpleNamespace(
        config=SimpleNamespace(update=lambda *told: said.append(told)),
        distributed=SimpleNamespace(initialize=lambda *told, **_: said.append(told)),
        device_count=lambda: 8,
    )
    monkeypatch.setattr(mesh, "jax", stub)
    return said


def test_fake_devices_are_taken_where_there_is_a_gpu_too(joined: Any) -> None:
    mesh.join(told(devices=8))
    assert joined == [("jax_platforms", "cpu"), ("jax_num_cpu_devices", 8)]


def test_processes_are_joined_by_three_variables_that_are_all_there(
    joined: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    instead = "write a whole number into it, or unset the address"
    for name, wrong in (("JAX_NUM_PROCESSES", ""), ("JAX_PROCESS_ID", "one")):
        monkeypatch.setenv(name, wrong)
        with pytest.raises(options.InputError) as refused:
            mesh.join(told())
        said = f"JAX_COORDINATOR_ADDRESS is set, and {name} is {wrong!r}; {instead}"
        assert str(refused.value) == said
        monkeypatch.setenv(name, "2" if name.endswith("PROCESSES") else "1")
    mesh.join(told())
    assert joined == [("127.0.0.1:1", 2, 1)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("lm.py --steps 3", "unrecognized arguments: --steps 3"),
        ("--processes 0 -- lm.py", "--processes is 0, which is not 1 or more"),
        ("--processes 2", "the following arguments are required: command"),
    ],
)
def test_wrong_launch_is_refused_in_one_line(
    given: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        launch.main(given.split())
    instead = "launch.py --processes 2 -- FILE.py and its options"
    found = capsys.readouterr().err
    assert found == f"launch.py: error: {said}; write {instead}\n"
    assert stopped.value.code == 2


# -------------------------------------------------------------------------- layout


def test_heads_are_split_over_model_and_no_bias_or_token_is() -> None:
    def lies(*shape: int) -> Any:
        return np.zeros(shape, np.float32)

    params = {
        "query": {"kernel": lies(8, 4, 2), "bias": lies(4, 2)},
        "out": {"kernel": lies(4, 2, 8), "bias": lies(8)},
        "blocks": {"up": {"kernel": lies(3, 8, 6), "bias": lies(3, 6)}},
        "register_tokens": lies(1, 2, 8),
        "embedding": {"embedding": lies(16, 8)},
        "odd": {"kernel": lies(3, 6)},
    }
    rows, stacked = wd.contains("out", "embedding"), wd.contains("blocks")
    place = mesh.Place(told(mesh="data=2,model=2"), rows, stacked)
    whole = jax.P()
    assert jax.tree.map(lambda x: x.spec, place.of_params(params)) == {
        "query": {"kernel": jax.P("data", "model", None), "bias": whole},
        "out": {"kernel": jax.P("model", None, "data"), "bias": whole},
        "blocks": {"up": {"kernel": jax.P(None, "data", "model"), "bias": whole}},
        "register_tokens": whole,
        "embedding": {"embedding": jax.P("model", "data")},
        "odd": {"kernel": jax.P(None, "model")},  # 3 inputs are not halved
    }


@pytest.mark.parametrize(("parts", "lying"), [(2, "model"), (4, None)])
def test_heads_of_a_vision_transformer_are_split_or_whole(
    parts: int, lying: str | None
) -> None:
    settings = vit.Settings(width=8, heads=2, depth=1)
    task = vit.make_task(settings, vit.read_images(), 10)
    model = nnx.eval_shape(lambda: task.make_model(nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    place = mesh.Place(told(mesh=f"data={4 // parts},model={parts}"), task.rows)
    block = jax.tree.map(lambda x: x.spec, place.of_params(params))["blocks"][0]
    for name in ("query", "key", "value"):
        kernel, bias = jax.P("data", lying, None), jax.P()
        assert block["attention"][name] == {"kernel": kernel, "bias": bias}
    assert block["attention"]["out"]["kernel"] == jax.P(lying, None, "data")
    assert block["mlp"]["up"]["kernel"] == jax.P("data", "model")
    assert block["mlp"]["down"]["kernel"] == jax.P("model", "data")


def test_moments_lie_as_their_parameters_and_all_else_lies_everywhere() -> None:
    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.float32)

    params = {"up": {"kernel": zeros(4, 6), "bias": zeros(6)}}
    place = mesh.Place(told(mesh="data=2,model=2"), wd.nothing)
    lying = place.of_params(params)
    specs = jax.tree.map(lambda x: x.spec, lying)
    assert specs["up"] == {"kernel": jax.P("data", "model"), "bias": jax.P()}
    state = optax.adafactor(1e-3, min_dim_size_to_factor=1).init(params)
    state = {"adam": optax.adam(1e-3).init(params), "factored": state}
    found = place.of_state(state, params)
    moments = found["adam"][0]
    assert moments.mu == moments.nu == lying and moments.count.spec == jax.P()
    # Means over rows have a parameter's path, but not its shape.
    rest = jax.tree.map(lambda x: x.spec, jax.tree.leaves(found["factored"]))
    assert set(rest) == {jax.P()}


def test_each_process_has_a_share_and_arrays_come_back_whole() -> None:
    place = mesh.Place(told(mesh="data=4"), wd.nothing)
    assert place.share(8).tolist() == list(range(8))
    rows = np.arange(16).reshape(8, 2)
    put = place.put({"x": rows}, 8)["x"]
    assert put.sharding.spec == jax.P("data")
    assert {x.data.shape for x in put.addressable_shards} == {(2, 2)}
    gathered = place.gather({"x": put})["x"]
    assert type(gathered) is np.ndarray
    np.testing.assert_array_equal(gathered, rows)


def test_rows_of_a_process_need_not_follow_one_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = mesh.Place(told(mesh="data=4"), wd.nothing)
    four = list(place.mesh.devices.ravel())
    # As where the second and the third device belong to another process.
    index_of = jax.sharding.NamedSharding.devices_indices_map(place.split, (8,))
    mine = {x: index_of[x] for x in (four[0], four[3])}
    monkeypatch.setattr(
        *(jax.NamedSharding, "addressable_devices_indices_map"), lambda *_: mine
    )
    assert place.share(8).tolist() == [0, 1, 6, 7]
    asked: dict[Any, Any] = {}

    def made(shape: Any, sharding: Any, part: Any) -> Any:
        asked.update({x: part(index) for x, index in mine.items()})
        return shape

    monkeypatch.setattr(jax, "make_array_from_callback", made)
    local = 10 * place.share(8)[:, None]
    assert place.put({"x": local}, 8) == {"x": (8, 1)}
    assert [asked[x].ravel().tolist() for x in mine] == [[0, 10], [60, 70]]


# ------------------------------------------------------------------------ 8 devices


def python(env: dict[str, str], devices: int, *arguments: str) -> str:
    """Prints of another process that has so many fake devices."""
    path = f"{ROOT / 'examples'}:{env['PYTHONPATH']}"
    more = dict(JAX_NUM_CPU_DEVICES=str(devices), PYTHONPATH=path)
    return finished(env | more, [sys.executable, "-W", "error", *arguments])[0]


@pytest.fixture(scope="module")
def curves(
    quick: Any, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder of runs, by mesh, and of one on a single device, of both models."""
    folder = tmp_path_factory.mktemp("curves")
    given = [*TINY, *words(GIVEN, "--data", text_file)]
    lines = [("lm", [*given, *words("--mesh", m, "--out", folder / m)]) for m in MESHES]
    split = words(VIT, "--mesh data=4,model=2 --out", folder / "vit")
    python(quick, 8, "-c", RUN_ALL, json.dumps([*lines, ("vit", split)]))
    again = stopped_copy(folder / "data=8", folder / "again", behind=10)
    lines = [
        ("lm", [*given, *words("--out", folder / "alone")]),
        ("lm", [*given, *words("--out", again, "--resume")]),
        ("vit", words(VIT, "--out", folder / "vit-alone")),
    ]
    python(quick, 1, "-c", RUN_ALL, json.dumps(lines))
    return folder


@pytest.mark.parametrize("name", MESHES)
def test_losses_on_8_devices_are_those_on_one(curves: Path, name: str) -> None:
    found, expected = losses(curves / name), losses(curves / "alone")
    assert len(found) == 20 and expected[-1] < 0.95 * expected[0]
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)


def test_vision_transformer_on_8_devices_is_that_on_one(curves: Path) -> None:
    found, expected = losses(curves / "vit"), losses(curves / "vit-alone")
    assert len(found) == 20 and expected[-1] < 0.95 * expected[0]
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)
    ends = (lines_of(curves / x)[-1]["summary"] for x in ("vit", "vit-alone"))
    split, alone = ({k: x[f"held_out_{k}"] for k in ("accuracy", "loss")} for x in ends)
    assert split == pytest.approx(alone, rel=TOLERANCE)


def test_run_of_8_devices_goes_on_with_one(curves: Path) -> None:
    found, expected = losses(curves / "again"), losses(curves / "data=8")
    assert found[:10] == expected[:10] and len(found) == 20
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)


@pytest.fixture(scope="module")
def report(quick: Any, text_file: Path) -> Any:
    # 22 and 22 times the window are sizes that nothing has but a whole batch.
    given = *TINY, *words(GIVEN, "--batch 22 --mesh data=2,model=4 --data", text_file)
    return json.loads(
        python(quick, 8, str(ROOT / "tests/shared/eight_devices.py"), *given)
    )


def test_decay_adds_no_collective_to_a_step(report: Any) -> None:
    found = {decay: step["collectives"] for decay, step in report["steps"].items()}
    assert found["none"]["all-reduce"] > 0 and found["none"]["all-gather"] > 0
    assert found["full"] == found["none"]
    assert found["cautious"] == found["none"]


def test_no_device_computes_the_whole_batch(report: Any) -> None:
    assert {decay: step["whole"] for decay, step in report["steps"].items()} == {
        decay: [] for decay in ("none", "full", "cautious")
    }


def test_kernels_and_moments_are_split_and_vectors_are_everywhere(report: Any) -> None:
    layout = report["layout"]
    up = [x for path, x in layout.items() if path.endswith("blocks/mlp/gate/kernel")]
    out = [x for k, x in layout.items() if k.endswith("blocks/attention/out/kernel")]
    # The parameter, its mean and its mean square.
    assert up == [str(jax.P(None, "data", "model"))] * 3
    assert out == [str(jax.P(None, "model", "data"))] * 3
    assert {x for path, x in layout.items() if "scale" in path} == {str(jax.P())}
    assert layout["params/embedding/embedding"] == str(jax.P("model", "data"))
