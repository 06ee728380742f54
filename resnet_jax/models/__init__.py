"""Networks: layers, blocks, and the table of architectures built from them."""
