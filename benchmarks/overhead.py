# SPDX-License-Identifier: Apache-2.0
"""What does a decay cost? Ready chains and hand-written chains against Optax's own.

    python benchmarks/overhead.py

Every subject takes whole optimizer steps (update and apply, buffers donated) on the
same tree. One round times one step of each, in turn, so that a busy machine disturbs
all alike; what counts is the median over rounds of the ratio to the peer of the same
round. `control` is the peer a second time: its ratio is the noise. Bytes accessed and
temporaries are the compiler's own figures, which no machine load can change.

Results go to `overhead.json` beside this file, the table made from them to
`overhead.md`.
"""

import argparse
import dataclasses
import json
import pathlib
import platform
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_wd as wd

HERE = pathlib.Path(__file__).parent
RATE, DECAY = 1e-3, 0.1


@dataclasses.dataclass(frozen=True)
class Subject:
    """An optimizer and the name of the one that it is compared with."""

    tx: optax.GradientTransformation
    peer: str


def subjects() -> dict[str, Subject]:
    """The optimizers, peers before those that are compared with them."""
    every = wd.everything
    full, cautious = (
        wd.masked_decay(DECAY, every),
        wd.cautious_weight_decay(DECAY, every),
    )

    def chain(scale: Any, decay: Any) -> optax.GradientTransformation:
        return optax.chain(scale, decay, optax.scale_by_learning_rate(RATE))

    adam, lion, sgd = "optax.adamw", "optax.lion", "optax.trace, add_decayed_weights"
    finished = optax.chain(optax.adam(RATE), wd.after_learning_rate(full))
    return {
        adam: Subject(optax.adamw(RATE, weight_decay=DECAY), adam),
        "control: optax.adamw": Subject(optax.adamw(RATE, weight_decay=DECAY), adam),
        "optax.adam, no decay": Subject(optax.adam(RATE), adam),
        "adamw, plain": Subject(wd.adamw(RATE, full), adam),
        "adamw, cautious": Subject(wd.adamw(RATE, cautious), adam),
        "chain, plain": Subject(chain(optax.scale_by_adam(), full), adam),
        "chain, cautious": Subject(chain(optax.scale_by_adam(), cautious), adam),
        "after_learning_rate, plain": Subject(finished, adam),
        lion: Subject(optax.lion(RATE, weight_decay=DECAY), lion),
        "control: optax.lion": Subject(optax.lion(RATE, weight_decay=DECAY), lion),
        "lion, plain": Subject(wd.lion(RATE, full), lion),
        "lion, cautious": Subject(wd.lion(RATE, cautious), lion),
        sgd: Subject(chain(optax.trace(0.9), optax.add_decayed_weights(DECAY)), sgd),
        "sgdw, plain": Subject(wd.sgdw(RATE, full, momentum=0.9), sgd),
        "sgdw, cautious": Subject(wd.sgdw(RATE, cautious, momentum=0.9), sgd),
    }


class Runner:
    """One optimizer, compiled, with parameters and state of its own."""

    def __init__(self, tx: optax.GradientTransformation, params: Any) -> None:
        def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.params = jax.tree.map(jnp.copy, params)
        self.state = tx.init(self.params)
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower
        self.step = lowered(self.params, self.state, params).compile()

    def time_step(self, grads: Any) -> float:
        """Seconds for one step."""
        start = time.perf_counter()
        self.params, self.state = self.step(self.params, self.state, grads)
        jax.block_until_ready((self.params, self.state))
        return time.perf_counter() - start

    def figures(self, size: int) -> dict[str, float | None]:
        """Bytes per parameter, as far as the compiler of this platform tells."""
        cost, memory = self.step.cost_analysis(), self.step.memory_analysis()
        accessed = (cost or {}).get("bytes accessed")
        temporary = getattr(memory, "temp_size_in_bytes", None)
        return {
            "bytes_accessed": None if accessed is None else round(accessed / size, 3),
            "temporary_bytes": None
            if temporary is None
            else round(temporary / size, 3),
        }


def measure(leaves: int, size: int, rounds: int) -> list[dict[str, Any]]:
    """One record for each subject, on equal leaves of about `size` numbers in all."""
    side = max(1, round((size / leaves) ** 0.5))
    keys = jax.random.split(jax.random.key(0), leaves)
    params = {
        f"kernel_{n}": jax.random.normal(k, (side, side)) for n, k in enumerate(keys)
    }
    total = leaves * side * side
    known = subjects()
    runners = {name: Runner(subject.tx, params) for name, subject in known.items()}
    grads = jax.tree.map(lambda p: 1e-3 * p, params)
    seconds: dict[str, list[float]] = {name: [] for name in known}
    names = list(known)
    for n in range(rounds + 2):  # two to warm up
        shift = n % len(names)
        for name in names[shift:] + names[:shift]:
            elapsed = runners[name].time_step(grads)
            if n >= 2:
                seconds[name].append(elapsed)
    return [
        {
            "subject": name,
            "peer": known[name].peer,
            "leaves": leaves,
            "parameters": total,
            **runners[name].figures(total),
            **_ratio(seconds[name], seconds[known[name].peer]),
        }
        for name in names
    ]


def _ratio(own: list[float], peer: list[float]) -> dict[str, Any]:
    ratios = sorted(a / b for a, b in zip(own, peer, strict=True))
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "median_ratio": round(statistics.median(ratios), 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "median_seconds": round(statistics.median(own), 5),
        "seconds": [round(s, 5) for s in own],
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "<!-- Made by benchmarks/overhead.py from overhead.json. -->",
        "# What a decay costs",
        "",
        f"`{result['command']}` on {result['device']}, jax {result['jax']}, optax "
        f"{result['optax']}, {result['rounds']} interleaved rounds. `time` is the "
        "median over rounds of the ratio to the peer in the same round.",
    ]
    for leaves in dict.fromkeys(row["leaves"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["leaves"] == leaves]
        lines += [
            "",
            f"## {leaves} leaves, {rows[0]['parameters']:,} parameters",
            "",
            "| optimizer | peer | bytes accessed per parameter | temporary bytes per "
            "parameter | time | quartiles |",
            "| --- | --- | --: | --: | --: | --- |",
        ]
        lines += [
            f"| {row['subject']} | {row['peer']} | {row['bytes_accessed']} | "
            f"{row['temporary_bytes']} | {row['median_ratio']:.2f} | "
            f"{row['quartiles'][0]:.2f} to {row['quartiles'][1]:.2f} |"
            for row in rows
        ]
    return "\n".join(lines) + "\n"


def device() -> str:
    """The accelerator, or the processor, in words."""
    kind = jax.devices()[0].device_kind
    return (
        kind
        if kind != "cpu"
        else f"{platform.machine()} CPU, {jax.device_count()} device"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--large", type=int, default=64 * 1024 * 1024)
    parser.add_argument("--small", type=int, default=16 * 1024 * 1024)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "overhead.json")
    args = parser.parse_args()
    result: dict[str, Any] = {
        "command": "python benchmarks/overhead.py",
        "device": device(),
        "jax": jax.__version__,
        "optax": optax.__version__,
        "rounds": args.rounds,
        "rows": [],
    }
    for leaves, size in ((16, args.large), (1000, args.small)):
        result["rows"] += measure(leaves, size, args.rounds)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    text = table(result)
    args.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
