# SPDX-License-Identifier: Apache-2.0
"""One method per file: a direction, and at most one gate."""
