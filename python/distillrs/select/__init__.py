"""Selection of real data: clustering and coresets."""
