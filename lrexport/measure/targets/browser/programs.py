"""Where Chromium and onnxruntime-web are; lrexport fetches neither."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from lrexport.errors import DeviceError

NAME = "onnxruntime-web"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "microsoft-edge")
_ON_MACOS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
_SCRIPTS = {"wasm": "ort.wasm.min.mjs", "webgpu": "ort.webgpu.min.mjs"}
_INSTALL = f"Install it here or in a folder above: npm install {NAME}; or name its folder: browser?package=FOLDER."
_VERSION = re.compile(r"\d+\.\d+\.\d+[\w.+-]*", re.ASCII)


@dataclass(frozen=True)
class Package:
    """onnxruntime-web as npm installs it: the folder of its scripts, and its version."""

    folder: Path
    version: str

    @classmethod
    def find(cls, given: str | None, provider: str) -> Package:
        """In the folder ``given``, or in node_modules here or in a folder above. Raises DeviceError."""
        if given is not None:
            places = [Path(given), Path(given).parent]  # the package, or its dist
            lacking = f"{given} is not {NAME}: it has no package.json of it"
        else:
            here = Path.cwd()
            places = [folder / "node_modules" / NAME for folder in (here, *here.parents)]
            lacking = f"{NAME} is not installed: {here} and the folders above have no node_modules/{NAME}"
        for place in places:
            if (version := _version(place / "package.json")) is not None:
                script = place / "dist" / _SCRIPTS[provider]
                if not script.is_file():
                    reason = f"{NAME} {version} in {place} has no dist/{script.name}: expected version 1.20 or newer"
                    raise DeviceError(reason, _INSTALL)
                return cls(place / "dist", version)
        raise DeviceError(lacking, _INSTALL)


def script(provider: str) -> str:
    """The script of onnxruntime-web that brings the provider."""
    return _SCRIPTS[provider]


def _version(path: Path) -> str | None:
    try:
        about = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    version = about.get("version") if isinstance(about, dict) and about.get("name") == NAME else None
    return version if isinstance(version, str) and _VERSION.fullmatch(version) else None


def chromium(given: str | None) -> str:
    """The path of Chromium, or of the browser ``given``. Raises DeviceError."""
    if given is not None:
        if shutil.which(given) is None:
            raise DeviceError(f"there is no browser to run at {given}", "Check path=… of the target.")
        return given
    names = (*PROGRAMS, *(_ON_MACOS if sys.platform == "darwin" else ()))
    for program in filter(None, map(shutil.which, names)):
        return program
    raise DeviceError(
        "Chromium is not installed: PATH has none of " + ", ".join(PROGRAMS),
        "Install it: apt-get install chromium (or Google Chrome); or name it: browser?path=/path/to/chromium.",
    )


def command(program: str, provider: str, url: str) -> list[str]:
    """The command that opens ``url`` in a headless browser, whose folder is written ``{folder}``."""
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # Chromium refuses root with one
    gpu = ["--enable-unsafe-webgpu", "--enable-features=Vulkan"] if provider == "webgpu" else ["--disable-gpu"]
    return [program, "--headless=new", *root, *gpu, *_QUIET, url]


_QUIET = (
    "--user-data-dir={folder}",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--disable-breakpad",
    "--disable-crash-reporter",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",  # 64 MB in containers
    "--disable-extensions",
    "--disable-sync",
    "--metrics-recording-only",
    "--mute-audio",
    "--no-pings",
    "--password-store=basic",
    "--use-mock-keychain",
)
