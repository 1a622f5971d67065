"""Interleaved measuring of deployments in processes of their own."""
