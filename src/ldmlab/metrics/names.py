"""Names of what can be measured, for those who check settings without loading torch."""

DISTANCES = ("kid", "fd", "sfd", "fdinf", "is", "prdc")
"""Kernel, Fréchet, spatial Fréchet distance, Fréchet distance extrapolated to infinitely many images, Inception score,
and precision, recall, density, coverage, which are always measured together."""

LEAST_SAMPLES = 6
"""Images of which everything but the Inception score can be measured: one has five neighbours."""

ENOUGH_FOR_FRECHET = 5000
"""Samples from which the Fréchet distance is the headline; below, its bias is larger than what runs differ by."""
