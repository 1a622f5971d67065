"""What the `shearling` command does besides the demo."""
