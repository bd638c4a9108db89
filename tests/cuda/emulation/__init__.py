# SPDX-License-Identifier: Apache-2.0
"""Runs the CUDA kernels' own source on a CPU: docs/verification.md says what that shows."""
