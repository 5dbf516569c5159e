"""Models of transformers, so small that a step takes milliseconds, and tokens to learn.

Every model is built from a config, and nothing is asked of a model hub: import this before any
package that reads the variable.
"""

import copy
import io
import os
from itertools import chain

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from test_optim import equal, same_state, snapshot

VOCABULARY, WIDTH, LAYERS, LENGTH = 40, 32, 2, 8
# Ids of special tokens are outside of a small vocabulary by default.
COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def llama(cls="LlamaForCausalLM", *, seed=0, tied=False, **options):
    import transformers  # noqa: PLC0415

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=tied,
        **COMMON,
        **options,
    )
    return getattr(transformers, cls)(config)


def gpt2(cls="GPT2LMHeadModel", *, seed=0, **options):
    """With dropout, as it is by default, and linear layers of its own class."""
    import transformers  # noqa: PLC0415

    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=LENGTH, **COMMON, **options
    )
    return getattr(transformers, cls)(config)


def bert(cls, **options):
    import transformers  # noqa: PLC0415

    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        **COMMON,
        **options,
    )
    return getattr(transformers, cls)(config)


def sentences(count, seed=0):
    """Rows of tokens in which every token follows from the one before."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(VOCABULARY, (count, 1), generator=generator)
    return (starts + 3 * torch.arange(LENGTH)) % VOCABULARY


def examples(count, seed=0):
    """A data set as the trainers of language models take it."""
    return [{"input_ids": row, "labels": row} for row in sentences(count, seed)]


def language_loss(model, tokens):
    return model(input_ids=tokens, labels=tokens).loss


def compressed_names(groups):
    return {name for group in groups if group["rank"] for name in group["param_names"]}


def other_names(groups):
    return set(chain.from_iterable(group["param_names"] for group in groups)) - compressed_names(
        groups
    )


def saved_and_loaded(checkpoint):
    """What a file gives back that is read with ``weights_only=True``."""
    file = io.BytesIO()
    torch.save(checkpoint, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same_run(model, optimizer, other, other_optimizer):
    """Weights and state of optimizers are equal bit by bit."""
    assert equal(model.parameters(), other.parameters())
    same_state(snapshot(optimizer), snapshot(other_optimizer))
    groups, others = (copy.deepcopy(o.state_dict()) for o in (optimizer, other_optimizer))
    assert groups["param_groups"] == others["param_groups"]


def seen_by(cls, name):
    """A subclass of an optimizer that notes the option `name` whenever it steps."""

    class Seen(cls):
        noted = []  # noqa: RUF012

        def step(self, closure=None):
            self.noted.extend(group[name] for group in self.param_groups)
            return super().step(closure)

    return Seen


@pytest.fixture(autouse=True)
def no_state_of_accelerate_is_left():
    """Accelerate keeps one state for a process; every test has its own."""
    yield
    forget_accelerate()


def forget_accelerate():
    from accelerate.state import AcceleratorState, GradientState  # noqa: PLC0415

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def watch_loads(monkeypatch):
    """Names of the files that are loaded from now on, and whether only weights were allowed."""
    loads, load = [], torch.load

    def watched(file, *args, **options):
        loads.append((str(file).rpartition("/")[2], options.get("weights_only", True)))
        return load(file, *args, **options)

    monkeypatch.setattr(torch, "load", watched)
    return loads
