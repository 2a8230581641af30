"""nanoGPT checkpoints: the same function as a transformers GPT-2, and no pickle that gets to run anything."""

from __future__ import annotations

import builtins
import collections
import io
import math
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from exporter.errors import Exit, OnnxGptError
from exporter.match import matched
from exporter.sources import load, nanogpt
from exporter.stored_weights import Stored
from exporter.weight_expressions import Transposed

ARGUMENTS = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 24, "bias": True, "vocab_size": 61}


class LayerNorm(nn.Module):
    def __init__(self, size: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))
        self.bias = nn.Parameter(torch.randn(size)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    def __init__(self, size: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(size, 3 * size, bias=bias), nn.Linear(size, size, bias=bias)
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, S, E = x.shape
        q, k, v = (t.view(B, S, self.heads, -1).transpose(1, 2) for t in self.c_attn(x).split(E, dim=2))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, S, E))


class Mlp(nn.Module):
    def __init__(self, size: int, bias: bool) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(size, 4 * size, bias=bias), nn.Linear(4 * size, size, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(functional.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, size: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.ln_1, self.attn = LayerNorm(size, bias), Attention(size, heads, bias)
        self.ln_2, self.mlp = LayerNorm(size, bias), Mlp(size, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """nanoGPT's model.py without training."""

    def __init__(self, n_layer: int, n_head: int, n_embd: int, block_size: int, bias: bool, vocab_size: int):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, n_embd),
                "wpe": nn.Embedding(block_size, n_embd),
                "h": nn.ModuleList(Block(n_embd, n_head, bias) for _ in range(n_layer)),
                "ln_f": LayerNorm(n_embd, bias),
            }
        )
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        t = self.transformer
        x = t.wte(tokens) + t.wpe(torch.arange(tokens.shape[1]))
        for block in t.h:
            x = block(x)
        return self.lm_head(t.ln_f(x))


def trained(**changes: Any) -> NanoGPT:
    torch.manual_seed(0)
    return NanoGPT(**(ARGUMENTS | changes))


