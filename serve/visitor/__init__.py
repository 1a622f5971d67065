"""What measures a model inside somebody else's environment: Python, numpy and the runtime are all that it needs."""
