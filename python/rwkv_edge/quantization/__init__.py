# SPDX-License-Identifier: Apache-2.0
"""What quantization costs, measured; and what makes it cost less."""
