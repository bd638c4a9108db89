# SPDX-License-Identifier: Apache-2.0
"""How the last attention of a ViT from any library is found, and how its q and k are obtained.

``stack`` finds the blocks, the patch tokens and the grid; ``projections`` recognises an attention
by its structure; ``custom`` holds what users registered; ``probe`` makes sure that the logits we
would average are the logits the module's own forward feeds to its softmax.
"""
