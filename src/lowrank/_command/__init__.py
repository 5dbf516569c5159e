"""What ``lowrank`` does: read a file, factorize, report, write."""
