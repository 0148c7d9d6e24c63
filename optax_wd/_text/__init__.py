# SPDX-License-Identifier: Apache-2.0
"""Rules as text: `parse_rule` knows every rule and recipe."""
