# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests, before JAX is first used; XLA_FLAGS that are set are kept."""

import os

import jax
from programs import FLAGS, Programs, knows

# The workers of pytest-xdist and what tests start inherit the flags.
if not {"XLA_FLAGS", "PYTEST_XDIST_WORKER"} & set(os.environ) and knows(FLAGS):
    os.environ["XLA_FLAGS"] = FLAGS
jax.config.update("jax_num_cpu_devices", 4)
programs = Programs(most=300)


def pytest_runtest_teardown() -> None:
    programs.forget()
