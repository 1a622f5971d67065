"""Pruning a pretrained transformer: Wanda or magnitude scores, unstructured or n:m patterns."""
