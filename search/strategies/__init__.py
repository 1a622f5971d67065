"""What asks for candidates: strategies, and the grid that they search."""
