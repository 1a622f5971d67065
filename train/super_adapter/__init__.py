"""The `super_adapter` artefact: the super-network and its training."""
