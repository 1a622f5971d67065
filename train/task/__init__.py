"""The `task` artefact."""
