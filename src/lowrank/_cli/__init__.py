"""The command ``lowrank``: read a file, factorize, report, and write the factors."""
