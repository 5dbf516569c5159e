"""Trains a small language model with the optimizers of lowrank.optim and with others.

    python -m benchmarks.training all --workers 2
    python -m benchmarks.training run [--corpus kjv] [--only PATTERN] [--workers 2] [--quick]
    python -m benchmarks.training experiments [--only e3] [--large] [--quick]
    python -m benchmarks.training table [--corpus kjv] [--quick]
    python -m benchmarks.training plots [--corpus kjv] [--quick]

The first makes everything, the others its parts: all methods on one text, a few on another. From
the root of a checkout; `pip install -c constraints.txt --group training` installs what the library
itself does not need (galore-torch and apollo-torch with --no-deps: what they require beyond torch
and transformers is not used). One run is one JSON file in benchmarks/results/training, and a run
that has its file is not repeated: what was stopped goes on where it was.

What is learned: the next byte, by a Llama of 602 112 weights in the attention and MLP matrices,
in 800 steps of 16×64 bytes. What is compared: nats per byte of held-out text after the same steps,
every method at its own best learning rate from one grid, beside the bytes of its state. Only the
state of the 21 matrices is compressed, or counted; embedding, head and norms are left to AdamW (or
its 8-bit form) by all methods. A method that is free to move the matrices at another rate than the
rest is compared with an AdamW that is free to do so too.

What this can't show: models of another size, longer training, half precision, times on a GPU.
"""
