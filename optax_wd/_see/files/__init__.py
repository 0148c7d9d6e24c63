# SPDX-License-Identifier: Apache-2.0
"""Readers of checkpoints: names, shapes and dtypes, without loading arrays."""
