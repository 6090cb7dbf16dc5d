"""Features -> statistics -> metrics: how good generated pictures are, and what was measured how."""
