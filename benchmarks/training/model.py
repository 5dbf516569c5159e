"""The model, a Llama without a tokenizer, and its two kinds of parameters."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 256


def llama(
    vocabulary: int, hidden: int, intermediate: int, layers: int, heads: int, *, seed: int = 0
) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


@dataclass(frozen=True)
class Shape:
    hidden: int = 128
    intermediate: int = 352
    layers: int = 3
    heads: int = 4

    def build(self, seed: int) -> torch.nn.Module:
        """The same model for the same seed, from its configuration alone."""
        return llama(VOCABULARY, self.hidden, self.intermediate, self.layers, self.heads, seed=seed)

    def about(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class Parts:
    """The matrices of attention and MLP, whose state is compressed, and everything else."""

    matrices: list[torch.nn.Parameter]
    rest: list[torch.nn.Parameter]


def split(model: torch.nn.Module) -> Parts:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    chosen = set(matrices)
    return Parts(matrices, [p for p in model.parameters() if p not in chosen])


def short(G: torch.Tensor) -> torch.Tensor:
    """The matrix with its short side first."""
    return G if G.shape[0] <= G.shape[1] else G.T


def loss_of(model: torch.nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """Mean nats per byte: every byte of a window but the first is foretold."""
    logits = model(windows[:, :-1]).logits
    return cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, windows: torch.Tensor, batch: int = 64) -> float:
    model.eval()
    parts = [(len(part), float(loss_of(model, part))) for part in windows.split(batch)]
    model.train()
    return sum(count * loss for count, loss in parts) / len(windows)


# -- bytes of state -------------------------------------------------------------------------------


def tensors_in(value: object) -> Iterator[torch.Tensor]:
    """All plain tensors that a value of an optimizer's state holds, in objects of classes too."""
    if isinstance(value, torch.Tensor):
        inner = getattr(value, "__tensor_flatten__", None)
        if inner is None:
            yield value
        else:  # a quantized tensor is made of others
            for name in inner()[0]:
                yield from tensors_in(getattr(value, name))
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)
    elif hasattr(value, "__dict__"):
        yield from tensors_in(vars(value))


def bytes_held(states: list[object]) -> int:
    """Bytes of the storages that are kept alive, each counted once, and whole."""
    storages = {}
    for tensor in tensors_in(states):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def state_bytes(
    optimizers: list[torch.optim.Optimizer], parameters: list[torch.nn.Parameter]
) -> int:
    states = [optimizer.state for optimizer in optimizers]
    return bytes_held([state[p] for state in states for p in parameters if p in state])
