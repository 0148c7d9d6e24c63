# SPDX-License-Identifier: Apache-2.0
"""The language model: whole runs on a small text, wrong input, and its parts."""

import importlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_runs import (
    PNG,
    TINY,
    command,
    curve,
    ending,
    finished,
    lines_of,
    lm,
    logged,
    steps_kept,
    train,
)
from example_runs import compiled as compiled
from example_runs import quick as quick
from example_runs import text_file as text_file
from flax import nnx

data = importlib.import_module("data")

ARMS = "none", "full", "cautious"
TRAINED = "--steps 60 --learning-rate 0.02 --weight-decay 2".split()


def small_settings(**changes: Any) -> Any:
    sizes = dict(width=8, heads=2, layers=2, window=16, batch=4, steps=5)
    return lm.Settings(**sizes | changes)


def small_model(seed: int = 0, **changes: Any) -> Any:
    return lm.LanguageModel(small_settings(**changes), 256, nnx.Rngs(seed))


@nnx.jit
def jitted(module: Any, *inputs: jax.Array) -> jax.Array:
    return module(*inputs)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    status, said = ending(capsys, *arguments)
    assert status == 2
    return said


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*_: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(lm, "fit", fit)


@pytest.fixture(scope="module")
def runs(
    quick: Any, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, str]]:
    """For each kind of decay, the folder and the printed text of a whole run."""
    results = {}
    for arm in ARMS:
        folder = tmp_path_factory.mktemp("runs") / arm
        given = *TRAINED, "--data", text_file, "--out", folder, "--decay", arm
        results[arm] = folder, train(*given)
    return results


# ---------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("arm", ARMS)
def test_run_writes_metrics_of_increasing_steps(runs: Any, arm: str) -> None:
    *steps, summary = lines_of(runs[arm][0])
    assert [line["step"] for line in steps] == list(range(1, 61))
    always = {"step", "loss", "weight_rms", "open_fraction", "shrink", "seconds"}
    always |= {"learning_rate", "gradient_norm"}
    sometimes = {"bits_per_byte", "held_out_loss"}
    for line in steps:
        pace = {"examples_per_second"} if line["step"] > 1 else set()  # 1 compiles
        assert set(line) - sometimes == always | pace
        assert line["weight_rms"] > 0 and line["gradient_norm"] > 0
        assert sometimes <= set(line) or not sometimes & set(line)
    rates = [line["learning_rate"] for line in steps]
    assert rates[0] == pytest.approx(0.005)  # a quarter: 3 of 60 steps warm up
    assert rates[3] == max(rates) == pytest.approx(0.02)
    nats = [x["held_out_loss"] for x in steps if "held_out_loss" in x]
    assert nats[-1] / np.log(2) == pytest.approx(steps[-1]["bits_per_byte"])
    judged = [line["step"] for line in steps if "bits_per_byte" in line]
    assert judged == [10, 12, 20, 24, 30, 36, 40, 48, 50, 60]
    seconds = [line["seconds"] for line in steps]
    assert seconds == sorted(seconds)
    assert summary["summary"]["decay"] == arm
    assert summary["summary"]["bits_per_byte"] == steps[-1]["bits_per_byte"]


def test_what_decayed_is_all_for_full_some_for_cautious_and_nothing_for_none(
    runs: Any,
) -> None:
    open_ = {arm: [x["open_fraction"] for x in logged(runs[arm][0])] for arm in ARMS}
    assert set(open_["full"]) == {1.0} and set(open_["none"]) == {0.0}
    assert all(0.3 < fraction < 0.95 for fraction in open_["cautious"])


@pytest.mark.parametrize("arm", ARMS)
def test_run_draws_pictures(runs: Any, arm: str) -> None:
    found = {path.name: path.read_bytes() for path in runs[arm][0].glob("*.png")}
    assert sorted(found) == ["curves.png", "decay.png"][: 1 if arm == "none" else 2]
    for picture in found.values():
        assert picture.startswith(PNG) and len(picture) > 10_000


@pytest.mark.parametrize("arm", ARMS)
def test_run_prints_what_decays_first_and_the_comparison_last(
    runs: Any, arm: str
) -> None:
    folder, printed = runs[arm]
    lines = printed.splitlines()
    if arm == "none":
        assert lines[0] == "measured: nothing decays"
    else:
        assert lines[0].startswith("mask: standard_with(stacked=contains('blocks'))")
        assert any("blocks/mlp/up/kernel" in line and " yes " in line for line in lines)
        assert "measured: exactly these decay" in lines
    last = logged(folder)[-1]
    assert f"results: {folder}/metrics.jsonl, {folder}/curves.png" in lines
    table = printed[printed.index(f"{arm} weight decay after 60 steps") :]
    assert f"model         {last['bits_per_byte']:.3f} bits per byte" in table
    assert f"weight RMS    {last['weight_rms']:.4f} " in table
    assert f"decayed       {last['open_fraction']:.3f} " in table