def save(path: Path, model: NanoGPT, prefix: str = "", **changes: Any) -> Path:
    """As train.py does after some steps, optimizer state and all."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=False)
    model(torch.zeros((1, 4), dtype=torch.int64)).mean().backward()
    optimizer.step()
    state = model.state_dict()
    if prefix:
        state = {prefix + name: tensor for name, tensor in state.items()}
    arguments = ARGUMENTS | {"dropout": 0.0} | changes
    torch.save(
        {
            "model": state,
            "optimizer": optimizer.state_dict(),
            "model_args": arguments,
            "iter_num": 5,
            "best_val_loss": torch.tensor(1.5),
            "config": {
                "dataset": "shakespeare_char",
                "learning_rate": 1e-3,
                "compile": True,
                "decay_lr": None,
            },
        },
        path,
    )
    return path


def refused(path: Path, code: str, exit: Exit = Exit.REJECTED) -> str:
    with pytest.raises(OnnxGptError) as caught:
        load(str(path))
    assert (caught.value.code, caught.value.exit) == (code, exit), caught.value
    return str(caught.value)


def as_transformers(checkpoint: Any) -> transformers.GPT2LMHeadModel:
    config = {
        key: value for key, value in checkpoint.config.items() if key not in ("architectures", "model_type")
    }
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config))
    state = {name: torch.from_numpy(weight.read()) for name, weight in checkpoint.weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return model.eval()


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "_orig_mod.module."])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_same_function_as_a_gpt2_of_transformers(tmp_path: Path, bias: bool, prefix: str) -> None:
    model = trained(bias=bias)
    checkpoint = load(str(save(tmp_path / "ckpt.pt", model, prefix, bias=bias)))
    tokens = torch.randint(0, 61, (2, 24))
    with torch.no_grad():
        expected, given = model(tokens), as_transformers(checkpoint)(tokens).logits
    assert torch.allclose(expected, given, atol=2e-5)
    assert checkpoint.files == {}
    assert checkpoint.config["tie_word_embeddings"] is True
    _, matching = matched(checkpoint)
    down = matching["layers.1.ffn.down.weight"]
    assert isinstance(down, Stored)  # stored [out, in] and used so: transposed twice is not at all
    state = model.state_dict()
    assert np.array_equal(down.read(), state["transformer.h.1.mlp.c_proj.weight"].numpy())
    assert np.array_equal(
        matching["layers.0.attention.k.weight"].read(),
        state["transformer.h.0.attn.c_attn.weight"][32:64].numpy(),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_and_a_head_of_its_own(tmp_path: Path, dtype: torch.dtype) -> None:
    model = trained()
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    torch.save({"model": state, "model_args": ARGUMENTS}, tmp_path / "ckpt.pt")
    checkpoint = load(str(tmp_path / "ckpt.pt"))
    assert checkpoint.config["tie_word_embeddings"] is False
    matched(checkpoint)
    assert np.array_equal(
        checkpoint.weights["lm_head.weight"].read(), state["lm_head.weight"].float().numpy()
    )


def test_old_masks_views_and_parameters(tmp_path: Path) -> None:
    state = dict(trained().state_dict())
    state["transformer.h.0.attn.bias"] = torch.tril(torch.ones(1, 1, 24, 24))
    columns = state["transformer.h.0.mlp.c_fc.weight"].t().contiguous().t()
    state["transformer.h.0.mlp.c_fc.weight"] = columns
    state["transformer.h.1.mlp.c_fc.weight"] = torch.nn.Parameter(torch.randn(130, 32)[2:])
    torch.save({"model": state, "model_args": ARGUMENTS}, tmp_path / "ckpt.pt")
    checkpoint = load(str(tmp_path / "ckpt.pt"))
    _, matching = matched(checkpoint)
    assert isinstance(matching["layers.0.ffn.up.weight"], Transposed)
    assert np.array_equal(matching["layers.0.ffn.up.weight"].read(), columns.numpy())
    last = state["transformer.h.1.mlp.c_fc.weight"].detach().numpy()
    assert np.array_equal(matching["layers.1.ffn.up.weight"].read(), last)
    state["transformer.h.1.mlp.c_fc.weight"] = torch.randn(128, 64)[:, ::2]
    torch.save({"model": state, "model_args": ARGUMENTS}, tmp_path / "ckpt.pt")
    assert "h.1.mlp.c_fc.weight" in refused(tmp_path / "ckpt.pt", "weights-strided")


@pytest.mark.parametrize(
    ("changes", "code", "exit"),
    [
        ({"n_layer": "2"}, "nanogpt-invalid", Exit.REJECTED),
        ({"n_layer": 10**9}, "nanogpt-invalid", Exit.REJECTED),
        ({"n_head": True}, "nanogpt-invalid", Exit.REJECTED),
        ({"vocab_size": None}, "nanogpt-invalid", Exit.REJECTED),
        ({"n_embd": -32}, "nanogpt-invalid", Exit.REJECTED),
        ({"bias": 1}, "nanogpt-invalid", Exit.REJECTED),
        ({"bias": False}, "nanogpt-invalid", Exit.REJECTED),
        ({"rotary": True}, "nanogpt-unsupported", Exit.UNSUPPORTED),
    ],
)
def test_model_arguments_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], code: str, exit: Exit
) -> None:
    message = refused(save(tmp_path / "ckpt.pt", trained(), **changes), code, exit)
    assert next(iter(changes)) in message


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(3),
        {"model": {}, "model_args": ARGUMENTS},
        {"model": {"transformer.wte.weight": 3}, "model_args": ARGUMENTS},
        {"model_args": ARGUMENTS},
        {"transformer.wte.weight": torch.zeros(3, 3)},
        {
            "model": {
                "_orig_mod.transformer.wte.weight": torch.zeros(1),
                "transformer.wte.weight": torch.zeros(1),
            },
            "model_args": ARGUMENTS,
        },
    ],
    ids=["tensor", "empty", "no tensor", "no model", "bare state dict", "both prefixes"],
)
def test_what_is_no_nanogpt_checkpoint_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "ckpt.pt")
    refused(tmp_path / "ckpt.pt", "nanogpt-invalid")


class Calls:
    """Pickles to a call of a function, which any loader that executes pickles makes."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def with_pickle(path: Path, data: bytes) -> Path:
    """A .pt file around any data.pkl."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", bytes(64))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "function", [os.system, builtins.eval, builtins.exec, builtins.getattr, builtins.open, Path]
)
def test_a_pickle_that_would_run_code_does_not(tmp_path: Path, function: Any, protocol: int) -> None:
    trace = tmp_path / "ran"
    argument = {
        os.system: (f"touch {trace}",),
        builtins.eval: (f"open({str(trace)!r}, 'w')",),
        builtins.exec: (f"open({str(trace)!r}, 'w')",),
        builtins.getattr: ("", "join"),
        builtins.open: (str(trace), "w"),
        Path: (str(trace),),
    }[function]
    data = pickle.dumps({"model": Calls(function, *argument), "model_args": ARGUMENTS}, protocol)
    message = refused(with_pickle(tmp_path / "ckpt.pt", data), "pickle-unsafe")
    assert not trace.exists()
    if protocol >= 2:  # the older ones are refused at their first instruction
        assert function.__name__ in message
    if function in (os.system, builtins.exec):  # the trap is real: a plain unpickler falls into it
        pickle.loads(data)
        assert trace.exists()


def test_a_pickle_saved_by_torch_itself_is_no_better(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    torch.save({"model": Calls(os.system, f"touch {trace}")}, tmp_path / "ckpt.pt")
    assert "posix.system" in refused(tmp_path / "ckpt.pt", "pickle-unsafe")
    assert not trace.exists()


def reference(
    kind: str = "storage", name: str = "torch\nFloatStorage", key: str = "0", count: int = 16
) -> bytes:
    """The instructions that name a storage."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    return (
        b"("
        + text(kind)
        + b"c"
        + name.encode()
        + b"\n"
        + text(key)
        + text("cpu")
        + b"J"
        + struct.pack("<i", count)
        + b"tQ"
    )


