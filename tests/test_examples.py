# SPDX-License-Identifier: Apache-2.0
"""The examples: whole runs on small texts, wrong input, and what they are made of."""

import contextlib
import importlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_wd as wd

lm = importlib.import_module("lm")
lm_run = importlib.import_module("lm_run")

ROOT = Path(__file__).parent.parent
ARMS = "none", "full", "cautious"
TINY = "--width 8 --heads 2 --layers 2 --window 16 --batch 4".split()
TRAINED = [*TINY, *"--steps 60 --learning-rate 0.02 --weight-decay 2".split()]
PNG = b"\x89PNG\r\n\x1a\n"


def small_settings(**changes: Any) -> Any:
    sizes = dict(width=8, heads=2, layers=2, window=16, batch=4, steps=5)
    return lm_run.Settings(**sizes | changes)


def small_model(seed: int = 0) -> Any:
    return lm.LanguageModel(small_settings(), nnx.Rngs(seed))


def rms_of_kernels(model: Any) -> float:
    leaves = jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    kernels = [np.ravel(leaf) for path, leaf in leaves if "kernel" in str(path[-1])]
    return float(np.sqrt(np.mean(np.concatenate(kernels) ** 2)))


@nnx.jit
def jitted(module: Any, x: jax.Array) -> jax.Array:
    return module(x)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-W", "error", str(ROOT / "examples/lm.py")] + [
        str(argument) for argument in arguments
    ]


