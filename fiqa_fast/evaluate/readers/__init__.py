# SPDX-License-Identifier: Apache-2.0
"""What an evaluation reads: sets of images and pairs, scores, embeddings, and matchers."""
