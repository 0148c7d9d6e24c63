# SPDX-License-Identifier: Apache-2.0
"""WHERE: rules over path, shape and dtype."""