def environment() -> dict[str, str]:
    found = os.environ.get("PYTHONPATH", "")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), found])}


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def logged(folder: Path) -> list[dict[str, Any]]:
    return [line for line in lines_of(folder) if "step" in line]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that the program ends with, before any training."""
    with pytest.raises(SystemExit) as stopped:
        lm.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert said.out == ""
    assert said.err.startswith("lm.py: error: ") and said.err.endswith("\n")
    assert said.err.count("\n") == 1
    return said.err


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(lm, "train", train)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "rhyme.txt"
    path.write_text("".join(f"{n} green bottles, {n % 7} fall;\n" for n in range(300)))
    return path


@pytest.fixture(scope="module")
def runs(
    text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, str]]:
    """For each kind of decay, the folder and the printed text of a whole run."""
    results = {}
    for arm in ARMS:
        folder = tmp_path_factory.mktemp("runs") / arm
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            lm.main(
                [*TRAINED, *f"--data {text_file} --out {folder}".split()]
                + ["--decay", arm]
            )
        results[arm] = folder, printed.getvalue()
    return results


# ---------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("arm", ARMS)
def test_run_writes_metrics_of_increasing_steps(runs: Any, arm: str) -> None:
    *steps, summary = lines_of(runs[arm][0])
    assert [line["step"] for line in steps] == list(range(1, 61))
    for line in steps:
        always = {"step", "loss", "weight_rms", "open_fraction", "seconds"}
        assert set(line) - {"bits_per_byte"} == always
        assert 0 < line["open_fraction"] < 1 and line["weight_rms"] > 0
    judged = [line["step"] for line in steps if "bits_per_byte" in line]
    assert judged == [10, 20, 30, 40, 50, 60]
    seconds = [line["seconds"] for line in steps]
    assert seconds == sorted(seconds)
    assert summary["summary"]["decay"] == arm
    assert summary["summary"]["bits_per_byte"]["model"] == steps[-1]["bits_per_byte"]


@pytest.mark.parametrize("arm", ARMS)
def test_run_draws_a_picture(runs: Any, arm: str) -> None:
    picture = (runs[arm][0] / "curves.png").read_bytes()
    assert picture.startswith(PNG)
    assert len(picture) > 20_000


@pytest.mark.parametrize("arm", ARMS)
def test_run_prints_what_decays_first_and_the_comparison_last(
    runs: Any, arm: str
) -> None:
    folder, printed = runs[arm]
    lines = printed.splitlines()
    assert lines[0].startswith("mask: standard_with(stacked=contains('blocks'))")
    assert any("blocks/mlp/up/kernel" in line and " yes " in line for line in lines)
    last = logged(folder)[-1]
    table = printed[printed.index(f"{arm} weight decay after 60 steps") :]
    assert f"model         {last['bits_per_byte']:.3f} bits per byte" in table
    assert f"weight RMS    {last['weight_rms']:.4f} " in table
    assert f"open to decay {last['open_fraction']:.3f} " in table
    assert ("if decay were cautious" in table) == (arm != "cautious")
    assert lines[-1] == f"results: {folder}/metrics.jsonl, {folder}/curves.png"


def test_run_prints_plain_progress_where_there_is_no_terminal(runs: Any) -> None:
    progress = [x for x in runs["full"][1].splitlines() if x.startswith("step ")]
    assert len(progress) == 6
    assert progress[0].startswith("step 10/60  loss ")
    assert "steps/s" in progress[0] and progress[-1].endswith("0 s left")


def test_model_learns_more_than_byte_frequencies(runs: Any) -> None:
    for arm in ARMS:
        bits = lines_of(runs[arm][0])[-1]["summary"]["bits_per_byte"]
        assert bits["model"] < bits["unigram"] - 0.5


def test_cautious_decay_leaves_weights_between_those_of_full_and_none(
    runs: Any,
) -> None:
    rms = {arm: logged(runs[arm][0])[-1]["weight_rms"] for arm in ARMS}
    assert rms["full"] < 0.9 * rms["cautious"]
    assert rms["cautious"] < 0.9 * rms["none"]


def test_command_line_repeats_the_losses_in_a_fresh_folder_without_warnings(
    runs: Any, text_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs/lm").mkdir(parents=True)
    done = subprocess.run(
        command(*TRAINED, "--data", text_file),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "results: runs/lm-2/metrics.jsonl, runs/lm-2/curves.png\n" in done.stdout
    assert list((tmp_path / "runs/lm").iterdir()) == []
    losses, again = (
        [line["loss"] for line in logged(folder)]
        for folder in (runs["cautious"][0], tmp_path / "runs/lm-2")
    )
    assert losses == again


@pytest.fixture
def interruptible() -> Iterator[None]:
    # A process started in the background of a script ignores SIGINT, and so would its
    # children, but for this.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupt_keeps_what_was_logged_of_a_run_with_another_seed(
    text_file: Path, tmp_path: Path, interruptible: None
) -> None:
    folder = tmp_path / "run"
    options = "--steps", 20_000, "--seed", 1, "--data", text_file, "--out", folder
    with subprocess.Popen(
        command(*TINY, *options),
        env=environment(),
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
    assert (process.returncode, err) == (130, "lm.py: interrupted\n")
    assert f"results: {metrics}, {folder}/curves.png\n" in out
    assert metrics.read_text().startswith(seen[: seen.rindex("\n") + 1])
    steps = [line["step"] for line in lines_of(folder)]
    assert steps[:3] == [1, 200, 400] and steps == sorted(steps)
    # After one step of the warm-up the weights are still those of the seed.
    first = lines_of(folder)[0]["weight_rms"]
    assert first == pytest.approx(rms_of_kernels(small_model(seed=1)), rel=1e-3)
    assert first != pytest.approx(rms_of_kernels(small_model(seed=0)), rel=1e-3)
    assert (folder / "curves.png").read_bytes().startswith(PNG)


@pytest.fixture
def only_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_run.Journal, "follow", lambda *_: iter(()))


def proof(settings: Any, text_file: Path) -> None:
    text = lm_run.read_text(small_settings(data=[str(text_file)]))
    with lm_run.Journal(settings) as journal:
        lm.train(settings, text, journal)


def test_decay_that_does_not_happen_is_found_before_training(
    only_proof: None, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm, "make_optimizer", lambda *_: optax.adam(1e-3))
    with pytest.raises(AssertionError, match="expected decay, measured shrink 0 "):
        proof(small_settings(out=str(tmp_path)), text_file)


def test_what_was_measured_is_said(
    only_proof: None,
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for rate, said in ((0.0, "nothing decays"), (0.5, "exactly these decay")):
        folder = str(tmp_path / str(rate))
        proof(small_settings(out=folder, weight_decay=rate), text_file)
        assert f"measured: {said}\n" in capsys.readouterr().out


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
        ("--learning-rate inf", "--learning-rate is inf"),
        ("--steps 0", "--steps is 0; write a whole number from 1 to"),
        ("--steps 2.5", "invalid int value: '2.5'"),
        ("--seed -1", "--seed is -1; write a whole number from 0 to"),
        ("--seed 4294967296", "--seed is 4294967296"),
        ("--layers 0", "--layers is 0"),
        ("--heads 0", "--heads is 0"),
        ("--heads -2", "--heads is -2"),
        ("--width 0", "--width is 0"),
        ("--batch 0", "--batch is 0"),
        ("--window 1", "--window is 1; write a whole number from 2 to"),
        ("--width 10 --heads 3", "--width 10 does not give --heads 3 an even size"),
        ("--width 9 --heads 3", "write a multiple of 6, for rotary positions"),
        ("--decay half", "invalid choice: 'half'"),
        ("--sped 3", "unrecognized arguments: --sped 3"),
        ("--overwrite", "--overwrite stands alone; write --out FOLDER with it"),
        ("--data", "--data: expected at least one argument"),
    ],
)
def test_wrong_option_is_refused_in_one_line(
    options: str,
    said: str,
    no_training: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refusal(capsys, *options.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.txt", None, "is no file and no folder; write the path of one"),
        ("new\nline.txt", None, r"new\nline.txt' is no file and no folder"),
        ("latin.txt", "café".encode("latin-1") * 999, "is not UTF-8 at byte 3"),
        ("zeros.txt", b"text\0" * 999, "is not text: it has NUL bytes"),
        (
            "short.txt",
            b"ab" * 80,
            "too little text: 144 bytes to train on, 16 held out",
        ),
        ("empty.txt", b"", "too little text: 0 bytes"),
    ],
)
def test_file_that_cannot_be_learned_from_is_refused(
    name: str,
    content: bytes | None,
    said: str,
    no_training: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    out = tmp_path / "run"
    error = refusal(capsys, *TINY, "--data", tmp_path / name, "--out", out)
    assert said in error
    assert not out.exists()


def test_folder_without_files_and_empty_path_are_refused(
    no_training: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty/inner").mkdir(parents=True)
    assert "empty' has no file in it" in refusal(capsys, "--data", tmp_path / "empty")
    assert "'' is no file and no folder" in refusal(capsys, "--data", "")


def test_binary_file_in_a_folder_is_named(
    no_training: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("text " * 999)
    (tmp_path / "b.bin").write_bytes(b"\xff\xfe")
    assert "b.bin' is not UTF-8 at byte 0" in refusal(capsys, "--data", tmp_path)


def test_python_without_its_documentation_is_told_to_bring_data(
    no_training: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data", None)
    assert "without pydoc_data.topics; write --data PATH" in refusal(capsys)


def test_folder_in_use_is_refused_and_left_alone(
    no_training: None,
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "metrics.jsonl").write_text("precious")
    error = refusal(capsys, *TINY, "--data", text_file, "--out", tmp_path)
    assert f"--out '{tmp_path}' is in use; write another, or --overwrite too" in error
    assert [x.name for x in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert (tmp_path / "metrics.jsonl").read_text() == "precious"


def test_file_in_the_place_of_the_folder_is_refused_and_left_alone(
    no_training: None,
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("precious")
    for out in (tmp_path / "file", tmp_path / "file/below"):
        for more in ((), ("--overwrite",)):
            options = *TINY, "--data", text_file, "--out", out, *more
            assert f"'{out}'; write another path" in refusal(capsys, *options)
    assert (tmp_path / "file").read_text() == "precious"


def test_overwrite_replaces_results_and_nothing_else(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "curves.png", "notes.txt"):
        (tmp_path / name).write_text("old")
    lm_run.Journal(small_settings(out=str(tmp_path), overwrite=True)).lines.close()
    assert {x.name: x.read_text() for x in tmp_path.iterdir()} == {
        "metrics.jsonl": "",
        "notes.txt": "old",
    }


def test_loss_that_is_not_finite_ends_the_run_and_is_not_written(
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def train(settings: Any, text: Any, journal: Any) -> None:
        journal.log(step=1, loss=2.0, weight_rms=0.1, open_fraction=0.5)
        journal.log(step=2, loss=math.nan, weight_rms=0.1, open_fraction=0.5)

    monkeypatch.setattr(lm, "train", train)
    with pytest.raises(SystemExit) as stopped:
        lm.main([*TINY, *f"--data {text_file} --out {tmp_path}/run".split()])
    assert stopped.value.code == 1
    assert "loss is nan at step 2; write a smaller" in capsys.readouterr().err
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [1]
    assert (tmp_path / "run/curves.png").read_bytes().startswith(PNG)


def test_terminal_gets_a_progress_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with lm_run.Journal(small_settings(out=str(tmp_path))) as journal:
        for step, _ in journal.follow([np.zeros(1)] * 5):
            figures = dict(weight_rms=0.1, open_fraction=0.5, bits_per_byte=3.5)
            journal.log(step=step, loss=2.0, **figures)
    last = terminal.getvalue().rpartition("\r")[2]
    assert "5/5" in last and "step/s" in last and "loss=2.000" in last
    assert "steps/s" not in capsys.readouterr().out


# ----------------------------------------------------------------- text and counts


def test_folders_are_read_in_order_and_the_last_tenth_is_held_out(
    tmp_path: Path,
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/2.txt").write_text("two " * 50)
    (tmp_path / "c.txt").write_text("three " * 50)
    (tmp_path / "a.txt").write_text("one " * 50)
    settings = small_settings(data=[str(tmp_path)], window=8)
    text = lm_run.read_text(settings)
    whole = b"\n".join((b"one " * 50, b"two " * 50, b"three " * 50))
    assert text.train_N.tobytes() == whole[:632]
    assert text.held_out_KxT1.shape == (8, 9)
    assert text.held_out_KxT1[0].tobytes() == whole[632:641]
    assert text.held_out_KxT1[-1].tobytes() == whole[-9:]


def test_held_out_windows_are_few_and_do_not_overlap(tmp_path: Path) -> None:
    # Held out are 9000 letters; three of them in a row tell where they stand.
    letters = np.random.default_rng(0).integers(97, 123, 90_000).astype(np.uint8)
    (tmp_path / "text").write_bytes(letters.tobytes())
    text = lm_run.read_text(small_settings(data=[str(tmp_path)], window=100))
    held_out = letters[-9000:].tobytes()
    starts = [held_out.index(window.tobytes()) for window in text.held_out_KxT1]
    assert len(starts) == 64
    assert (starts[0], starts[-1]) == (0, 9000 - 101)
    assert min(np.diff(starts)) >= 100


def test_documentation_of_python_is_read_in_the_order_of_its_topics() -> None:
    from pydoc_data import topics

    first = topics.topics[min(topics.topics)].encode()
    text = lm_run.read_text(lm_run.Settings())
    assert text.train_N[: len(first)].tobytes() == first
    assert len(text.train_N) > 300_000 and text.held_out_KxT1.shape == (64, 129)


def test_training_windows_repeat_with_the_seed_and_reach_both_ends() -> None:
    train_N = np.arange(20, dtype=np.uint8)
    settings = small_settings(steps=50)
    first, again = (
        np.stack([*lm_run.random_windows(train_N, settings)]) for _ in range(2)
    )
    other = np.stack(
        [*lm_run.random_windows(train_N, small_settings(steps=50, seed=1))]
    )
    assert first.shape == (50, 4, 17)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (np.diff(first.astype(int)) == 1).all()
    assert (first.min(), first.max()) == (0, 19)


def test_unigram_and_bigram_agree_with_counting_by_hand() -> None:
    train_N = np.frombuffer(b"aab", np.uint8)
    window_1x3 = np.frombuffer(b"abz", np.uint8)[None]
    text = lm_run.Text(train_N, window_1x3)
    # a 2 times, b once, in 3 bytes; one pseudo-count for each of 256.
    b, z = 2 / 259, 1 / 259
    assert lm_run.unigram_bits(text) == pytest.approx(-math.log2(b * z) / 2)
    # After a came a and b; after b came nothing, so z is as likely as anywhere.
    b_after_a, z_after_b = (1 + b) / (2 + 1), z
    by_hand = -math.log2(b_after_a * z_after_b) / 2
    assert lm_run.bigram_bits(text) == pytest.approx(by_hand)


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


def test_parameters_of_blocks_have_the_layer_axis_in_front() -> None:
    params = nnx.to_pure_dict(nnx.state(small_model(), nnx.Param))
    assert set(params) == {"blocks", "embedding", "norm"}
    leaves = jax.tree.leaves(params["blocks"])
    assert len(leaves) == 11
    assert {leaf.shape[0] for leaf in leaves} == {2}
    kernel = params["blocks"]["mlp"]["down"]["kernel"]
    assert kernel.shape == (2, 21, 8)
    assert not np.allclose(kernel[0], kernel[1])


def test_block_whose_branches_end_in_zeros_passes_its_input_on() -> None:
    block = lm.Block(small_settings(), nnx.Rngs(0))
    x_BxTxD = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 8)), jnp.float32)
    for branch in (block.attention.out, block.mlp.down):
        assert not jnp.array_equal(jitted(block, x_BxTxD), x_BxTxD)
        branch.kernel[...] = jnp.zeros_like(branch.kernel[...])
    np.testing.assert_array_equal(jitted(block, x_BxTxD), x_BxTxD)


def test_scanned_blocks_are_the_blocks_one_after_another() -> None:
    @nnx.jit
    def by_hand(model: Any, byte_BxT: jax.Array) -> jax.Array:
        graphdef, stacked = nnx.split(model.blocks)
        x_BxTxD = model.embedding(byte_BxT)
        for layer in range(2):
            block = nnx.merge(graphdef, jax.tree.map(lambda x, n=layer: x[n], stacked))
            x_BxTxD = block(x_BxTxD)
        return model.embedding.attend(model.norm(x_BxTxD))

    model, byte_BxT = small_model(), jnp.arange(32).reshape(2, 16)
    by_scan = jitted(model, byte_BxT)
    np.testing.assert_allclose(by_scan, by_hand(model, byte_BxT), rtol=1e-4, atol=1e-5)


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


def test_decay_metrics_look_at_chosen_leaves_and_at_signs() -> None:
    params = {"kernel": jnp.array([1.0, -2.0, 0.0, 2e-20]), "bias": jnp.array([9.0])}
    mu = {"kernel": jnp.array([1.0, 1.0, -1.0, -2e-20]), "bias": jnp.array([-1.0])}
    state = optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=mu, nu=mu)
    rms, fraction = lm.decay_metrics(wd.named("kernel"), params, (state,))
    assert rms == pytest.approx(math.sqrt(5 / 4))
    # Agree, oppose, zero, and oppose with a product that is no float32.
    assert fraction == 2 / 4
