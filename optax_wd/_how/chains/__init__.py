# SPDX-License-Identifier: Apache-2.0
"""Ready optimizers: the chains that one would write, in the right order."""
