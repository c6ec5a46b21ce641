"""Feature extractors, distances between sets of images, reconstruction quality and speed."""
