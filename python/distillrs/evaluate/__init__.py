"""Fair measurement, shared by proofs, demos and users."""
