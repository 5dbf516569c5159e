"""What ``python -m lowrank`` does: read a file, factorize, report, write."""
