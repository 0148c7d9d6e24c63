# SPDX-License-Identifier: Apache-2.0
"""The programs that tests let XLA compile: made quickly, and forgotten in time."""

import os
import subprocess
import sys
from typing import Any

import jax

FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
"""They halve the time that XLA takes for a program, and leave its passes alone."""
COMPILED = "/jax/core/compile/backend_compile_duration"
"""What JAX reports of each program that it compiles."""


def knows(flags: str) -> bool:
    """Whether XLA takes these flags: it ends a process with one it does not know."""
    line = [sys.executable, "-c", "import jax; jax.devices()"]
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return not subprocess.run(line, env=env, capture_output=True).returncode


class Programs:
    """JAX keeps all it compiles, a megabyte and more each; this lets it forget them."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept = 0
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event: str, duration_secs: float, **_: Any) -> None:
        self.kept += event == COMPILED

    def forget(self) -> None:
        """Drops all programs if they are too many; what is used again is made again."""
        if self.kept > self.most:
            jax.clear_caches()
            self.kept = 0
