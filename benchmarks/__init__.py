"""What reproduces the figures of the documentation."""
