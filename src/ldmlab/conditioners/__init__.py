"""What a model can be told, and how it is left out for classifier-free guidance."""
