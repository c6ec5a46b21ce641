"""Stage one: images to latents and back."""
