# SPDX-License-Identifier: Apache-2.0
"""HOW MUCH: numbers, schedules and factors of single leaves."""
