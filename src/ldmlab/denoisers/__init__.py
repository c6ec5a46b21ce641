"""The networks that predict: image or latent with noise in, estimate of the same shape out."""
