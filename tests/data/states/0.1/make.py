# SPDX-License-Identifier: Apache-2.0
"""Wrote the files beside it, with version 0.1: states after a few steps.

    PYTHONPATH=tests/shared python tests/data/states/0.1/make.py FOLDER

`run.msgpack` has of each optimizer the state, the parameters beside it and those after
one more step, and what `reference` computed then. `states.safetensors` and the Orbax
folder `orbax` have the states again. A later version reads these files; it does not
write them anew.
"""

import pathlib
import sys
from typing import Any

import flax.serialization
import golden_chains as golden
import jax
import numpy as np
import orbax.checkpoint as ocp
from helpers import arrays
from safetensors.numpy import save_file


def made(name: str) -> dict[str, Any]:
    """The state of one optimizer after the steps, and what the next one makes of it."""
    tx, params = golden.CHAINS[name](), golden.params()
    step = golden.step(tx)
    state = tx.init(params)
    *before, last = golden.gradients()
    for grads in before:
        params, state = step(params, state, grads)
    after, _ = step(params, state, last)
    return {"state": state, "params": params, "after": after}


def main(folder: pathlib.Path) -> None:
    """Run every optimizer and write the three forms."""
    folder.mkdir(parents=True)
    runs = {name: made(name) for name in golden.CHAINS}
    whole = {"reference": golden.reference(), "runs": runs}
    (folder / "run.msgpack").write_bytes(flax.serialization.to_bytes(whole))
    states = {name: run["state"] for name, run in runs.items()}
    leaves = {path: np.asarray(leaf) for path, leaf in arrays(states).items()}
    save_file(leaves, folder / "states.safetensors")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / "orbax").absolute(), states)
    print(f"{len(runs)} states with jax {jax.__version__}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
