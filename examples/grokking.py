# SPDX-License-Identifier: Apache-2.0
"""Modular addition: which weight decay makes a small network understand, late?

A network with one hidden layer is shown half of the sums (a + b) mod 47, and soon knows
them by heart. Whether and when it gets the others right ("grokking") depends on what
keeps its weights small. Under a minute on two cores, with `--full` four:

    python examples/grokking.py

Seen with AdamW, learning rate 1e-3, betas (0.9, 0.98), weight decay 1: the step at
which 95% of the other sums are right. The first line is what the program does by
itself; `--seeds 0 1 2` adds the next two, of which only two arms were run; `--full` has
the others.

    loss           steps   seed  none   full   cautious  random half  pinned
    squared error  12 000  0     never  2600   9300      5300         never
    squared error  12 000  1     -      2500   7700      -            -
    squared error  12 000  2     -      2800   5900      -            -
    cross-entropy  24 000  0     never  9800   never     15600        never
    cross-entropy  24 000  1     never  11000  never     15600        never
    cross-entropy  24 000  2     never  10600  never     16800        never

Cautious decay fails on separable cross-entropy. Once all sums are known by heart,
larger weights lower the loss for ever: steps point outwards, and the gate closes. After
24 000 steps 3 to 4% of the coordinates are open, the weight RMS is 1.43 to 1.50 (none
1.82 to 1.86, full 0.50 to 0.51), and under 1% of the other sums are right. Norms pinned
where they start have 4 to 10% of them right then, at this learning rate. All figures:
benchmarks/grokking.json.

Letters in names: N pairs to train on, M to be tested by, V numbers, D width.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import optax_wd as wd

NUMBERS, WIDTH = 47, 192
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1.0
ARMS = "none", "full", "cautious", "random", "pinned"
LOSSES = "squared-error", "cross-entropy"
QUICK = dict(loss=LOSSES[0], arms=ARMS, steps=12_000, seeds=[0])
FULL = dict(loss=LOSSES[1], arms=ARMS, steps=24_000, seeds=[0, 1, 2])
UNDERSTOOD = 0.95  # of the test pairs right
MOST = 2**31 - 1  # of steps and seeds; JAX counts in int32

# ----------------------------------------------------------------- pairs and the model


def split_pairs(seed: int) -> tuple[jax.Array, jax.Array]:
    """All pairs in a random order: 1104 to learn, train_Nx2, and 1105 to be asked."""
    a_and_b = np.divmod(np.arange(NUMBERS**2), NUMBERS)
    shuffled = np.random.default_rng(seed).permutation(np.stack(a_and_b, axis=1))
    train_Nx2, test_Mx2 = np.split(shuffled, [NUMBERS**2 // 2])
    return jnp.asarray(train_Nx2, jnp.int32), jnp.asarray(test_Mx2, jnp.int32)


def init_params(seed: int) -> dict[str, dict[str, jax.Array]]:
    """An embedding for each of the two numbers, and a matrix that reads the answer."""
    normal = jax.random.normal
    first, second, answer = jax.random.split(jax.random.key(seed), 3)
    return {
        "first": {"embedding": 0.5 * normal(first, (NUMBERS, WIDTH))},
        "second": {"embedding": 0.5 * normal(second, (NUMBERS, WIDTH))},
        "answer": {"kernel": 1.5 / WIDTH**0.5 * normal(answer, (WIDTH, NUMBERS))},
    }


def logits_of(params: Any, pair_Nx2: jax.Array) -> jax.Array:
    """The network, logits_NxV: add the embeddings, cut at zero, read the answer."""
    a_N, b_N = pair_Nx2.T
    z_NxD = params["first"]["embedding"][a_N] + params["second"]["embedding"][b_N]
    return jax.nn.relu(z_NxD) @ params["answer"]["kernel"]


def mean_loss(params: Any, pair_Nx2: jax.Array, loss: str) -> jax.Array:
    """Cross-entropy in nats, or the mean squared error to one-hot targets."""
    logits_NxV, sum_N = logits_of(params, pair_Nx2), pair_Nx2.sum(1) % NUMBERS
    target_NxV = jax.nn.one_hot(sum_N, NUMBERS)
    if loss == "squared-error":
        return jnp.mean((logits_NxV - target_NxV) ** 2)
    return optax.softmax_cross_entropy(logits_NxV, target_NxV).mean()


def accuracy(params: Any, pair_Nx2: jax.Array) -> jax.Array:
    """The share of pairs whose sum gets the largest logit."""
    return jnp.mean(logits_of(params, pair_Nx2).argmax(1) == pair_Nx2.sum(1) % NUMBERS)


# --------------------------------------------------------------------------- training


def make_optimizer(arm: str) -> optax.GradientTransformation:
    """Adam with one of the ways to keep weights small, or none."""
    # Not wd.standard, which leaves embeddings alone. They are most of the weights here,
    # and as each batch is all pairs, no row shrinks because its number was not seen.
    amount, mask = WEIGHT_DECAY, wd.everything
    if arm == "pinned":
        pin = wd.pin_norms(LEARNING_RATE, mask)
        return optax.chain(optax.scale_by_adam(b2=0.98), pin)
    decays = {
        "none": optax.identity(),
        "full": wd.masked_decay(amount, mask),
        "cautious": wd.cautious_weight_decay(amount, mask),
        "random": wd.controls.randomly_gated_weight_decay(
            amount, mask, fraction=0.5, seed=0
        ),
    }
    return wd.adamw(LEARNING_RATE, decays[arm], b2=0.98)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3,))
def train_chunk(
    tx: optax.GradientTransformation,
    loss: str,
    steps: int,
    params_and_state: tuple[Any, Any],
    pairs: tuple[jax.Array, jax.Array],
) -> tuple[tuple[Any, Any], dict[str, jax.Array]]:
    """Some steps on all training pairs at once, and what is seen after the last."""
    train_Nx2, test_Mx2 = pairs

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], jax.Array]:
        params, opt_state = carry
        value, grads = jax.value_and_grad(mean_loss)(params, train_Nx2, loss)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    carry, losses = jax.lax.scan(step, params_and_state, length=steps)
    params, opt_state = carry
    trees = params, optax.tree.get(opt_state, "mu")
    x, m = (jnp.concatenate([p.ravel() for p in jax.tree.leaves(t)]) for t in trees)
    return carry, {
        "loss": losses[-1],
        "train_accuracy": accuracy(params, train_Nx2),
        "test_accuracy": accuracy(params, test_Mx2),
        "weight_rms": jnp.sqrt(jnp.mean(x**2)),
        "open_fraction": jnp.mean(wd.cautious_gate(m, x)),
    }


def train(
    tx: optax.GradientTransformation, loss: str, steps: int, seed: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """Trains one network; yields what is seen at about 120 of its steps."""
    pairs, params, chunk = split_pairs(seed), init_params(seed), max(1, steps // 120)
    carry = params, tx.init(params)
    for start in range(0, steps, chunk):
        count = min(chunk, steps - start)
        carry, seen = train_chunk(tx, loss, count, carry, pairs)
        yield start + count, {name: float(x) for name, x in seen.items()}


# ---------------------------------------------------------------------------- results


def compare(settings: argparse.Namespace, path: Path) -> None:
    """Trains every arm with every seed in turn, and writes down what is seen."""
    print(f"{settings.loss}, {settings.steps} steps")
    print("arm       seed  understood   right  weight RMS    open  seconds")
    total = len(settings.arms) * len(settings.seeds) * settings.steps
    with (
        path.open("w", encoding="utf-8") as file,
        tqdm(total=total, unit="step", disable=None) as bar,
    ):
        for arm in settings.arms:
            tx = make_optimizer(arm)
            for seed in settings.seeds:
                bar.set_description(f"{arm}, seed {seed}")
                start, understood, now = time.perf_counter(), "never", {}
                for step, now in train(tx, settings.loss, settings.steps, seed):
                    entry = {"step": step, arm: {f"seed {seed}": now}}
                    print(json.dumps(entry), file=file, flush=True)
                    bar.update(step - bar.n % settings.steps)
                    if understood == "never" and now["test_accuracy"] >= UNDERSTOOD:
                        understood = step
                bar.write(
                    f"{arm:<9} {seed:>4} {understood:>11} {now['test_accuracy']:7.3f} "
                    f"{now['weight_rms']:11.3f} {now['open_fraction']:7.3f} "
                    f"{time.perf_counter() - start:8.0f}"
                )


def draw(path: Path, picture: Path) -> None:
    """A panel for each quantity, a line for each run, a colour for each arm."""
    figure = wd.plot_metrics(path)
    for ax in figure.axes:
        for line in ax.lines:
            line.set(color=f"C{ARMS.index(line.get_label().split('/')[0])}", lw=1)
        ax.legend(fontsize=6)
    figure.savefig(picture, dpi=120)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2."""
        stop(2, f"error: {' '.join(message.split())} (see --help)")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; what is not given is that of QUICK or of FULL."""
    title = str(__doc__).partition("\n")[0]
    parser = Parser("grokking.py", description=title, allow_abbrev=False)
    add = parser.add_argument
    add("--full", action="store_true", help="cross-entropy, 24 000 steps, three seeds")
    add("--loss", choices=LOSSES, help=f"what to minimise ({QUICK['loss']})")
    add("--arms", nargs="+", choices=ARMS, help="ways of decay, or none (all)")
    add("--steps", type=int, help=f"on all training pairs ({QUICK['steps']})")
    add("--seeds", nargs="+", type=int, help="of the split and the weights (0)")
    add("--out", default="runs/grokking", help="folder for results (%(default)s)")
    given = parser.parse_args(argv)
    for name, default in (FULL if given.full else QUICK).items():
        if getattr(given, name) is None:
            setattr(given, name, default)
    for name, low, values in ("steps", 1, [given.steps]), ("seeds", 0, given.seeds):
        if not low <= min(values) <= max(values) <= MOST:
            parser.error(f"--{name} {values}: write numbers from {low} to {MOST}")
    return given


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; exits with 2 for wrong input and 130 for Ctrl-C."""
    settings = parse(argv)
    lines, picture = (Path(settings.out, x) for x in ("metrics.jsonl", "curves.png"))
    try:
        if lines.exists():
            stop(2, f"error: --out {settings.out!r} is in use; write another")
        lines.parent.mkdir(parents=True, exist_ok=True)
        compare(settings, lines)
    except OSError as error:
        stop(2, f"error: {error}; write another --out")
    except KeyboardInterrupt:
        stop(130, "interrupted")
    draw(lines, picture)
    print(f"results: {lines}, {picture}")


def stop(status: int, message: str) -> NoReturn:
    """Ends the program with one line."""
    print(f"grokking.py: {message}", file=sys.stderr)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
