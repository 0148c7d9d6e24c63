# SPDX-License-Identifier: Apache-2.0
"""The example on modular addition: its data and network, a few steps, wrong input."""

import functools
import importlib
import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import ROOT

grokking = importlib.import_module("grokking")

STEPS, SEEDS = 6, (0, 5)
HALVES = "train", "test"
PNG = b"\x89PNG\r\n\x1a\n"


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def seen_of(lines: list[dict[str, Any]], arm: str, seed: int) -> list[dict[str, float]]:
    """What was seen of one run, over its steps."""
    found = [line[arm].get(f"seed {seed}") for line in lines if arm in line]
    return [figures for figures in found if figures]


# ---------------------------------------------------------------------- data and model


@pytest.mark.parametrize("seed", SEEDS)
def test_every_pair_is_either_learned_or_asked(seed: int) -> None:
    train_Nx2, test_Mx2 = map(np.asarray, grokking.split_pairs(seed))
    assert train_Nx2.shape == (1104, 2) and test_Mx2.shape == (1105, 2)
    assert train_Nx2.dtype == test_Mx2.dtype == np.int32
    both = {(int(a), int(b)) for a, b in np.concatenate([train_Nx2, test_Mx2])}
    assert both == {(a, b) for a in range(47) for b in range(47)}


def test_seeds_split_differently_and_repeat() -> None:
    first, again, other = (np.asarray(grokking.split_pairs(n)[0]) for n in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    # Each number is seen about 23.5 times in each place: a shuffle, not a cut.
    assert min(np.bincount(first[:, place]).min() for place in (0, 1)) > 10
    assert not np.array_equal(first, other)


def test_the_network_starts_with_its_shapes_and_deviations() -> None:
    params = grokking.init_params(0)
    embeddings = [params[place]["embedding"] for place in ("first", "second")]
    kernel = params["answer"]["kernel"]
    assert jax.tree.map(jnp.shape, params) == {
        "first": {"embedding": (47, 192)},
        "second": {"embedding": (47, 192)},
        "answer": {"kernel": (192, 47)},
    }
    # 9024 draws each: the deviation of a mean is 0.0105 s, that of s is 0.0074 s.
    for leaf, expected in zip(
        (*embeddings, kernel), (0.5, 0.5, 1.5 / math.sqrt(192)), strict=True
    ):
        assert float(jnp.std(leaf)) == pytest.approx(expected, rel=0.025)
        assert abs(float(jnp.mean(leaf))) < 0.04 * expected
    first, second = map(np.asarray, embeddings)
    assert not np.array_equal(first, second)
    other = grokking.init_params(1)["answer"]["kernel"]
    assert not np.array_equal(np.asarray(kernel), np.asarray(other))


def test_the_network_and_its_losses_are_those_of_numpy() -> None:
    params = jax.tree.map(np.asarray, grokking.init_params(3))
    pairs = np.asarray([[0, 0], [46, 46], [3, 45], [20, 7]])
    z = params["first"]["embedding"][pairs[:, 0]]
    z = z + params["second"]["embedding"][pairs[:, 1]]
    logits = np.maximum(z, 0.0) @ params["answer"]["kernel"]
    found = grokking.logits_of(params, jnp.asarray(pairs))
    np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-5)

    target = np.eye(47)[[0, 45, 1, 27]]
    chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = {
        "squared-error": np.mean((logits - target) ** 2),
        "cross-entropy": -np.mean(np.log((chance * target).sum(1))),
    }
    for loss, value in expected.items():
        loss_found = grokking.mean_loss(params, jnp.asarray(pairs), loss)
        assert float(loss_found) == pytest.approx(value, rel=1e-5)


