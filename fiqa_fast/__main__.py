# SPDX-License-Identifier: Apache-2.0
"""``python -m fiqa_fast`` is ``fiqa-fast``."""

from fiqa_fast.cli import main

main()
