# SPDX-License-Identifier: Apache-2.0
"""One file per method of the literature; none knows another."""
