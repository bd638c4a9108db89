# SPDX-License-Identifier: Apache-2.0
"""Evidence that a score measures quality."""
