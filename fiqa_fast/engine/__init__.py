# SPDX-License-Identifier: Apache-2.0
"""Engines run the blocks of a ViT and show the residual stream to a quality method."""
