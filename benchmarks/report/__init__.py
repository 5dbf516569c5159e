"""Pages of the documentation and plots, from the files of results."""
