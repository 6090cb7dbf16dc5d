"""ganflow: generative adversarial networks trained as a reproducible pipeline."""

__version__ = "0.1.0"
