"""Pruning a pretrained decoder: Wanda or magnitude scores, unstructured or n:m patterns."""
