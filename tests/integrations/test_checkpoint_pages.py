"""The pages about checkpoints, run as a reader runs them, on a tiny model."""

import copy
import re
import shlex
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from test_checkpoints import logits, matrices, written  # noqa: E402
from tiny_models import llama, sentences  # noqa: E402

from lowrank.__main__ import main  # noqa: E402

PAGES = Path(__file__).parents[2] / "docs" / "how-to"
NUMBER = r"[0-9.]+%"
# peft 0.21 asks transformers 5.23 for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def blocks(page, language="python"):
    text = (PAGES / page).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def told(page, capsys, *options):
    """What the command on the page prints."""
    program, *arguments = shlex.split(blocks(page, "sh")[0])
    assert program == "lowrank"
    assert main([*arguments, *options]) == 0
    return capsys.readouterr().out


def same_table(page, printed):
    """The page shows what is printed, up to a tenth of each share."""
    (shown,) = blocks(page, "text")
    assert re.sub(NUMBER, "%", printed).split() == re.sub(NUMBER, "%", shown).split()
    now, then = ([float(x[:-1]) for x in re.findall(NUMBER, text)] for text in (printed, shown))
    assert now == pytest.approx(then, rel=0.1)


def test_the_adapter_of_the_page(capsys):
    """A model with other norms and two more words."""
    pytest.importorskip("peft")
    model = written(llama, noise=0.02)
    model.model.norm.weight.data *= 1.01
    model.lm_head.weight.data *= 1.02
    embedding, model.model.embed_tokens.weight = (
        model.model.embed_tokens.weight,
        torch.nn.Parameter(torch.ones(42, 32)),
    )
    state = {name: value for name, value in model.state_dict().items() if ".1." not in name}
    whole, shards = load_file("BASE/model.safetensors"), Path("TUNED").glob("model*")
    for shard in shards:
        shard.unlink()
    save_file(state | {"score.weight": torch.ones(2, 32)}, "TUNED/model.safetensors")
    part = {name: X for name, X in whole.items() if ".1." not in name}
    save_file(part, "BASE/model.safetensors")
    same_table("lora.md", told("lora.md", capsys))

    model.model.embed_tokens.weight = embedding
    model.save_pretrained("TUNED")
    save_file(whole, "BASE/model.safetensors", {"format": "pt"})
    _, use = blocks("lora.md")
    space = {}
    exec(compile(blocks("lora.md")[0], "lora.md", "exec"), space)
    assert {change.written > 0 for change in space["changes"]} == {True}
    use = use.replace("model = model.m", "beside = model(x)\nmodel = model.m")
    space["x"] = sentences(8)
    with torch.no_grad():
        exec(compile(use, "lora.md", "exec"), space)
    start = transformers.AutoModelForCausalLM.from_pretrained("BASE")
    before, after, merged = map(logits, (start, model, space["model"]))
    moved = torch.linalg.norm(after - before)
    for output in (space["beside"].logits, merged):
        assert torch.linalg.norm(output - after) <= 0.05 * moved
    first, last = matrices(start), matrices(model)
    for name, weight in matrices(space["model"]).items():
        change, rounding = torch.linalg.norm(last[name] - first[name]), 1e-6 * last[name].norm()
        assert torch.linalg.norm(weight - last[name]) <= 0.1 * change + rounding


@pytest.fixture(scope="module")
def digits():
    """The page about linear layers, up to its command: what it has defined and computed."""
    pytest.importorskip("sklearn")
    space, filters = {}, warnings.filters[:]
    for block in blocks("checkpoints.md")[:3]:
        exec(compile(block, "checkpoints.md", "exec"), space)
    warnings.filters[:] = filters
    return SimpleNamespace(**space)


def accuracy(digits, model):
    with torch.no_grad():
        right = model(digits.images[digits.test]).argmax(dim=1) == digits.labels[digits.test]
    return right.double().mean().item()


@pytest.mark.filterwarnings("ignore::lowrank.ConvergenceWarning")
def test_the_table_of_digits(digits):
    text = (PAGES / "checkpoints.md").read_text("utf-8")
    rtols, *rows = re.findall(r"^\| (?:weights kept|error of).*", text, re.MULTILINE)
    rtols = [int(rtol) / 100 for rtol in re.findall(r"(\d+) %", rtols)]
    grams = digits.input_grams(digits.model, digits.images[digits.train].split(100))
    whole = sum(p.numel() for p in digits.model.parameters())
    for row, given in zip(rows, (None, grams), strict=True):
        shown = re.findall(r"(\d+) %, ([\d.]+)", row)
        for rtol, (kept, right) in zip(rtols, shown, strict=True):
            model = copy.deepcopy(digits.model)
            digits.compress(model, rtol, given)
            share = sum(p.numel() for p in model.parameters()) / whole
            assert share == pytest.approx(int(kept) / 100, abs=0.03)
            assert accuracy(digits, model) == pytest.approx(float(right), abs=0.04)


def test_outputs_are_as_near_as_was_asked(digits):
    X = digits.images[digits.train]
    with torch.no_grad():
        for layer, small in zip(digits.model, digits.small, strict=True):
            if isinstance(layer, torch.nn.Linear):
                Y = X @ layer.weight.T
                error = torch.linalg.norm(small(X) - layer(X))
                assert 0.5 * 0.05 <= error / torch.linalg.norm(Y) <= 0.05
            X = layer(X)


def test_a_file_of_factors_is_loaded(digits, capsys):
    save_file(digits.model.state_dict(), "model.safetensors")
    printed = told("checkpoints.md", capsys)
    (shown,) = blocks("checkpoints.md", "text")
    assert re.sub(r"\d", "", printed).split() == re.sub(r"\d", "", shown).split()
    now, then = (re.findall(r"\d[\d.]*(?=%| [KM]iB)", text) for text in (printed, shown))
    assert [*map(float, now)] == pytest.approx([*map(float, then)], rel=0.1)
    first = load_file("small.safetensors")
    exec(compile(blocks("checkpoints.md")[-2], "checkpoints.md", "exec"), {})
    second = load_file("small.safetensors")
    assert all(torch.equal(second[name], X) for name, X in first.items())

    space = dict(vars(digits))
    exec(compile(blocks("checkpoints.md")[-1], "checkpoints.md", "exec"), space)
    for layer, pair in zip(digits.model, space["restored"], strict=True):
        if isinstance(layer, torch.nn.Linear):
            difference = pair[1].weight @ pair[0].weight - layer.weight
            assert torch.linalg.norm(difference) <= 0.3 * torch.linalg.norm(layer.weight)
            assert torch.equal(pair[1].bias, layer.bias)
    model = copy.deepcopy(digits.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        digits.compress(model, 0.3)
    assert model.state_dict().keys() == space["restored"].state_dict().keys()
