"""Pictures of what a run has learned. Knows plain tensors and files, no models."""