def test_run_prints_plain_progress_where_there_is_no_terminal(runs: Any) -> None:
    progress = [x for x in runs["full"][1].splitlines() if x.startswith("step ")]
    assert progress[0].startswith("step 10/60  loss ")
    assert "steps/s" in progress[0] and progress[-1].endswith("0 s left")


def test_model_learns_more_than_byte_frequencies(runs: Any, text_file: Path) -> None:
    unigram = data.unigram_bits(data.read_tokens([str(text_file)], window=16))
    for arm in ARMS:
        assert lines_of(runs[arm][0])[-1]["summary"]["bits_per_byte"] < unigram - 0.5


def test_cautious_decay_leaves_weights_between_those_of_full_and_none(
    runs: Any,
) -> None:
    rms = {arm: logged(runs[arm][0])[-1]["weight_rms"] for arm in ARMS}
    assert rms["full"] < 0.9 * rms["cautious"]
    assert rms["cautious"] < 0.9 * rms["none"]


def test_command_line_repeats_the_losses_in_a_fresh_folder_without_warnings(
    runs: Any, quick: Any, text_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs/lm").mkdir(parents=True)
    given = command(*TINY, *TRAINED, "--data", text_file, "--devices", 4)
    out, err = finished(quick, given, cwd=tmp_path)
    assert err == ""
    assert "results: runs/lm-2/metrics.jsonl, runs/lm-2/curves.png\n" in out
    assert list((tmp_path / "runs/lm").iterdir()) == []
    assert curve(tmp_path / "runs/lm-2") == curve(runs["cautious"][0])


@pytest.fixture
def interruptible() -> Iterator[None]:
    # A process started in the background of a script ignores SIGINT, and so would its
    # children, but for this.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupt_keeps_what_was_logged_of_a_run_with_another_seed(
    quick: Any, text_file: Path, tmp_path: Path, interruptible: None
) -> None:
    folder = tmp_path / "run"
    given = "--steps 20000 --save-every 200 --seed 1", "--data", text_file
    given = *given, "--out", folder
    with subprocess.Popen(
        command(*TINY, *given),
        env=quick,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 300
        metrics = folder / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("\n") < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        seen = metrics.read_text()
        assert seen.count("\n") < 20  # each came by itself, not in a bufferful
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    kept = f"the last checkpoint is {folder}/checkpoints/{max(steps_kept(folder))}"
    said = f"{kept}; write --resume and the same --out to go on"
    assert err == f"lm.py: interrupted; {said}\n"
    assert f"results: {metrics}, {folder}/curves.png\n" in out
    assert metrics.read_text().startswith(seen[: seen.rindex("\n") + 1])
    steps = [line["step"] for line in lines_of(folder)]
    assert steps[:3] == [1, 200, 400] and steps == sorted(steps)
    # The first loss is that of the weights and the data of the seed.
    train_N = data.read_tokens([str(text_file)], window=16).train_N
    batch = next(iter(data.batches(data.token_windows(train_N, 16, seed=1), 4)))
    first = lines_of(folder)[0]["loss"]
    for seed, same in ((1, True), (0, False)):
        found = nnx.jit(lm.score)(small_model(seed), batch)["loss"].mean()
        assert (float(found) == pytest.approx(first, rel=1e-4)) == same
    assert (folder / "curves.png").read_bytes().startswith(PNG)


# --------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--weight-decay -0.1", "--weight-decay is -0.1; write 0, or 1e-6 to 1e6"),
        ("--weight-decay nan", "--weight-decay is nan"),
        ("--weight-decay inf", "--weight-decay is inf"),
        (
            "--weight-decay heavy",
            "invalid float value: 'heavy'; write what lm.py --help",
        ),
        ("--learning-rate -1", "--learning-rate is -1.0; write 1e-9 to 1e3"),
        ("--learning-rate 0", "--learning-rate is 0.0"),
        ("--learning-rate nan", "--learning-rate is nan"),
        ("--clip -1", "--clip is -1.0; write 0, or 1e-6 to 1e6"),
        ("--steps 0", "--steps is 0; write a whole number from 1 to"),
        ("--steps 2.5", "invalid int value: '2.5'"),
        ("--seed -1", "--seed is -1; write a whole number from 0 to"),
        ("--seed 4294967296", "--seed is 4294967296"),
        ("--layers 0", "--layers is 0"),
        ("--heads 0", "--heads is 0"),
        ("--width 0", "--width is 0"),
        ("--batch 0", "--batch is 0"),
        ("--window 1", "--window is 1; write a whole number from 2 to"),
        ("--sample -1", "--sample is -1"),
        ("--end 300", "--end 300 is no token; write one from 0 to 255"),
        (
            "--mesh data=2,model=2",
            "--heads 3 cannot be split over model=2; write a multiple of 2, or another",
        ),
        ("--save-every -1", "--save-every is -1"),
        ("--keep 0", "--keep is 0; write a whole number from 1 to"),
        ("--devices 0", "--devices is 0"),
        ("--width 10 --heads 3", "--width 10 does not give --heads 3 an even size"),
        ("--width 9 --heads 3", "write a multiple of 6, for rotary positions"),
        (
            "--batch 8 --accumulate 3",
            "--batch 8 has no 3 equal parts; write a multiple of --accumulate 3",
        ),
        ("--decay half", "invalid choice: 'half'"),
        ("--optimizer lion", "invalid choice: 'lion'"),
        ("--sped 3", "unrecognized arguments: --sped 3"),
        ("--overwrite", "--overwrite stands alone; write --out FOLDER with it"),
        ("--resume", "--resume stands alone; write --out FOLDER with it"),
        (
            "--resume --overwrite --out x",
            "--overwrite and --resume contradict each other; write one of them",
        ),
        ("--data", "--data: expected at least one argument"),
        # As these come before --data is read, there are 4 devices in this process.
        ("--mesh data=3", "--mesh 'data=3' takes 3 devices, there are 4; write sizes"),
        (
            "--batch 6",
            "6 examples (--batch 6, --accumulate 1) cannot be split over data=4; "
            "write a --batch that is a multiple of 4",
        ),
    ],
)
def test_wrong_option_is_refused_in_one_line_and_leaves_nothing_behind(
    options: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refusal(capsys, *options.split())
    assert list(tmp_path.iterdir()) == []


def test_data_that_cannot_be_learned_from_is_refused_and_leaves_no_folder(
    no_training: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.txt").write_text("ab" * 80)
    out = tmp_path / "run"
    for name, said in [
        ("missing.txt", "missing.txt' is no file and no folder; write the path of one"),
        ("short.txt", "too little text: 144 bytes to train on, 16 held out"),
    ]:
        given = *TINY, "--data", tmp_path / name, "--out", out
        assert said in refusal(capsys, *given)
        assert not out.exists()


def test_folder_in_use_is_refused_and_left_alone(
    no_training: None,
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "metrics.jsonl").write_text("precious")
    error = refusal(capsys, *TINY, "--data", text_file, "--out", tmp_path)
    instead = "another, --resume to go on with it, or --overwrite to replace it"
    assert f"--out '{tmp_path}' is in use; write {instead}\n" in error
    assert [x.name for x in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert (tmp_path / "metrics.jsonl").read_text() == "precious"


def test_place_where_no_folder_can_be_made_is_refused_and_left_alone(
    no_training: None,
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("precious")
    for out in (tmp_path / "file", tmp_path / "file/below", Path("/proc/no/folder")):
        for more in ((), ("--overwrite",)):
            given = *TINY, "--data", text_file, "--out", out, *more
            error = refusal(capsys, *given)
            assert error.startswith("lm.py: error: [Errno ")
            assert error.endswith("; write another path\n")
    assert (tmp_path / "file").read_text() == "precious"


# -------------------------------------------------------------------------- model


def test_change_of_a_byte_changes_no_logits_before_it() -> None:
    byte_BxT = np.random.default_rng(0).integers(0, 255, (2, 16))
    changed_BxT = byte_BxT.copy()
    changed_BxT[:, 9] += 1
    before, after = (
        np.asarray(jitted(small_model(), jnp.asarray(x)))
        for x in (byte_BxT, changed_BxT)
    )
    assert before.shape == (2, 16, 256)
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert (np.abs(before[:, 9:] - after[:, 9:]).max(axis=-1) > 1e-4).all()


def test_logits_are_not_rounded_to_the_bfloat16_of_the_layers() -> None:
    logits_BxTxV = jitted(small_model(bfloat16=True), jnp.arange(32).reshape(2, 16))
    assert logits_BxTxV.dtype == jnp.float32
    assert (logits_BxTxV != logits_BxTxV.astype(jnp.bfloat16)).mean() > 0.9


def test_documents_of_a_window_do_not_see_each_other() -> None:
    byte_BxT = np.random.default_rng(0).integers(0, 255, (1, 16))
    changed_BxT = byte_BxT.copy()
    changed_BxT[:, 3] += 1
    segment_BxT = jnp.asarray([[1] * 6 + [2] * 10])
    before, after = (
        np.asarray(jitted(small_model(), jnp.asarray(x), segment_BxT))
        for x in (byte_BxT, changed_BxT)
    )
    np.testing.assert_array_equal(before[:, 6:], after[:, 6:])
    assert (np.abs(before[:, 3:6] - after[:, 3:6]).max(axis=-1) > 1e-4).all()


def test_loss_counts_what_follows_in_the_same_document_and_no_padding() -> None:
    def uniform_but_for_7(token_BxT: jax.Array, _: jax.Array) -> jax.Array:
        return jnp.zeros((*token_BxT.shape, 256)).at[:, :, 7].set(9.0)

    tokens = jnp.asarray([[5, 7, 5, 7, 7, 7], [7, 7, 7, 7, 7, 7]])
    segments = jnp.asarray([[1, 1, 2, 2, 0, 0], [0, 0, 0, 0, 0, 0]])
    batch = {"tokens": tokens, "tokens_segment_ids": segments}
    found = np.asarray(lm.score(uniform_but_for_7, batch)["loss"])
    # Counted are 5 -> 7 twice; not 7 -> 5 between documents, nor padding.
    likely = float(np.log(np.exp(9.0) + 255) - 9.0)
    np.testing.assert_allclose(found, [likely, 0.0], rtol=1e-3)


def test_parameters_of_blocks_have_the_layer_axis_in_front() -> None:
    params = nnx.to_pure_dict(nnx.state(small_model(), nnx.Param))
    assert set(params) == {"blocks", "embedding", "norm"}
    leaves = jax.tree.leaves(params["blocks"])
    assert len(leaves) == 11
    assert {leaf.shape[0] for leaf in leaves} == {2}
    kernel = params["blocks"]["mlp"]["down"]["kernel"]
    assert kernel.shape == (2, 24, 8)
    assert not np.allclose(kernel[0], kernel[1])


def test_block_whose_branches_end_in_zeros_passes_its_input_on() -> None:
    block = lm.Block(small_settings(), nnx.Rngs(0))
    x_BxTxD = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 8)), jnp.float32)
    segment_BxT = jnp.ones((2, 16), jnp.int32)
    for branch in (block.attention.out, block.mlp.down):
        assert not jnp.array_equal(jitted(block, x_BxTxD, segment_BxT), x_BxTxD)
        branch.kernel[...] = jnp.zeros_like(branch.kernel[...])
    np.testing.assert_array_equal(jitted(block, x_BxTxD, segment_BxT), x_BxTxD)


def test_scanned_blocks_are_the_blocks_one_after_another_remat_or_not() -> None:
    @nnx.jit
    def by_hand(model: Any, byte_BxT: jax.Array) -> jax.Array:
        graphdef, stacked = nnx.split(model.blocks)
        x_BxTxD = model.embedding(byte_BxT)
        for layer in range(2):
            block = nnx.merge(graphdef, jax.tree.map(lambda x, n=layer: x[n], stacked))
            x_BxTxD = block(x_BxTxD, jnp.ones_like(byte_BxT))
        return model.embedding.attend(model.norm(x_BxTxD))

    byte_BxT = jnp.arange(32).reshape(2, 16)
    for remat in (False, True):
        model = small_model(remat=remat)
        found, expected = jitted(model, byte_BxT), by_hand(model, byte_BxT)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_rotary_products_depend_on_the_distance_alone() -> None:
    q_H, k_H = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    q_TxH, k_TxH = (
        np.asarray(lm.rotate(jnp.broadcast_to(x, (1, 12, 1, 8))))[0, :, 0]
        for x in (q_H, k_H)
    )
    products_TxT = q_TxH @ k_TxH.T
    np.testing.assert_allclose(q_TxH[0], q_H, rtol=1e-6)
    np.testing.assert_allclose(products_TxT[1:, 1:], products_TxT[:-1, :-1], rtol=1e-4)
    assert not np.allclose(products_TxT[0], products_TxT[0, 0], rtol=1e-2)
