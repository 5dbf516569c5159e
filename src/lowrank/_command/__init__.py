"""What ``python -m lowrank`` does: read a file, factorize, report, write."""

__all__: list[str] = []
