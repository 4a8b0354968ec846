# SPDX-License-Identifier: Apache-2.0
"""Files: what one is, the readers of checkpoints, the writer of GGUF."""
