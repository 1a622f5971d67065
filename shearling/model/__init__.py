"""Models as they are: layers and widths found, checkpoints read safely, what can be exported."""
