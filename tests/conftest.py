# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests: several CPU devices, before JAX is first used."""

import jax

jax.config.update("jax_num_cpu_devices", 4)