def tensor(
    storage: bytes, offset: int = 0, shape: tuple[int, ...] = (4, 4), strides: tuple[int, ...] = (4, 1)
) -> bytes:
    def dims(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"J"
        + struct.pack("<i", offset)
        + dims(shape)
        + dims(strides)
        + b"\x89NtR"
    )


UNSAFE = {
    "INST": b"(S'true'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nX\x04\0\0\0trueo.",
    "NEWOBJ": b"ccollections\nOrderedDict\n)\x81.",
    "EXT1": b"\x80\x02\x82\x01.",
    "PERSID": b"P0\n.",
    "STACK_GLOBAL": b"X\x02\0\0\0osX\x06\0\0\0system\x93.",
    "submodule of torch": b"ctorch\nload\n.",
    "attribute of an allowed name": b"ccollections\nOrderedDict.fromkeys\n.",
}
CORRUPT = {
    "empty": b"",
    "no end": b"\x80\x02}",
    "nothing on the stack": b".",
    "unknown instruction": b"\xfe.",
    "memo of four billion": b"\x80\x02]j\xff\xff\xff\xff.",
    "string of four billion": b"X\xff\xff\xff\xff.",
    "call of a tuple": b")" + b")R.",
    "call of a dtype": b"ctorch\nfloat32\n)R.",
    "call of a storage class": b"ctorch\nFloatStorage\n)R.",
    "call without arguments": b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "tensor of nothing": b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))tR.",
    "state of a list": b"]}b.",
    "item of a list": b"]K\x01K\x01s.",
    "append to a dict": b"}K\x01a.",
    "key a dict": b"}}K\x01s.",
    "key a huge integer": b"}\x8a\x09" + b"\xff" * 8 + b"\0" + b"K\x01s.",
    "odd number of items": b"}(K\x01u.",
    "mark missing": b"t.",
    "memo missing": b"h\x07.",
    "other kind of reference": reference(kind="module") + b".",
    "storage of a dtype": reference(name="torch\nfloat32") + b".",
    "storage missing": reference(key="7") + b".",
    "storage outside": reference(key="../byteorder") + b".",
    "storage too long": reference(count=17) + b".",
    "storage negative": reference(count=-1) + b".",
    "tensor too long": tensor(reference(), shape=(4, 5), strides=(5, 1)) + b".",
    "tensor beyond": tensor(reference(), offset=1) + b".",
    "tensor before": tensor(reference(), offset=-1) + b".",
    "tensor strided beyond": tensor(reference(), strides=(5, 1)) + b".",
    "tensor strided backwards": tensor(reference(), strides=(-4, 1)) + b".",
    "tensor of negative shape": tensor(reference(), shape=(-4, -4)) + b".",
    "tensor of nothing times a lot": tensor(reference(), shape=(0, 1 << 30)) + b".",
    "tensor of two ranks": tensor(reference(), strides=(1,)) + b".",
    "nested too deep": b")" + b"\x85" * 100_000 + b"ctorch\nfloat32\n)R.",
}


@pytest.mark.parametrize("data", UNSAFE.values(), ids=UNSAFE.keys())
def test_instructions_that_could_call_anything_are_refused(tmp_path: Path, data: bytes) -> None:
    refused(with_pickle(tmp_path / "ckpt.pt", data), "pickle-unsafe")


