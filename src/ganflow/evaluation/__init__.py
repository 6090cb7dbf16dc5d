"""Features, statistics and metrics as pure functions on tensors."""
