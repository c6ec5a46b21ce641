"""Networks that others trained: found, checked by their SHA-256, loaded. They measure, they are trained against."""
