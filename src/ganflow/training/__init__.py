"""The engine: the loop, its checkpoint, journal and moving average. It never knows the family."""
