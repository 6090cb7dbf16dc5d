"""prepare, train, evaluate, register: parameters and paths in, files out."""
