"""What is trained: the autoencoder and the latent diffusion model, as LightningModules, and the data they are fed."""