@pytest.mark.parametrize("data", CORRUPT.values(), ids=CORRUPT.keys())
def test_pickles_that_torch_never_writes_are_refused(tmp_path: Path, data: bytes) -> None:
    refused(with_pickle(tmp_path / "ckpt.pt", data), "checkpoint-corrupt")


def test_the_forged_tensor_is_right_where_nothing_is_forged(tmp_path: Path) -> None:
    refused(with_pickle(tmp_path / "ckpt.pt", tensor(reference()) + b"."), "nanogpt-invalid")


def small(compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    data = pickle.dumps(collections.OrderedDict(), 2)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in ({"data.pkl": data} | members).items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


ARCHIVES = {
    "empty": b"",
    "no zip": b"\x80\x02}q\0." * 10,
    "compressed": small(zipfile.ZIP_DEFLATED),
    "big-endian": small(byteorder=b"big"),
    "byteorder without end": small(byteorder=b"little" * 1000),
    "truncated": small()[:-30],
    "two pickles": small(**{"more/data.pkl": b"."}),
    "no pickle": small().replace(b"data.pkl", b"data.pkx"),
    "bad checksum": small().replace(b"OrderedDict", b"OrderedDicu"),
    "giant pickle": small(**{"data.pkl": bytes((16 << 20) + 1)}),
}


@pytest.mark.parametrize("content", ARCHIVES.values(), ids=ARCHIVES.keys())
def test_archives_that_torch_never_writes_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ckpt.pt").write_bytes(content)
    refused(tmp_path / "ckpt.pt", "checkpoint-corrupt")


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "ckpt.pt", trained())
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    refused(path, "checkpoint-corrupt")


def test_weights_that_are_not_finite_are_refused_when_read(tmp_path: Path) -> None:
    model = trained()
    path = save(tmp_path / "ckpt.pt", model)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[3, 5] = math.nan
    torch.save({"model": model.state_dict(), "model_args": ARGUMENTS}, path)
    weight = load(str(path)).weights["transformer.h.1.mlp.c_fc.weight"]
    with pytest.raises(OnnxGptError, match=r"transformer\.h\.1\.mlp\.c_fc\.weight\[3, 5\] is nan"):
        weight.read()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("tiny") / "ckpt.pt"
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 2, "block_size": 2, "vocab_size": 3}
    torch.save({"model": trained(**sizes).state_dict(), "model_args": ARGUMENTS | sizes}, path)
    return path.read_bytes()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_and_cut_bytes_load_or_are_rejected(tmp_path: Path, tiny: bytes, data: st.DataObject) -> None:
    with zipfile.ZipFile(io.BytesIO(tiny)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    inside = data.draw(st.booleans())  # in the pickle alone, its checksum made right again
    content = bytearray(members["ckpt/data.pkl"] if inside else tiny)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[at] = data.draw(st.integers(0, 255))
        else:
            del content[at : at + data.draw(st.integers(1, 8))]
    path = tmp_path / "ckpt.pt"
    if inside:
        with zipfile.ZipFile(path, "w") as archive:
            for name, member in (members | {"ckpt/data.pkl": bytes(content)}).items():
                archive.writestr(name, member)
    else:
        path.write_bytes(content)
    try:
        for weight in nanogpt.load(str(path)).weights.values():
            if weight.shape:
                weight.read()
    except OnnxGptError:
        pass


def test_values_within_themselves_are_named_in_short(tmp_path: Path) -> None:
    """Twenty bytes a level: a tuple that holds the one before it twice, sixty times over, has 2⁶⁰ items to print."""
    pairs = b"K\x01" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    for key in (b"n_layer", b"unknown"):
        name = b"X" + struct.pack("<I", len(key)) + key
        pickled = b"\x80\x02}(X\x05\0\0\0model}X\x0a\0\0\0model_args}" + name + pairs + b"su."
        with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
        with pytest.raises(OnnxGptError) as caught:
            load(str(tmp_path / "model.pt"))
        assert len(str(caught.value)) < 2000


def test_an_argument_whose_name_is_a_number_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}, "model_args": ARGUMENTS | {5: 1}}, tmp_path / "model.pt")
    with pytest.raises(OnnxGptError, match="nanogpt-unsupported"):
        load(str(tmp_path / "model.pt"))


def test_other_forms_of_a_checkpoint_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"model": {}}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(OnnxGptError, match="had before"):
        load(str(path))
    torch.save({"model": {"a": torch.ones(999)}}, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(OnnxGptError, match="not whole"):
        load(str(path))
