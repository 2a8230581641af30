"""Writes models, and puts written ones where targets want them.

Tensors are computed in writing, a piece at a time, into ``model.onnx`` and ``model.onnx.data`` of a working folder.
Putting a model into a bundle moves or copies these bytes: under other names, and cut into several files of weights
where a runtime wants them small.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from exporter.errors import unsupported
from onnx_gpt.bundle.targets import ModelFile
from onnx_gpt.progress import Progress

MODEL, DATA, REPORT = "model.onnx", "model.onnx.data", "report.json"
WRITERS = 2
"""Threads that compute and write tensors."""
PIECE = 4 << 20
"""Bytes that are copied at once."""
ALIGNMENT = 4096
"""Bytes at whose multiples tensors of that size or more begin, so that a runtime can map them."""
INSIDE = 256
"""Bytes of a tensor that lies in ``model.onnx`` itself, at most."""


def nbytes(model: ir.Model) -> int:
    """Bytes that the weights will take."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def save(model: ir.Model, folder: Path, progress: Progress) -> None:
    """Stream a model into ``model.onnx`` and ``model.onnx.data`` of a folder; the model keeps its lazy tensors."""
    ir.save(
        model,
        folder / MODEL,
        external_data=DATA,
        max_workers=WRITERS,
        max_in_flight_bytes=64 << 20,
        alignment=ALIGNMENT,
        align_threshold=ALIGNMENT,
        callback=lambda tensor, info: progress.advance(info.index + 1, info.total, tensor.name or ""),
    )


def written_bytes(model: ir.Model) -> int:
    """Bytes of the two files that `save` would write; no tensor is computed, and the model is not one afterwards."""
    data = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        shape = ir.Shape([dim for dim in tensor.shape if isinstance(dim, int)])
        if tensor.nbytes <= INSIDE:
            zeros = np.zeros(shape.numpy(), tensor.dtype.numpy())
            value.const_value = ir.Tensor(zeros, dtype=tensor.dtype, name=str(tensor.name))
            continue
        if tensor.nbytes > ALIGNMENT:
            data = -(-data // ALIGNMENT) * ALIGNMENT
        value.const_value = ir.ExternalTensor(
            DATA, data, tensor.nbytes, tensor.dtype, shape=shape, name=str(tensor.name)
        )
        data += tensor.nbytes
    return data + len(ir.to_proto(model).SerializeToString())


def place(written: Path, wanted: ModelFile, bundle: Path, *, move: bool) -> int:
    """Put a model that `save` wrote into a bundle; how many files its weights take there.

    Args:
        written: folder that `save` wrote to. With ``move`` it is left without its files where that saves a copy.

    Raises:
        OnnxGptError: ``tensor-too-large`` (exit 3) for a tensor that no file of weights may hold.
    """
    path = bundle / wanted.path
    path.parent.mkdir(parents=True, exist_ok=True)
    source = written / DATA
    chunks = list(_chunks(written / MODEL, wanted))
    as_written = wanted.data_name(0) == DATA and len(chunks) <= 1
    if as_written:
        _transfer(written / MODEL, path, move)
    else:
        _rename_data(written / MODEL, path, wanted, chunks)
    if len(chunks) == 1:
        _transfer(source, path.parent / wanted.data_name(0), move)
        return 1
    for i, (start, stop) in enumerate(chunks):
        with (path.parent / wanted.data_name(i)).open("wb") as out:
            out.writelines(pieces(source, start, stop - start))
    return len(chunks)


def _external(model: onnx.ModelProto) -> list[tuple[onnx.TensorProto, int, int]]:
    """Tensors that lie outside, with where they begin and end, in order."""
    found = []
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            start = int(entries.get("offset", "0"))
            found.append((tensor, start, start + int(entries["length"])))
    return sorted(found, key=lambda entry: entry[1])


def _chunks(model: Path, wanted: ModelFile) -> Iterator[tuple[int, int]]:
    """Ranges of the file of weights that each become a file, cut between tensors."""
    begin, end = 0, None
    for tensor, start, stop in _external(onnx.load(str(model), load_external_data=False)):
        if wanted.data_limit is not None:
            if stop - start > wanted.data_limit:
                raise unsupported(
                    "tensor-too-large",
                    f"{tensor.name} takes {stop - start} bytes, and a file of weights of {wanted.runtime.name} "
                    f"holds {wanted.data_limit}",
                    "quantize the model, or choose another target",
                )
            if stop - begin > wanted.data_limit and end is not None:
                yield begin, end
                begin = start // ALIGNMENT * ALIGNMENT  # tensors stay aligned
        end = stop
    if end is not None:
        yield begin, end


def _rename_data(model: Path, path: Path, wanted: ModelFile, chunks: list[tuple[int, int]]) -> None:
    """The graph again, with its weights where `place` puts them."""
    proto = onnx.load(str(model), load_external_data=False)
    for tensor, start, stop in _external(proto):
        i = next(i for i, (first, last) in enumerate(chunks) if first <= start and stop <= last)
        point(tensor, wanted.data_name(i), start - chunks[i][0], stop - start)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _transfer(source: Path, to: Path, move: bool) -> None:
    if move:
        source.rename(to)
    else:
        shutil.copyfile(source, to)


def point(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Say in a message where a tensor lies: ``length`` bytes of a file beside the model, from ``offset`` on."""
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def pieces(path: Path, start: int, nbytes: int) -> Iterator[bytes]:
    """So many bytes of a file, a piece at a time.

    Raises:
        OSError: where the file ends before.
    """
    with path.open("rb") as file:
        file.seek(start)
        while nbytes:
            piece = file.read(min(PIECE, nbytes))
            if not piece:
                raise OSError(f"{path} became shorter while it was read")
            nbytes -= len(piece)
            yield piece
