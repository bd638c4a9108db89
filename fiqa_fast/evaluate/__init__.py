# SPDX-License-Identifier: Apache-2.0
"""Error-versus-discard evaluation of quality scores: pairs, a matcher, protocols, a report."""
