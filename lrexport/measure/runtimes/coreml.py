"""Core ML's files, made by coremltools, which runs on Linux too. Only Apple's machines run them."""

# The toolchain's Python may be older than lrexport requires.
from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar

from lrexport.measure.runtimes.base import Loaded, Ports, Runtime, Unsupported

_TYPES = ("float32", "float16", "int32", "int64")


class CoreMl(Runtime):
    """An ML program with float32 weights, a folder .mlpackage, in a .zip file; asked to compute in float32."""

    name = "coreml"
    needs: ClassVar[dict[str, str]] = {"numpy": "numpy", "torch": "torch", "coremltools": "coremltools"}
    suffixes = (".mlpackage.zip",)
    no_int8 = "its files do not run here, so nothing would say what int8 costs"
    takes_program = True
    is_run = False

    def version(self) -> str:
        import coremltools

        return str(coremltools.__version__)

    def convert(self, source: str, folder: str, ports: Ports, seconds: float) -> list[str]:
        import coremltools
        import torch

        for port in (*ports.inputs, *ports.outputs):
            if port.dtype not in _TYPES:
                raise Unsupported(f"{port.name!r} is {port.dtype}: Core ML takes {', '.join(_TYPES)}")
        model = coremltools.convert(
            torch.export.load(source).run_decompositions({}),
            convert_to="mlprogram",
            compute_precision=coremltools.precision.FLOAT32,
            minimum_deployment_target=coremltools.target.iOS16,
            skip_model_load=True,
        )
        spec = model.get_spec()
        _name_as(spec, ports)
        package = os.path.join(folder, "model.mlpackage")
        coremltools.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True).save(package)
        return [_zipped(package)]

    def load(self, files: Sequence[str], threads: int, ports: Ports | None = None, profile_to: str | None = None) -> Loaded:
        raise Unsupported("Core ML runs on Apple's machines only")


def _name_as(spec: Any, ports: Ports) -> None:
    """Give inputs and outputs, which are in their order, the names of the ONNX file. Raises Unsupported if one lacks."""
    import coremltools

    for mine, theirs in ((spec.description.input, ports.inputs), (spec.description.output, ports.outputs)):
        names, wanted = [feature.name for feature in mine], [port.name for port in theirs]
        if len(names) != len(wanted):
            raise Unsupported(f"coremltools writes {names}, the ONNX file has {wanted}")
        for number, name in enumerate(names):  # one may have another's name
            coremltools.utils.rename_feature(spec, name, f"lrexport_{number}")
        for number, name in enumerate(wanted):
            coremltools.utils.rename_feature(spec, f"lrexport_{number}", name)


def _zipped(package: str) -> str:
    """The package with all its files in a .zip, in their order and without times."""
    import zipfile

    path, above = f"{package}.zip", os.path.dirname(package)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder, folders, names in os.walk(package):
            folders.sort()
            for name in sorted(names):
                file = os.path.join(folder, name)
                with open(file, "rb") as stream:
                    archive.writestr(zipfile.ZipInfo(os.path.relpath(file, above)), stream.read(), zipfile.ZIP_DEFLATED)
    return path


RUNTIME = CoreMl()
