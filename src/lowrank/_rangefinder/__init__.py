"""A basis that grows until its error is small enough: the algorithm, room by room.

`growth` has the loop, in the order of the paper; `residuals` the three ways to know the error.
"""
