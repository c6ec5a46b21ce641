"""To and from what others use: folders of diffusers, checkpoints of CompVis."""
