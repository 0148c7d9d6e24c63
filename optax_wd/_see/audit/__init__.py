# SPDX-License-Identifier: Apache-2.0
"""What an optimizer does, measured: `init` and `update` are all it knows."""
