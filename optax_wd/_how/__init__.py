# SPDX-License-Identifier: Apache-2.0
"""HOW: what is subtracted, on which coordinates, and where in a chain it stands."""
