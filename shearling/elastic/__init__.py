"""The elastic core: search space, super-network, adapters, masks, merge rule, and the sub-network that is chosen."""
