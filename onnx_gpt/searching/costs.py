"""What a choice of formats costs: bytes of its files, and seconds of a decode step on this machine."""

from __future__ import annotations

import json
import shutil

import onnx_ir as ir

from calibration.quantization.weight_only import quantize_weights
from calibration.scheme import Grid
from calibration.search.ledger import Ledger
from calibration.search.units import Allocation, Option, Unit, scheme_of_allocation
from onnx_gpt.bundle.writing import MODEL, save, written_bytes
from onnx_gpt.machine import this_machine
from onnx_gpt.searching.kernel_times import Shape, product_seconds, step_seconds
from onnx_gpt.searching.search import Study


class Costs:
    """Costs on one model. Times are measured once on a machine and kept beside what else was measured.

    Attributes:
        fixed: bytes of everything that no unit has: norms, biases, the graph.
        rest: seconds of a step that no product of codes takes.
    """

    def __init__(self, opened: Study) -> None:
        self._opened = opened
        self._ledger = Ledger(opened.work / "kernels.jsonl")
        usual = {unit.name: Option(Grid(4, 32)) for unit in opened.units}
        self.fixed = self.size(usual) - sum(unit.nbytes(usual[unit.name]) for unit in opened.units)
        opened.progress.stage("kernels")
        self.rest = self._rest(usual)

    def size(self, choice: Allocation) -> int:
        """Bytes of ``model.onnx`` and its weights: a graph whose codes are never computed tells them."""
        return written_bytes(self._quantized(choice))

    def seconds(self, unit: Unit, option: Option) -> float:
        """Of the products of a unit for one token; of tables, the head is one."""
        products = unit.products(option)
        return sum(self._product(shape) for shape in (products if unit.layer is not None else products[-1:]))

    def _product(self, shape: Shape) -> float:
        grid, rows, columns = shape
        key = self._key(grid.bits, grid.block_size, rows, columns)
        known = self._ledger.get(key)
        return self._ledger.put(key, product_seconds(shape)) if known is None else known

    def _rest(self, choice: Allocation) -> float:
        """A step of the whole model in some choice, without the products of that."""
        key = self._key("step", self._opened.measurer.digest)
        step = self._ledger.get(key)
        if step is None:
            folder = self._opened.scratch / "whole"
            folder.mkdir()
            save(self._quantized(choice), folder, self._opened.progress)
            seconds = step_seconds(folder / MODEL, self._opened.exported.context_length)
            step = self._ledger.put(key, seconds)
            shutil.rmtree(folder)
        products = sum(self.seconds(unit, choice[unit.name]) for unit in self._opened.units)
        return max(step - products, 0.0)

    def _quantized(self, choice: Allocation) -> ir.Model:
        model = self._opened.model.clone()
        quantize_weights(model, scheme_of_allocation(self._opened.units, choice))
        return model

    def _key(self, *what: object) -> str:
        import onnxruntime as ort

        machine = this_machine()
        return json.dumps([machine.cpu, machine.threads, ort.__version__, *what])
