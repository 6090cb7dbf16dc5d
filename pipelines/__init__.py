"""The Kubeflow pipelines, and `python -m pipelines`, which compiles, runs and submits them."""
