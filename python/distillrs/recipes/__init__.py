"""Published systems by name, each a short composition of engine parts."""