def test_accuracy_is_the_share_of_pairs_that_are_right() -> None:
    params, (train_Nx2, _) = grokking.init_params(0), grokking.split_pairs(0)
    guesses = np.asarray(grokking.logits_of(params, train_Nx2)).argmax(1)
    right = guesses == np.asarray(train_Nx2).sum(1) % 47
    assert 0 < right.mean() < 0.1  # by chance, one in 47
    found = grokking.accuracy(params, train_Nx2)
    assert float(found) == pytest.approx(right.mean(), rel=1e-6)
    by_guess = jnp.asarray(np.flatnonzero(right)), jnp.asarray(np.flatnonzero(~right))
    assert [float(grokking.accuracy(params, train_Nx2[n])) for n in by_guess] == [1, 0]


# ----------------------------------------------------------------------------- the arms


@functools.cache
def start() -> tuple[Any, Any]:
    """Weights, and their gradients in the first step."""
    params, (train_Nx2, _) = grokking.init_params(0), grokking.split_pairs(0)
    gradient = jax.jit(jax.grad(grokking.mean_loss), static_argnums=2)
    return params, gradient(params, train_Nx2, "squared-error")


@functools.cache
def first_update(arm: str) -> tuple[Any, Any]:
    """The updates and the state of an arm after the first step."""
    params, grads = start()
    tx = grokking.make_optimizer(arm)
    return jax.jit(tx.update)(grads, tx.init(params), params)


