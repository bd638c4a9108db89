# SPDX-License-Identifier: Apache-2.0
"""Seeded bugs that the tests have to catch: `python tests/cuda/mutations/run.py --all`."""
