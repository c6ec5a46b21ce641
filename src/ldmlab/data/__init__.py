"""Data sets, the batches that they give, and cached latents."""
