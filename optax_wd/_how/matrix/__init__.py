# SPDX-License-Identifier: Apache-2.0
"""Optimizers of matrices: Muon and NorMuon."""
