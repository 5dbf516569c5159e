"""Factorized checkpoints, and adapters that PEFT loads, of tiny models."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
transformers = pytest.importorskip("transformers")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tiny_models import gpt2, llama, sentences  # noqa: E402

from lowrank.__main__ import main  # noqa: E402
from lowrank.adapters import extract_lora  # noqa: E402
from lowrank.checkpoints import factorize  # noqa: E402

# peft 0.21 asks transformers 5.23 for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def matrices(model):
    kinds = torch.nn.Linear, transformers.pytorch_utils.Conv1D
    modules = dict(model.named_modules())
    return {name: m.weight for name, m in modules.items() if isinstance(m, kinds)}


def moved(weight, rank, noise=0.0):
    """Change a matrix by 2 % of its norm: by this rank, and a share of noise."""
    m, n = weight.shape
    change = torch.randn(m, rank) @ torch.randn(rank, n)
    change += noise * torch.linalg.norm(change) * torch.randn(m, n) / (m * n) ** 0.5
    return 0.02 * torch.linalg.norm(weight.float()) / torch.linalg.norm(change) * change


def tune(model, noise=0.0, *, everything=False):
    """Change every matrix but the head, by rank 5 in "mlp" and 2 elsewhere; or everything."""
    torch.manual_seed(1)
    linear = {name for name in matrices(model) if name != "lm_head"}
    for name, weight in model.named_parameters():
        layer = name.removesuffix(".weight")
        if layer in linear and name.endswith(".weight"):
            weight.data += moved(weight, 5 if "mlp" in name else 2, noise).to(weight.dtype)
        elif everything:
            weight.data += 0.02 * torch.randn_like(weight)
    return model.eval()


def written(make, dtype=torch.float32, **options):
    """BASE and TUNED here, and the tuned model."""
    make().to(dtype).save_pretrained("BASE")
    model = tune(make().to(dtype), **options)
    model.save_pretrained("TUNED", max_shard_size="20KB")
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=sentences(8)).logits.float()


def tied_llama():
    return llama(tied=True)


MODELS = pytest.mark.parametrize("make", [llama, tied_llama, gpt2])


# -- adapters --------------------------------------------------------------------------------------


def adapted(make, goal):
    """What is left of the change of the outputs, with the adapter beside the weights and merged."""
    peft = pytest.importorskip("peft")
    start = transformers.AutoModelForCausalLM.from_pretrained("BASE")
    before, after = logits(start), logits(goal)
    model = peft.PeftModel.from_pretrained(start, "adapter").eval()
    names = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert len(names) == len(model.peft_config["default"].rank_pattern)  # every name was found
    outputs = logits(model), logits(model.merge_and_unload())
    size = torch.linalg.norm(after - before)
    return [float(torch.linalg.norm(output - after) / size) for output in outputs]


@MODELS
def test_the_adapter_makes_the_tuned_model(make):
    goal = written(make, noise=0.02)
    changes = extract_lora("TUNED", "BASE", "adapter", rtol=0.1, transposed=make is gpt2)
    base, tuned = (matrices(model) for model in (make(), goal))
    assert {change.name.removesuffix(".weight") for change in changes} == tuned.keys() - {"lm_head"}
    pairs = load_file("adapter/adapter_model.safetensors")
    for change in changes:
        layer = change.name.removesuffix(".weight")
        A, B = (pairs[f"base_model.model.{layer}.lora_{letter}.weight"] for letter in "AB")
        difference = tuned[layer] - base[layer]
        left = difference - ((B @ A).mT if make is gpt2 else B @ A)
        assert change.rank == len(A) == (5 if "mlp" in layer else 2)
        assert change.written == A.nbytes + B.nbytes
        assert change.norm == pytest.approx(torch.linalg.norm(difference).item(), rel=1e-5)
        assert torch.linalg.norm(left) <= change.error_bound * (1 + 1e-4) <= 0.1 * change.norm
        assert change.converged
    share = math.hypot(*(c.error_bound for c in changes)) / math.hypot(*(c.norm for c in changes))
    assert max(adapted(make, goal)) <= 2 * share


@MODELS
def test_what_has_no_factors_can_be_saved_in_full(make):
    goal = written(make, everything=True)
    options = {"rtol": 1e-3, "transposed": make is gpt2}
    changes = extract_lora("TUNED", "BASE", "adapter", **options, save_rest=True)
    assert not [change for change in changes if change.note]
    assert max(adapted(make, goal)) <= 1e-3
    changes = extract_lora("TUNED", "BASE", "adapter", **options, overwrite=True)
    assert len([change for change in changes if change.note]) > 5
    assert min(adapted(make, goal)) >= 0.5


def test_ranks_are_found_again_below_the_rounding_of_bfloat16():
    written(llama, torch.bfloat16)
    for options in ({"rtol": 1e-6}, {"rank": 20}):
        changes = extract_lora("TUNED", "BASE", "adapter", **options, overwrite=True)
        assert len(changes) == 14
        # Down to the rounding of the weights, which is above the tolerance.
        assert all(change.converged == (True if "rtol" in options else None) for change in changes)
        assert all(change.rank == (5 if "mlp" in change.name else 2) for change in changes)


def test_what_no_adapter_holds_is_listed():
    model = written(llama)
    model.model.norm.weight.data *= 1.01
    model.lm_head.weight.data *= 1.02
    model.model.embed_tokens.weight = torch.nn.Parameter(torch.ones(42, 32))
    new = model.state_dict() | {"score.weight": torch.ones(2, 32)}
    del new["model.layers.0.mlp.up_proj.weight"]
    save_file(new, "tuned.safetensors")
    for save_rest in (False, True):
        changes = extract_lora(
            "tuned.safetensors", "BASE", f"adapter{save_rest}", rank=2, save_rest=save_rest
        )
        notes = {change.name: change.note for change in changes if change.note}
        kind = "not a matrix, or skipped by name"
        assert notes == {
            "score.weight": "only in TUNED",
            "model.layers.0.mlp.up_proj.weight": "only in BASE",
            "model.embed_tokens.weight": "of shape [40, 32] in BASE and [42, 32] in TUNED",
        } | ({} if save_rest else {"lm_head.weight": kind, "model.norm.weight": kind})
        relative = {change.name: change.norm / (change.base_norm or 1.0) for change in changes}
        assert relative["model.norm.weight"] == pytest.approx(0.01, rel=1e-4)
        assert relative["lm_head.weight"] == pytest.approx(0.02, rel=1e-4)


def test_a_budget_goes_where_the_change_is():
    written(llama, noise=0.1)
    whole = extract_lora("TUNED", "BASE", "all", rtol=1e-7)
    budget = 9000
    changes = extract_lora("TUNED", "BASE", "adapter", budget=budget)
    spent = sum(change.written for change in changes)
    pairs = load_file("adapter/adapter_model.safetensors")
    assert spent == sum(factor.nbytes for factor in pairs.values())
    least = min(4 * sum(change.shape) for change in changes)
    assert budget - least < spent <= budget
    assert len({change.rank for change in changes}) > 1
    # Uniform ranks of at least as many bytes lose more.
    for rank in range(1, 9):
        uniform = extract_lora("TUNED", "BASE", f"adapter{rank}", rank=rank)
        if sum(change.written for change in uniform) >= spent:
            break
    lost, more = (sum(c.error_bound**2 for c in each) for each in (changes, uniform))
    assert lost < sum(change.norm**2 for change in whole)
    smaller = extract_lora("TUNED", "BASE", "smaller", rank=rank - 1)
    assert lost < sum(change.error_bound**2 for change in smaller)
    assert more > 0
    # The bounds are those of the factors that were written.
    new, old = (model.state_dict() for model in (tune(llama(), 0.1), llama()))
    for change in changes:
        layer = change.name.removesuffix(".weight")
        if change.rank:
            A, B = (pairs[f"base_model.model.{layer}.lora_{letter}.weight"] for letter in "AB")
            left = torch.linalg.norm(new[change.name] - old[change.name] - B @ A)
            assert left == pytest.approx(change.error_bound, rel=0.01)
    both = extract_lora("TUNED", "BASE", "both", budget=budget, rank=1)
    assert {change.rank for change in both} <= {0, 1}


def test_progress_is_told_and_may_end_the_work():
    written(llama)
    seen = []
    changes = extract_lora("TUNED", "BASE", "one", rank=1, callback=lambda *all: seen.append(all))
    assert [left for _, left in seen] == list(reversed(range(21)))
    assert [change for change, _ in seen if change.norm > 0] == changes

    def stop(change, left):
        if left == 3:
            raise KeyboardInterrupt

    before = set(Path().iterdir())
    for call in (
        lambda: extract_lora("TUNED", "BASE", "two", rank=1, callback=stop),
        lambda: factorize("TUNED", "two", rank=1, callback=stop),
    ):
        with pytest.raises(KeyboardInterrupt):
            call()
        assert set(Path().iterdir()) == before


def test_input_that_cannot_be_used_is_refused_and_nothing_is_written():
    written(llama)
    X = torch.ones(9, 9)
    save_file({"other.weight": X}, "other.safetensors")
    save_file({"other.weight": X * math.nan}, "nan.safetensors")
    Path("empty").mkdir()
    Path("full").mkdir()
    before = set(Path().iterdir())
    new = {"rtol": 0.1}
    for error, said, call in (
        (ValueError, "Give rtol", lambda: extract_lora("TUNED", "BASE", "new")),
        (ValueError, "Give rtol", lambda: factorize("TUNED", "new")),
        (ValueError, "names in", lambda: extract_lora("other.safetensors", "BASE", "new", **new)),
        (ValueError, "No matrix has", lambda: extract_lora("BASE", "BASE", "new", **new)),
        (ValueError, "rtol", lambda: factorize("other.safetensors", "new", rtol=-1.0)),
        (
            ValueError,
            "other.weight: .*NaN",
            lambda: extract_lora("nan.safetensors", "other.safetensors", "new", **new),
        ),
        (ValueError, "other.weight: .*NaN", lambda: factorize("nan.safetensors", "new", **new)),
        (FileNotFoundError, "empty is a dir", lambda: factorize("empty", "new", **new)),
        (FileNotFoundError, "none", lambda: factorize("none.safetensors", "new", **new)),
        (FileExistsError, "full exists", lambda: factorize("BASE", "full", **new)),
        (FileExistsError, "full exists", lambda: extract_lora("TUNED", "BASE", "full", **new)),
    ):
        with pytest.raises(error, match=said):
            call()
        assert set(Path().iterdir()) == before
        assert not list(Path("full").iterdir())


# -- factors ---------------------------------------------------------------------------------------


def state():
    """Tensors of all kinds; two of the matrices have a low rank, up to one percent."""
    torch.manual_seed(0)

    def low(m, n):
        X = torch.randn(m, 4) @ torch.randn(4, n) / 2
        return X + 0.01 * torch.randn(m, n)

    return {
        "up.weight": low(60, 50),
        "up.bias": torch.randn(60),
        "conv.weight": low(40, 90).reshape(40, 10, 3, 3),
        "conv.bias": torch.randn(40),
        "noise.weight": torch.randn(50, 50),
        "embed.weight": low(60, 50),
        "norm.weight": torch.randn(50),
        "norm.bias": torch.randn(50),
        "zero.weight": torch.zeros(8, 8),
        "steps": torch.arange(3),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_factors_keep_the_promise_in_the_dtype_of_the_file(dtype):
    old = {k: X.to(dtype) if X.is_floating_point() else X for k, X in state().items()}
    save_file(old, "model.safetensors", {"format": "pt", "by": "me"})
    changes = factorize("model.safetensors", "small.safetensors", rtol=0.1)
    with safe_open("small.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "by": "me"}
    new = load_file("small.safetensors")
    told = {change.name: change for change in changes}
    assert sum(change.nbytes for change in changes) <= sum(X.nbytes for X in old.values())
    assert sum(change.written for change in changes) == sum(X.nbytes for X in new.values())
    for layer in ("up", "conv"):
        A, B = new.pop(f"{layer}.0.weight"), new.pop(f"{layer}.1.weight")
        weight, change = old[f"{layer}.weight"], told[f"{layer}.weight"]
        assert (A.dtype, B.dtype, len(A), B.shape[:2]) == (dtype, dtype, 4, (len(weight), 4))
        assert A.shape[1:] == weight.shape[1:]
        X, A, B = (factor.double().flatten(1) for factor in (weight, A, B))
        left = X - B @ A
        error = torch.linalg.norm(left).item()
        assert error <= change.error_bound * (1 + 1e-3) <= 0.1 * change.norm
        assert change.converged
        assert torch.equal(new.pop(f"{layer}.1.bias"), old[f"{layer}.bias"])
    kept = {name: X for name, X in old.items() if name.split(".")[0] not in ("up", "conv")}
    assert new.keys() == kept.keys()
    assert all(torch.equal(new[name], X) for name, X in kept.items())
    assert told["noise.weight"].note == "its factors take more memory"
    again = factorize("model.safetensors", "again.safetensors", rtol=0.1)
    assert again == changes
    first, second = (load_file(f"{name}.safetensors") for name in ("small", "again"))
    assert all(torch.equal(second[name], X) for name, X in first.items())


def test_a_pair_of_modules_takes_the_factors():
    save_file(state(), "model.safetensors")
    factorize("model.safetensors", "small.safetensors", rtol=0.1)
    new = load_file("small.safetensors")
    X = torch.randn(2, 10, 8, 8)
    pair = torch.nn.Sequential(torch.nn.Conv2d(10, 4, 3, bias=False), torch.nn.Conv2d(4, 40, 1))
    pair.load_state_dict({k.removeprefix("conv."): v for k, v in new.items() if "conv" in k})
    whole = torch.nn.Conv2d(10, 40, 3)
    whole.load_state_dict({name: state()[f"conv.{name}"] for name in ("weight", "bias")})
    with torch.no_grad():
        left = torch.linalg.norm(pair(X) - whole(X)) / torch.linalg.norm(whole(X))
    assert left <= 0.1


def test_a_directory_of_shards_becomes_one_of_factors():
    model = written(llama)
    changes = factorize("TUNED", "small", rtol=0.9, skip="embed|head|k_proj")
    index = json.loads(Path("small/model.safetensors.index.json").read_text("utf-8"))
    tensors, size = {}, 0
    for shard in set(index["weight_map"].values()):
        part = load_file(f"small/{shard}")
        assert [index["weight_map"][name] for name in part] == [shard] * len(part)
        tensors |= part
        size += sum(X.nbytes for X in part.values())
    assert tensors.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == size
    ranks = {c.name.removesuffix(".weight"): c.rank for c in changes if c.rank}
    assert ranks
    for name, X in model.state_dict().items():
        if (layer := name.removesuffix(".weight")) in ranks:
            A, B = tensors.pop(f"{layer}.0.weight"), tensors.pop(f"{layer}.1.weight")
            assert torch.linalg.norm(X - B @ A) <= 0.9 * torch.linalg.norm(X)
            assert A.nbytes + B.nbytes < X.nbytes
        else:
            assert torch.equal(tensors.pop(name), X)
    assert not tensors
    assert not [name for name in ranks if "k_proj" in name]
    by_index = factorize(
        "TUNED/model.safetensors.index.json", "other", rtol=0.9, skip="embed|head|k_proj"
    )
    assert by_index == changes


def test_a_rank_is_the_largest_and_alone_that_of_each():
    save_file(state(), "model.safetensors")
    for options, ranks in (
        ({"rank": 3}, {"up": 3, "conv": 3, "noise": 3, "zero": 3}),
        ({"rank": 3, "rtol": 0.1}, {"up": 3, "conv": 3, "noise": 3}),
        ({"rank": 10, "rtol": 0.1}, {"up": 4, "conv": 4, "noise": 10}),
        ({"rank": 10**6, "rtol": 0.1}, {"up": 4, "conv": 4}),
    ):
        changes = factorize("model.safetensors", "s.safetensors", **options, overwrite=True)
        found = {c.name.removesuffix(".weight"): c for c in changes if c.rank}
        assert {name: change.rank for name, change in found.items()} == ranks
        for change in found.values():
            met = change.error_bound <= options.get("rtol", 0.0) * change.norm
            assert change.converged == (met if "rtol" in options else None)
            assert replace(change, note="") == change


# -- the command -----------------------------------------------------------------------------------


def run(arguments):
    return main(arguments.split())


def test_the_command_says_what_it_did(capsys):
    written(llama, everything=True)
    assert run("TUNED --minus BASE --rtol 0.1 --lora A --save-rest --json") == 0
    told = json.loads(capsys.readouterr().out)
    changes = extract_lora("TUNED", "BASE", "B", rtol=0.1, save_rest=True)
    assert told["tensors"] == json.loads(json.dumps([asdict(change) for change in changes]))
    assert run("TUNED --minus BASE --budget 3000 --lora C --device cpu") == 0
    assert sum(X.nbytes for X in load_file("C/adapter_model.safetensors").values()) <= 3000
    out, err = capsys.readouterr()
    assert "not in the adapter: model.norm.weight: changed by 1.98%; not a matrix" in out
    assert run("TUNED --minus BASE --rtol 0.1 --rank 1 --lora D") == 3
    out, err = capsys.readouterr()
    assert "D: 14 weights miss the tolerance, such as" in err
    assert Path("D/adapter_config.json").exists()
    assert run("TUNED --output E --rtol 0.8 --skip-names layers.0") == 0
    out, _ = capsys.readouterr()
    assert "layers.0" not in out
    assert "layers.1.mlp.up_proj.weight" in out
    assert Path("E/model.safetensors.index.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("TUNED", "TUNED: give --output DIR for factors, or --minus BASE and --lora DIR"),
        ("TUNED --minus BASE", "--minus BASE and --lora DIR go together"),
        ("TUNED --lora DIR --rtol 0.1", "--minus BASE and --lora DIR go together"),
        (
            "TUNED --minus BASE --lora DIR",
            "give one tolerance for a checkpoint, as --rtol 0.1; got 3",
        ),
        ("TUNED --minus BASE --lora DIR --output D --rank 1", "both name what to write"),
        ("TUNED --output D.safetensors --rank 1", "--output must be a directory, as FILE is"),
        ("M.safetensors --output D --rank 1", "--output must name a file of kind .npz"),
        ("TUNED --output D --rank 1 --save-rest", "--save-rest applies to --lora only"),
        ("TUNED --output D --rank 1 --center", "--center does not apply to checkpoints"),
        ("TUNED --output D --rank 1 --norm spectral", "--norm does not apply to checkpoints"),
        ("TUNED --output BASE --rank 1", "BASE: exists; --force replaces it"),
        (
            "TUNED --minus M.safetensors --lora D --rank 1",
            "D: cannot be written: No names in common",
        ),
        ("TUNED --minus none --lora D --rank 1", "D: cannot be written: No such file"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, said, capsys):
    for name in ("TUNED", "BASE"):
        Path(name).mkdir()
        save_file({"w.weight": torch.ones(9, 9)}, f"{name}/model.safetensors")
    save_file({"m.weight": torch.ones(9, 9)}, "M.safetensors")
    before = set(Path().rglob("*"))
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    (line,) = err.splitlines()
    assert line.startswith("lowrank: ")
    assert said in line
    assert set(Path().rglob("*")) == before
