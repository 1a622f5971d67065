"""Stage search: from a super-adapter to the sub-network to deploy."""
