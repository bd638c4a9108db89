# SPDX-License-Identifier: Apache-2.0
"""One file per engine: ours, and those of others. Each lists its entries for one arithmetic."""
