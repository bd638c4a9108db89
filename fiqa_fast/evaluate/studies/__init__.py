# SPDX-License-Identifier: Apache-2.0
"""Whole studies: a score against known damage, and the papers' table."""
