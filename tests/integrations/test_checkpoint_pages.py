"""The pages about checkpoints, run as a reader runs them, on a tiny model."""

import copy
import re
import runpy
import shlex
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from tiny_models import gpt2, llama, sentences  # noqa: E402

PAGES = Path(__file__).parents[2] / "docs" / "how-to"
# peft 0.21 asks transformers 5.23 for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def blocks(page, language="python"):
    text = (PAGES / page).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def table(page, monkeypatch, capsys, *options):
    """What the script of a page prints, called by the command on the page."""
    _, name, *arguments = shlex.split(blocks(page, "sh")[0])
    (script,) = (block for block in blocks(page) if f'"""{name}' in block)
    Path(name).write_text(script, "utf-8")
    monkeypatch.setattr(sys, "argv", [name, *arguments, *options])
    runpy.run_path(name, run_name="__main__")
    return capsys.readouterr().out


def matrices(model):
    kinds = torch.nn.Linear, transformers.pytorch_utils.Conv1D
    modules = dict(model.named_modules())
    return {name: m.weight for name, m in modules.items() if isinstance(m, kinds)}


def tune(model, noise):
    """Change every matrix but the head by 2 %, by rank 5 in "mlp" and 2 elsewhere, and noise."""
    torch.manual_seed(1)
    for name, weight in matrices(model).items():
        if name != "lm_head":
            (m, n), rank = weight.shape, 5 if "mlp" in name else 2
            change = torch.randn(m, rank) @ torch.randn(rank, n)
            change += noise * torch.linalg.norm(change) * torch.randn(m, n) / (m * n) ** 0.5
            change *= 0.02 * torch.linalg.norm(weight) / torch.linalg.norm(change)
            weight.data += change.to(weight.dtype)
    return model


@pytest.fixture
def checkpoints(tmp_path, monkeypatch, request):
    """BASE and TUNED here, and the tuned model."""
    make, noise, dtype = request.param
    monkeypatch.chdir(tmp_path)
    make().to(dtype).save_pretrained("BASE")
    model = tune(make().to(dtype), noise)
    model.save_pretrained("TUNED", max_shard_size="20KB")
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=sentences(8)).logits.float()


def ranks(printed):
    return {name: int(rank) for name, rank in re.findall(r"^(\S+)\.weight +(\d+) ", printed, re.M)}


LLAMA = llama, 0.02, torch.float32


@pytest.mark.parametrize(
    ("checkpoints", "options"),
    [
        (LLAMA, ()),
        ((lambda: llama(tied=True), 0.02, torch.float32), ()),
        ((gpt2, 0.02, torch.float32), ("--transposed",)),
    ],
    indirect=["checkpoints"],
    ids=["llama", "tied", "gpt2"],
)
def test_the_adapter_makes_the_tuned_model(checkpoints, options, monkeypatch, capsys):
    pytest.importorskip("peft")
    goal = checkpoints.eval()
    printed = table("lora.md", monkeypatch, capsys, *options)
    assert "not in" not in printed
    left = float(re.search(r"(\S+)% is left", printed)[1]) / 100
    assert 0.01 < left < 0.02

    load = blocks("lora.md")[1].replace("model = model.m", "beside = model(x)\nmodel = model.m")
    space = {"x": sentences(8)}
    with torch.no_grad():
        exec(compile(load, "lora.md", "exec"), space)
    start = transformers.AutoModelForCausalLM.from_pretrained("BASE")
    before, after, merged = map(logits, (start, goal, space["model"]))
    moved = torch.linalg.norm(after - before)
    for output in (space["beside"].logits, merged):
        assert torch.linalg.norm(output - after) <= 2 * left * moved

    first, last = matrices(start), matrices(goal)
    for name, weight in matrices(space["model"]).items():
        change, rounding = torch.linalg.norm(last[name] - first[name]), 1e-6 * last[name].norm()
        assert torch.linalg.norm(weight - last[name]) <= 0.1 * change + rounding


