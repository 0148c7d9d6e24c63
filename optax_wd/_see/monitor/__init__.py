# SPDX-License-Identifier: Apache-2.0
"""What happens within the steps of a run."""
