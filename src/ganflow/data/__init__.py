"""Sources of pictures, packed once into uint8 arrays with a data card, and their batches."""
