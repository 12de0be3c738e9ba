"""The failure modes of a quantized network, one file each, found by statistics and proved by undoing them."""
