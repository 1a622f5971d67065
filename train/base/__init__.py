"""The `base` artefact."""