def first_step(arm: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one embedding the weights, Adam's direction, and the step of an arm."""
    trees = *start(), first_update(arm)[0]
    x, g, step = (np.asarray(t["first"]["embedding"]) for t in trees)
    return x, g / (np.abs(g) + 1e-8), step


@pytest.mark.parametrize("arm", ["none", "full", "cautious", "random"])
def test_an_arm_decays_where_it_should(arm: str) -> None:
    x, u, step = first_step(arm)
    decay = -step / 1e-3 - u
    large = np.abs(x) > 0.01  # where the decay can be told from none
    is_open = np.isclose(decay, x, atol=1e-3)[large]
    is_shut = np.isclose(decay, 0.0, atol=1e-3)[large]
    assert np.all(is_open ^ is_shut)
    agrees = (u * x >= 0)[large]
    if arm == "random":  # 8880 coordinates: the deviation of a share is 0.005
        for among in (is_open[agrees], is_open[~agrees]):
            assert np.mean(among) == pytest.approx(0.5, abs=0.03)
    else:
        expected = {"none": False, "full": True, "cautious": agrees}[arm]
        np.testing.assert_array_equal(is_open, expected)


@pytest.mark.parametrize("arm", grokking.ARMS)
def test_every_arm_has_adams_betas_of_the_experiment(arm: str) -> None:
    moments = (optax.tree.get(first_update(arm)[1], name) for name in ("mu", "nu"))
    trees = start()[1], *moments
    g, mu, nu = (np.asarray(t["answer"]["kernel"]) for t in trees)
    np.testing.assert_allclose(mu, (1 - 0.9) * g, rtol=1e-5)
    np.testing.assert_allclose(nu, (1 - 0.98) * g**2, rtol=1e-5)


def test_the_pinned_arm_turns_each_tensor_and_keeps_its_norm() -> None:
    x, u, step = first_step("pinned")
    radius = np.linalg.norm(x)
    y = x - 1e-3 * radius * u / np.linalg.norm(u)
    expected = radius * y / np.linalg.norm(y)
    np.testing.assert_allclose(x + step, expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------- a few steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a few steps of every arm, with two seeds."""
    folder = tmp_path_factory.mktemp("runs") / "few"
    seeds = map(str, SEEDS)
    options = ["--steps", str(STEPS), "--seeds", *seeds, "--out", str(folder)]
    grokking.main(options)
    return folder


@pytest.mark.parametrize("arm", grokking.ARMS)
def test_a_run_is_written_down_and_learns(folder: Path, arm: str) -> None:
    lines = lines_of(folder)
    names = {"loss", "train_accuracy", "test_accuracy", "weight_rms", "open_fraction"}
    for seed in SEEDS:
        seen = seen_of(lines, arm, seed)
        assert len(seen) == STEPS
        assert all(set(figures) == names for figures in seen)
        assert all(math.isfinite(x) for figures in seen for x in figures.values())
        assert all(0 <= x[f"{half}_accuracy"] <= 1 for x in seen for half in HALVES)
        assert all(0 < x["open_fraction"] < 1 for x in seen)
        assert seen[-1]["loss"] < 0.97 * seen[0]["loss"]
    assert [line["step"] for line in lines] == 10 * list(range(1, STEPS + 1))
    assert seen_of(lines, arm, SEEDS[0]) != seen_of(lines, arm, SEEDS[1])


def test_the_more_an_arm_decays_the_smaller_its_weights(folder: Path) -> None:
    lines = lines_of(folder)
    rms = {arm: seen_of(lines, arm, 0)[-1]["weight_rms"] for arm in grokking.ARMS}
    assert rms["full"] < rms["cautious"] < rms["none"]
    assert rms["full"] < rms["random"] < rms["none"]
    start = jax.tree.leaves(grokking.init_params(0))
    square = np.mean(np.concatenate([np.ravel(x) for x in start]) ** 2)
    assert rms["pinned"] == pytest.approx(math.sqrt(square), rel=1e-5)


def test_a_picture_is_drawn(folder: Path) -> None:
    picture = (folder / "curves.png").read_bytes()
    assert picture.startswith(PNG) and len(picture) > 20_000


def test_full_is_cross_entropy_and_three_seeds_but_for_what_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grokking, "draw", lambda *_: None)
    given = ["--full", "--steps", "2", "--arms", "full", "--out", str(tmp_path)]
    grokking.main(given)
    lines = lines_of(tmp_path)
    assert [len(seen_of(lines, "full", seed)) for seed in (0, 1, 2)] == [2, 2, 2]
    assert {name for line in lines for name in line} == {"step", "full"}
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "cross-entropy, 2 steps"
    assert [row.split()[:3] for row in table[2:5]] == [
        ["full", str(seed), "never"] for seed in (0, 1, 2)
    ]
    assert table[5] == f"results: {tmp_path}/metrics.jsonl, {tmp_path}/curves.png"
    # The loss is the cross-entropy at the weights of the start, in nats.
    start = grokking.init_params(1), grokking.split_pairs(1)[0], "cross-entropy"
    expected = float(grokking.mean_loss(*start))
    assert seen_of(lines, "full", 1)[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_defaults_are_a_short_and_a_full_experiment() -> None:
    quick, full = grokking.parse([]), grokking.parse(["--full"])
    assert (quick.loss, quick.steps, quick.seeds) == ("squared-error", 12_000, [0])
    assert (full.loss, full.steps, full.seeds) == ("cross-entropy", 24_000, [0, 1, 2])
    assert quick.arms == full.arms == grokking.ARMS


@pytest.mark.parametrize(
    ("steps", "seen"),
    [
        (1, [1]),
        (250, list(range(2, 251, 2))),
        (12_050, [*range(100, 12_001, 100), 12_050]),
    ],
    ids=["one", "a chunk of two", "a shorter last chunk"],
)
def test_long_runs_are_seen_about_a_hundred_times_and_at_the_end(
    steps: int, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def chunk(tx: Any, loss: str, count: int, carry: Any, pairs: Any) -> Any:
        trained.append(count)
        return carry, {}

    monkeypatch.setattr(grokking, "train_chunk", chunk)
    tx = grokking.make_optimizer("none")
    assert [now for now, _ in grokking.train(tx, "squared-error", steps, 0)] == seen
    assert sum(trained) == steps


# ------------------------------------------------------------------- what was measured


def measured() -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """Of each loss and seed what each arm came to."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for run in json.loads((ROOT / "benchmarks" / "grokking.json").read_text())["runs"]:
        for arm, seeds in run["arms"].items():
            for seed, figures in seeds.items():
                of_seed = found.setdefault(
                    (run["loss"], seed.removeprefix("seed ")), {}
                )
                of_seed[arm] = figures
    return found


def test_the_table_of_the_example_is_the_one_that_is_measured() -> None:
    lines = [re.split(" {2,}", x.strip()) for x in str(grokking.__doc__).split("\n")]
    (first,) = (n for n, line in enumerate(lines) if line[0] == "loss")
    names = [{"random half": "random"}.get(name, name) for name in lines[first]]
    assert names == ["loss", "steps", "seed", *grokking.ARMS]
    rows = lines[first + 1 : lines.index([""], first)]
    runs = measured()
    assert [(r[0].replace(" error", "-error"), r[2]) for r in rows] == list(runs)
    for row, arms in zip(rows, runs.values(), strict=True):
        for arm, shown in zip(grokking.ARMS, row[3:], strict=True):
            if shown == "-":
                assert arm not in arms
                continue
            understood = arms[arm]["understood"]
            assert shown == ("never" if understood is None else str(understood))
            assert arms[arm]["step"] == int(row[1].replace(" ", ""))


RANGES = {  # what the docstring says of cross-entropy: arm, figure, lowest, highest
    "3 to 4% of the coordinates are open": ("cautious", "open_fraction", 0.03, 0.04),
    "RMS is 1.43 to 1.50": ("cautious", "weight_rms", 1.43, 1.50),
    "none 1.82 to 1.86": ("none", "weight_rms", 1.82, 1.86),
    "full 0.50 to 0.51": ("full", "weight_rms", 0.50, 0.51),
    "under 1% of the other sums": ("cautious", "test_accuracy", 0.0, 0.00999),
    "4 to 10% of them right": ("pinned", "test_accuracy", 0.04, 0.10),
}


@pytest.mark.parametrize("text", RANGES)
def test_each_figure_that_the_example_tells_is_measured(text: str) -> None:
    assert text in " ".join(str(grokking.__doc__).split())
    arm, name, low, high = RANGES[text]
    found = [a[arm][name] for (loss, _), a in measured().items() if "cross" in loss]
    digits = 2 if low >= 0.03 else 5
    assert len(found) == 3
    assert low <= round(min(found), digits) <= round(max(found), digits) <= high


# ------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--steps 0", "--steps [0]: write numbers from 1 to 2147483647"),
        ("--steps 2147483648", "--steps [2147483648]: write numbers from 1 to"),
        ("--steps many", "invalid int value: 'many'"),
        ("--seeds 1 -1", "--seeds [1, -1]: write numbers from 0 to 2147483647"),
        ("--seeds", "--seeds: expected at least one argument"),
        ("--arms half", "invalid choice: 'half'"),
        ("--loss hinge", "invalid choice: 'hinge'"),
        ("--sped 3", "unrecognized arguments: --sped 3 (see --help)"),
    ],
)
def test_wrong_option_is_refused_in_one_line(
    options: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refusal(capsys, *options.split())
    assert list(tmp_path.iterdir()) == []


def refusal(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line that the program ends with, before any training."""
    with pytest.raises(SystemExit) as stopped:
        grokking.main(options)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("grokking.py: error: ")
    return err


def test_results_are_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").write_text("precious")
    error = refusal(capsys, "--out", str(tmp_path))
    assert f"--out '{tmp_path}' is in use; write another" in error
    assert (tmp_path / "metrics.jsonl").read_text() == "precious"


def test_a_file_in_the_place_of_the_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("precious")
    error = refusal(capsys, "--out", str(tmp_path / "file"))
    assert "write another --out" in error
    assert (tmp_path / "file").read_text() == "precious"


def test_an_interrupt_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(grokking, "train", interrupted)
    with pytest.raises(SystemExit) as stopped:
        grokking.main(["--out", str(tmp_path)])
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "grokking.py: interrupted\n"
