# SPDX-License-Identifier: Apache-2.0
"""SEE: what is asked for, what happens, and what happened while training."""
