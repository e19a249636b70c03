"""Make the golden files of `tests/parity/golden` with transformers and peft.

Tiny seeded base models are saved as Hugging Face directories. For every method a case directory
holds the adapter as PEFT saves it, and what PyTorch computes with it: logits, loss, the gradient of
every trainable tensor, five AdamW steps (a hundred where the base is quantized to 4 bits). `golden/README.md` says what is in each file.

    python make_golden.py            # rewrite the golden files
    python make_golden.py NAME...    # rewrite those of some bases, or cases (`bert/lora`)
    python make_golden.py --check    # make them anew elsewhere and compare with the committed ones

Everything is computed in float64 from float32 weights and stored as float32, so that the numbers
are a reference and not one more rounding of the same sum.
"""

import argparse
import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import peft
import torch
import transformers
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from tiny import BASES, CASES, Base, methods_of, peft_config, randomise, seeded

GOLDEN = Path(__file__).parent / "golden"
OPTIMIZER = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


def make_batch(base: Base, vocabulary: int) -> dict:
    """Input ids from 5 upwards (0 is padding), segment ids for a pair, labels; plain lists without padding."""
    generator = seeded(base.name, "inputs")
    rows = [torch.randint(5, vocabulary, (n,), generator=generator).tolist() for n in base.lengths]
    batch = {"input_ids": rows}
    if base.pair:
        batch["token_type_ids"] = [[int(i >= 2 * len(row) // 3) for i in range(len(row))] for row in rows]
    if base.head == "classification_head":
        # The head reads the state of the token that ends a text.
        batch["input_ids"] = rows = [row[:-1] + [1] for row in rows]
    if base.reads:
        batch["reads"] = base.reads
    if base.reads or base.task == "SEQ_CLS":
        batch["labels"] = base.labels
    elif base.task == "MASKED_LM":
        # Every third token is hidden, and is what is to be predicted there.
        batch["reads"] = "masked"
        hidden = [[at % 3 == 1 for at in range(len(row))] for row in rows]
        batch["labels"] = [[it if hide else -100 for it, hide in zip(*row)] for row in zip(rows, hidden)]
        batch["input_ids"] = [[4 if hide else it for it, hide in zip(*row)] for row in zip(rows, hidden)]
    elif base.task == "SEQ_2_SEQ_LM":
        labels = [torch.randint(5, vocabulary, (n,), generator=generator).tolist() for n in base.targets]
        # One target of the first row does not count; the decoder reads padding in its place. Where
        # transformers keeps gradients from the embedding of padding, all targets count.
        ignored = [-100] if base.reads_padding else labels[0][1:2]
        batch["labels"] = [[labels[0][0], *ignored, *labels[0][2:]], *labels[1:]]
    else:
        # Two rows of plain text, two of prompt and completion (no loss on the prompt).
        half = len(rows) // 2
        masked = [[-100] * (len(row) // 2) + row[len(row) // 2 :] for row in rows[half:]]
        batch["labels"] = rows[:half] + masked
    return batch


def pad(rows: list[list[int]], value: int) -> torch.Tensor:
    """Pad to the longest row, on the right."""
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def to_torch(batch: dict) -> dict[str, torch.Tensor]:
    """The keyword arguments of a Hugging Face model for this batch."""
    tensors = {
        "input_ids": pad(batch["input_ids"], 0),
        "attention_mask": pad([[1] * len(row) for row in batch["input_ids"]], 0),
    }
    if "token_type_ids" in batch:
        tensors["token_type_ids"] = pad(batch["token_type_ids"], 0)
    labels = batch["labels"]
    if batch.get("reads") == "answers":
        tensors["start_positions"], tensors["end_positions"] = torch.tensor(labels).T
    elif isinstance(labels[0], list):
        tensors["labels"] = pad(labels, -100)
    else:
        tensors["labels"] = torch.tensor(labels, dtype=torch.float64 if isinstance(labels[0], float) else None)
    return tensors


def forward(model, base: Base, method: str, batch: dict):
    """Loss and logits without padding: `[rows, labels]`, or `[tokens, vocabulary]` for language models."""
    alone = method in CASES and CASES[method].alone
    if alone or base.name.endswith("_classifier") and method == "prompt_tuning":
        # With embeddings as input transformers pools the last position even if it is padding: run each row alone.
        alone = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(len(batch["labels"]))]
        outputs = [model(**to_torch(row)) for row in alone]
        return sum(o.loss for o in outputs) / len(outputs), torch.cat([o.logits for o in outputs])
    if base.reads == "answers":
        # transformers chooses among all positions, those of padding too: run each row alone.
        alone = [{key: value[i : i + 1] for key, value in batch.items() if key != "reads"} for i in range(len(batch["labels"]))]
        outputs = [model(**to_torch(row | {"reads": base.reads})) for row in alone]
        logits = [torch.stack([o.start_logits[0], o.end_logits[0]], dim=1) for o in outputs]
        return sum(o.loss for o in outputs) / len(outputs), torch.cat(logits)
    if base.reads == "choices":
        inputs = to_torch(batch)
        examples = len(inputs["labels"])
        by_example = {key: value if key == "labels" else value.unflatten(0, (examples, -1)) for key, value in inputs.items()}
        output = model(**by_example)
        return output.loss, output.logits
    more = CASES[method].inputs(len(batch["input_ids"])) if method in CASES else {}
    output = model(**to_torch(batch), **more)
    if base.task == "SEQ_CLS":
        return output.loss, output.logits
    rows = batch["labels" if base.task == "SEQ_2_SEQ_LM" else "input_ids"]
    prompts = output.logits.shape[1] - max(map(len, rows))
    lengths = map(len, rows)
    return output.loss, torch.cat([row[prompts : prompts + n] for row, n in zip(output.logits, lengths)])


def selected(base: Base, method: str, name: str) -> bool:
    """Whether a selective method trains the base's parameter `name`."""
    head = name.startswith(("classifier.", "score."))
    match method:
        case "full":
            return True
        case "bitfit":
            return head or "bias" in name
        case "bitfit_subset":
            # The reference code adds the pooler's bias to whatever is chosen.
            chosen = ("attention.self.query.bias", "intermediate.dense.bias", "pooler.dense.bias")
            return head or any(part in name for part in chosen)
        case "freeze":
            part, others = base.names.feed_forward
            return head or part in name and not any(other in name for other in others)
    raise ValueError(f"unknown method {method}")


def saved_key(name: str, method: str) -> str:
    """PEFT's file key of a live parameter; a network that PEFT never saves keeps its live names."""
    name = name.replace(".modules_to_save.default", "")
    for shared in CASES[method].shared:
        if f".{shared}." in name:
            return "base_model." + name[name.index(shared) :].replace(".default", "")
    if name.startswith("prompt_encoder."):
        if CASES[method].folds or "prefix_task" in name:
            return name.replace(".default", "") if CASES[method].folds else name.split(".")[-1]
        return "prompt_embeddings"
    if name.endswith("lora_magnitude_vector.default.weight"):
        return name.removesuffix(".default.weight")
    return name.replace(".default", "")


def name_in_file(base: Base, name: str) -> str:
    """The name under which transformers saves a live parameter."""
    for live, saved in base.renames.items():
        if name.startswith(live):
            return saved + name.removeprefix(live)
    return name


def adapt(model, base: Base, method: str, directory: Path) -> dict[str, torch.nn.Parameter]:
    """Wrap `model` for `method`, randomise and save the adapter; returns the model and its trainable tensors by key."""
    config = peft_config(base, method)
    # The adapter's config names its base; a path of this machine has no place there.
    model.name_or_path = f"tiny/{base.name}"
    if config is None:
        for name, value in model.named_parameters():
            value.requires_grad_(selected(base, method, name))
        live = {name: value for name, value in model.named_parameters() if value.requires_grad}
        return model, {name_in_file(base, name): value for name, value in live.items()}
    CASES[method].prepare(model)
    model = get_peft_model(model, config)
    live = {name: value for name, value in model.named_parameters() if value.requires_grad}
    randomise(live.items(), seeded(base.name, method), method)
    model.save_pretrained(directory, save_embedding_layers=False)
    (directory / "README.md").unlink()
    if extra := CASES[method].extra:
        file = directory / "adapter_model.safetensors"
        write_tensors(file, load_file(file) | extra(model))
    for folder in filter(Path.is_dir, directory.iterdir()):
        # Adapters of which this one is made; nothing reads them there.
        shutil.rmtree(folder)
    sort_targets(directory / "adapter_config.json", CASES[method].settings(model))
    trainable = {saved_key(name, method): value for name, value in live.items()}
    stored = load_file(directory / "adapter_model.safetensors")
    on_disk = {key for key in stored if not key.endswith(CASES[method].frozen)}
    if not CASES[method].folds and set(trainable) != on_disk:
        raise AssertionError(f"{base.name}/{method}: keys differ: {set(trainable) ^ on_disk}")
    return model, trainable


def sort_targets(path: Path, more: dict) -> None:
    """Sort the target lists of an adapter_config.json: PEFT writes sets, whose order changes from run to run."""
    config = json.loads(path.read_text()) | more
    for key in ("target_modules", "feedforward_modules"):
        if isinstance(config.get(key), list):
            config[key].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


def quantized(model, base: Base):
    """The model as transformers loads it through bitsandbytes."""
    is_int8 = base.quantization == "int8"
    how = transformers.BitsAndBytesConfig(
        load_in_8bit=is_int8,
        load_in_4bit=not is_int8,
        bnb_4bit_quant_type="nf4" if is_int8 else base.quantization,
        bnb_4bit_use_double_quant=not is_int8,
        bnb_4bit_compute_dtype=torch.float32,
    )
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        return type(model).from_pretrained(directory, quantization_config=how, dtype=torch.float32, device_map="cpu")


def read_base(base: Base, directory: Path):
    """The base model that lies in `directory`."""
    on_cpu = {"device_map": "cpu"} if base.quantization else {}
    return type(base.make()).from_pretrained(directory / "base", attn_implementation=base.attention, **on_cpu)


def ready(model, base: Base):
    """In float64. In evaluation bitsandbytes rounds what a quantized layer reads; no tiny model has dropout."""
    for module in model.modules():
        # Some of PEFT's layers remember the type of their base.
        if isinstance(vars(module).get("dtype"), torch.dtype):
            module.dtype = torch.float64
    return model.double().train(bool(base.quantization))


def record_positions(model) -> tuple[dict, list]:
    """Hooks that note which position ids the model sees and which position the pooler reads."""
    seen = {}

    def note_embedding(_module, arguments):
        seen["position_ids"] = arguments[0].flatten().tolist()

    def note_rotary(_module, arguments, keywords):
        seen["position_ids"] = (keywords.get("position_ids") if len(arguments) < 2 else arguments[1]).flatten().tolist()

    def note_pooler(_module, arguments, keywords, output):
        states = arguments[0] if arguments else keywords["hidden_states"]
        if not hasattr(_module, "activation"):
            return
        pooled = [i for i in range(states.shape[1]) if torch.equal(_module.activation(_module.dense(states[:, i])), output)]
        seen["pooled_position"], seen["states_length"] = pooled, states.shape[1]

    hooks = []
    for name, module in model.named_modules():
        if name.endswith(("embeddings.position_embeddings", "wpe")):
            hooks.append(module.register_forward_pre_hook(note_embedding))
        elif name.endswith("rotary_emb"):
            hooks.append(module.register_forward_pre_hook(note_rotary, with_kwargs=True))
        elif name.endswith("pooler"):
            hooks.append(module.register_forward_hook(note_pooler, with_kwargs=True))
    return seen, hooks


def make_case(base: Base, method: str, batch: dict, directory: Path) -> None:
    """Write one case: adapter, logits, loss, gradients and five AdamW steps."""
    directory.mkdir()
    model, trainable = adapt(read_base(base, directory.parent), base, method, directory)
    ready(model, base)

    tensors = {}
    folds = method in CASES and CASES[method].folds
    if folds:
        tensors |= {f"initial/{key}": value.detach().clone() for key, value in trainable.items()}

    seen, hooks = record_positions(model)
    optimizer = torch.optim.AdamW(trainable.values(), lr=base.lr, **OPTIMIZER)
    losses = []
    for step in range(base.steps):
        optimizer.zero_grad()
        loss, logits = forward(model, base, method, batch)
        loss.backward()
        losses.append(loss.detach())
        if step == 0:
            for hook in hooks:
                hook.remove()
            tensors |= {"logits": logits.detach().clone(), "loss": loss.detach().clone()}
            tensors |= {f"grad/{key}": value.grad.clone() for key, value in trainable.items()}
        optimizer.step()
    tensors |= {f"after/{key}": value.detach().clone() for key, value in trainable.items()}
    tensors |= {"losses": torch.stack(losses), "loss_after": forward(model, base, method, batch)[0].detach()}
    if folds:
        tensors["after/prompt_embeddings"] = model.get_prompt_embedding_to_save("default")

    if (directory / "adapter_config.json").is_file():
        check_reload(base, method, batch, directory, tensors["logits"])

    largest = max(value.abs().max() for key, value in tensors.items() if key.startswith("grad/"))
    tiny = {key: tensors[f"grad/{key}"].abs() < 1e-9 * largest for key in trainable}
    zero = [key for key, where in tiny.items() if where.all()]
    parts = {key: zero_parts(where) for key, where in tiny.items() if where.ndim == 1 and where.any() and key not in zero}
    write_tensors(directory / "expected.safetensors", tensors)
    write_json(
        directory / "expected.json",
        {
            "base": base.name,
            "method": method,
            "task_type": base.task,
            "trainable": {key: list(value.shape) for key, value in trainable.items()},
            "trainable_parameters": sum(value.numel() for value in trainable.values()),
            "zero_gradient": zero,
            **({"zero_gradient_parts": parts} if parts else {}),
            "losses": [float(loss) for loss in losses],
            "optimizer": {"name": "torch.optim.AdamW", "lr": base.lr, **OPTIMIZER, "steps": base.steps},
            **seen,
        },
    )


def zero_parts(where: torch.Tensor) -> list[list[int]]:
    """The ranges of a vector's true values: first and end of each."""
    edges = torch.diff(where.int(), prepend=torch.zeros(1), append=torch.zeros(1)).nonzero().flatten().tolist()
    return [list(pair) for pair in zip(edges[::2], edges[1::2])]


def check_reload(base: Base, method: str, batch: dict, directory: Path, logits: torch.Tensor) -> None:
    """The saved folder, read again by PEFT, gives the same logits; for networks this checks their folding."""
    # With an AdaLoRA that is not trainable PEFT cannot compute a loss: its penalty names the trainable adapter.
    model = read_base(base, directory.parent)
    CASES[method].prepare(model)
    model = PeftModel.from_pretrained(model, directory, is_trainable=method == "adalora")
    ready(model, base)
    with torch.no_grad():
        difference = (forward(model, base, method, batch)[1] - logits).abs().max()
    if not difference < 1e-5:
        raise AssertionError(f"{base.name}/{method}: the saved adapter gives other logits: {difference:.1e}")


def row_alone(model_class, base: Base, batch: dict, row: int, directory: Path) -> torch.Tensor:
    """Logits of one row in a fresh model: dynamic scaling looks at the longest row and remembers it."""
    model = model_class.from_pretrained(directory / "base").double().eval()
    return forward(model, base, "base", {key: value[row : row + 1] for key, value in batch.items()})[1]


def hidden_states(model, base: Base, batch: dict) -> dict[str, torch.Tensor]:
    """What enters each layer and what leaves the last, without padding; a decoder's layers after its encoder's."""

    def unpadded(states, lengths):
        return torch.cat([row[:n] for row, n in zip(states, lengths)])

    inputs = to_torch(batch)
    if not model.config.is_encoder_decoder or base.reads == "tokens":
        inputs = {key: inputs[key] for key in inputs if key not in ("labels", "start_positions", "end_positions")}
        states = model.base_model(**inputs, output_hidden_states=True).hidden_states
        return {f"hidden_states/{i}": unpadded(state, base.lengths) for i, state in enumerate(states)}
    output = model(**inputs, output_hidden_states=True)
    *encoder, encoded = [unpadded(state, base.lengths) for state in output.encoder_hidden_states]
    decoder = [unpadded(state, base.targets or base.lengths) for state in output.decoder_hidden_states]
    states = {f"hidden_states/{i}": state for i, state in enumerate(encoder + decoder)}
    return states | {"encoder_states": encoded}


def make_base(base: Base, directory: Path) -> None:
    """Write one base model, its batch, its own outputs and all its cases."""
    model = base.make()
    randomise(model.named_parameters(), seeded(base.name))
    if base.quantization:
        model = quantized(model, base)
    model.save_pretrained(directory / "base")
    batch = make_batch(base, model.config.vocab_size)
    write_json(directory / "inputs.json", batch)

    model = ready(read_base(base, directory), base)
    with torch.no_grad():
        loss, logits = forward(model, base, "base", batch)
        tensors = {"loss": loss, "logits": logits} | hidden_states(model, base, batch)
        if base.name == "llama_rope_dynamic":
            tensors["logits_alone"] = torch.cat([row_alone(type(model), base, batch, i, directory) for i in range(4)])
    write_tensors(directory / "expected.safetensors", tensors)

    for method in methods_of(base):
        make_case(base, method, batch, directory / method)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Store as float32. One metadata key only: their order in the file is random."""
    plain = {key: value.detach().to(torch.float32).contiguous() for key, value in tensors.items()}
    save_file(plain, path, metadata={"format": "pt"})


def write_json(path: Path, value: dict) -> None:
    """Store indented, long lists on one line each, with a final newline."""
    lines = [f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def versions() -> dict[str, str]:
    """The versions of the libraries that made the files."""
    return {
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def make_all(output: Path, names: list[str]) -> None:
    """Write the bases of these names, or all, with their cases under `output`, keeping its README.md."""
    for base in BASES:
        directory = output / base.name
        if not names or base.name in names:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            make_base(base, directory)
            continue
        for method in methods_of(base):
            if f"{base.name}/{method}" in names:
                shutil.rmtree(directory / method, ignore_errors=True)
                make_case(base, method, json.loads((directory / "inputs.json").read_text()), directory / method)
    write_json(output / "versions.json", versions())


def compare(left: Path, right: Path, names: list[str], tolerance: float) -> list[str]:
    """Files and tensors of `left`, below these names or all, that `right` lacks or has with other values."""
    differences = []
    for path in sorted(left.rglob("*.safetensors")):
        name = path.relative_to(left)
        if names and name.parts[0] not in names:
            continue
        if not (right / name).is_file():
            differences.append(f"{name}: missing")
            continue
        expected, found = load_file(path), load_file(right / name)
        if set(expected) != set(found):
            differences.append(f"{name}: keys differ: {sorted(set(expected) ^ set(found))}")
            continue
        for key, value in expected.items():
            if value.shape != found[key].shape:
                differences.append(f"{name}: {key}: shapes {tuple(value.shape)} and {tuple(found[key].shape)}")
            elif not torch.allclose(value, found[key], rtol=tolerance, atol=tolerance):
                differences.append(f"{name}: {key}: differs by {(value - found[key]).abs().max():.2e}")
    return differences


def main() -> int:
    """Parse the arguments; make the files or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="bases, or base/case to rewrite one case; all where none is named")
    parser.add_argument("--check", action="store_true", help="compare with the committed files and write nothing")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="absolute and relative, for --check")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.utils.logging.disable_progress_bar()
    torch.use_deterministic_algorithms(True)
    if not arguments.check:
        make_all(GOLDEN, arguments.names)
        return 0
    with tempfile.TemporaryDirectory() as directory:
        make_all(Path(directory), arguments.names)
        differences = compare(GOLDEN, Path(directory), arguments.names, arguments.tolerance)
    print("\n".join(differences) or "the golden files are as this environment makes them")
    return bool(differences)


if __name__ == "__main__":
    sys.exit(main())
