"""What proves an export: parity, zeros, NNCF's certificate."""
