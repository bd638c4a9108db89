# SPDX-License-Identifier: Apache-2.0
"""The ways in which evaluation sets lie on disk, one file each."""
