# SPDX-License-Identifier: Apache-2.0
"""How the last attention of a ViT from any library is found, read and followed.

``stack`` finds the blocks, the patch tokens and the grid; ``projections`` recognises an attention
by its structure; ``custom`` holds what users registered; ``probe`` makes sure that the logits we
would average are the logits the module's own forward feeds to its softmax; ``logit_means`` averages
them; ``taps`` does so on every pass of the model.
"""
