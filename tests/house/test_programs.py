# SPDX-License-Identifier: Apache-2.0
"""What keeps the tests small and quick does what it says."""

import jax
import numpy as np
import pytest
from programs import Programs, knows


def test_programs_are_counted_and_too_many_are_forgotten() -> None:
    programs = Programs(most=1)
    traced = []

    @jax.jit
    def double(x: jax.Array) -> jax.Array:
        traced.append(x.shape)
        return 2 * x

    for size in (1, 1, 2):
        double(np.ones(size))
        programs.forget()  # of which only the last call finds too many
    assert traced == [(1,), (2,)] and programs.kept == 0
    double(np.ones(2))
    assert traced == [(1,), (2,), (2,)] and programs.kept == 1


@pytest.mark.parametrize("flags", ["", "--xla_no_such_flag=1"])
def test_flags_that_xla_does_not_know_are_found_out(flags: str) -> None:
    assert knows(flags) is (not flags)