@pytest.mark.parametrize("checkpoints", [(llama, 0.0, torch.bfloat16)], indirect=True)
def test_ranks_are_found_again_below_the_rounding_of_bfloat16(checkpoints, monkeypatch, capsys):
    found = ranks(table("lora.md", monkeypatch, capsys, "--rtol", "1e-6"))
    assert len(found) == 14
    assert found == {name: 5 if "mlp" in name else 2 for name in found}


@pytest.mark.parametrize("checkpoints", [LLAMA], indirect=True)
def test_what_no_adapter_holds_is_listed(checkpoints, monkeypatch, capsys):
    """The table on the page, of a model with other norms and two more words."""
    checkpoints.model.norm.weight.data *= 1.01
    checkpoints.lm_head.weight.data *= 1.02
    checkpoints.model.embed_tokens.weight = torch.nn.Parameter(torch.ones(42, 32))
    state = {name: value for name, value in checkpoints.state_dict().items() if ".1." not in name}
    save_file(state | {"score.weight": torch.ones(2, 32)}, "TUNED/model.safetensors")
    Path("TUNED/model.safetensors.index.json").unlink()
    base = load_file("BASE/model.safetensors")
    save_file({name: base[name] for name in base if ".1." not in name}, "BASE/model.safetensors")
    printed = table("lora.md", monkeypatch, capsys)
    (shown,) = blocks("lora.md", "text")
    number = r"[0-9.]+%"
    assert re.sub(number, "%", printed) == re.sub(number, "%", shown)
    now, then = ([float(x[:-1]) for x in re.findall(number, text)] for text in (printed, shown))
    assert now == pytest.approx(then, rel=0.1)


@pytest.mark.parametrize("checkpoints", [LLAMA], indirect=True)
def test_checkpoints_that_do_not_fit_are_refused_in_one_line(checkpoints, monkeypatch, capsys):
    save_file({"other.weight": torch.ones(3, 3)}, "other.safetensors")
    for tuned, said in (("other.safetensors", "no names in common"), ("BASE", "no matrix has")):
        monkeypatch.setattr(sys, "argv", ["extract_lora.py", tuned, "BASE", "adapter"])
        with pytest.raises(SystemExit):
            exec(compile(blocks("lora.md")[0], "lora.md", "exec"), {})
        assert said in capsys.readouterr().err
    assert not Path("adapter").exists()


@pytest.fixture(scope="module")
def digits():
    """The page about linear layers, up to its script: what it has defined and computed."""
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_of_factors_is_loaded(digits, dtype, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = copy.deepcopy(digits.model).to(dtype)
    extra = {"norm.weight": torch.ones(3), "embed.weight": torch.ones(9, 9)}
    if dtype == torch.float32:
        extra = {}
    save_file(model.state_dict() | extra, "model.safetensors")
    printed = table("checkpoints.md", monkeypatch, capsys)
    if not extra:
        (shown,) = blocks("checkpoints.md", "text")
        assert re.sub(r"\d", "", printed) == re.sub(r"\d", "", shown)
        now, then = (re.findall(r"[\d.]+(?=%| bytes|\n)", text) for text in (printed, shown))
        assert [*map(float, now)] == pytest.approx([*map(float, then)], rel=0.1)

    written = load_file("small.safetensors")
    assert all(torch.equal(written.pop(name), value) for name, value in extra.items())
    save_file(written, "small.safetensors")
    space = {**vars(digits), "model": model}
    exec(compile(blocks("checkpoints.md")[-1], "checkpoints.md", "exec"), space)
    restored = space["restored"]
    for layer, pair in zip(model, restored, strict=True):
        if isinstance(layer, torch.nn.Linear):
            difference = pair[1].weight.float() @ pair[0].weight.float() - layer.weight.float()
            assert torch.linalg.norm(difference) <= 0.3 * torch.linalg.norm(layer.weight.float())
            assert torch.equal(pair[1].bias, layer.bias)
    digits.compress(model, 0.3)
    assert model.state_dict().keys() == restored.state_dict().keys()
