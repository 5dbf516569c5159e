"""What is timed on a machine; each module with a command says how to run it."""
