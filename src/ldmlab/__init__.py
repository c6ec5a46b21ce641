"""ldmlab: a laboratory for latent diffusion."""

__version__ = "0.1.0"
