"""The four stages, and what a sweep adds, as functions that Kubeflow runs: thin bodies around ganflow's stages.

Kubeflow takes the source of each function by itself: a module imports nothing but the standard library and kfp at its
top, and the function imports ganflow, which the image holds, in its body. Its argument `leaves` stands for the
parameters by dotted path; pipelines/leaves.py puts one typed input for each of them in its place.
"""
