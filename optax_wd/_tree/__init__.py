# SPDX-License-Identifier: Apache-2.0
"""What a leaf is, and how a table of leaves is written short."""
