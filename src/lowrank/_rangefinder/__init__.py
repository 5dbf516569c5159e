"""The adaptive range finder: a basis that grows until its error is small enough.

`growth` holds the loop, in the order of the paper; `residuals` the three ways to know the error.
"""
