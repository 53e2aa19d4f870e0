"""What may change or go in any version. Nothing is here yet."""

__all__: list[str] = []
