# SPDX-License-Identifier: Apache-2.0
"""The protocols: what a threshold is, what is discarded, and what the curve looks like."""
