# SPDX-License-Identifier: Apache-2.0
"""What can be said about the compiled kernels without running them."""
