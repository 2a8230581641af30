"""Value integrity: every weight of a finished graph held against the source, role by role (`trace`).

What is in the file is read through the node that uses it, so that a tensor in another's place is found, whatever it is
called. What should be there is derived once more from the source, by the family's description and not by the graph that
was built from it. Memory is that of one tensor.
"""

from __future__ import annotations

from onnx_gpt.certificate.tracing.comparing import Tolerance, Trace, trace
from onnx_gpt.certificate.tracing.expected import Expected, expected_of
from onnx_gpt.certificate.tracing.files import trace_file

__all__ = ["Expected", "Tolerance", "Trace", "expected_of", "trace", "trace_file"]
