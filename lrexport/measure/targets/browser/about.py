"""What a page says about the browser that it is in, checked: it may be a stranger's."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

_Text = Annotated[str, Field(max_length=500)]


class About(BaseModel):
    """What a page says about its browser."""

    model_config = ConfigDict(extra="forbid", strict=True)

    agent: _Text
    cores: Annotated[int, Field(ge=1, le=4096)]
    isolated: bool
    secure: bool
    timer_ms: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
    brands: Annotated[list[tuple[_Text, _Text]], Field(max_length=20)] = []
    platform: _Text = ""
    model: _Text = ""
    gpu: _Text | None = None

    @property
    def browser(self) -> str:
        """``Chromium 156.0.8078.108``; where a browser hides its version, as much as it tells every page."""
        named = [(brand, version) for brand, version in self.brands if "Not" not in brand]
        others = [pair for pair in named if pair[0] != "Chromium"] or named
        if others:
            return " ".join(others[0])
        for pattern, name in ((r"(Firefox|FxiOS|CriOS|Chrome)/([\d.]+)", None), (r"Version/([\d.]+).*Safari", "Safari")):
            if match := re.search(pattern, self.agent):
                return f"{name} {match[1]}" if name else f"{match[1]} {match[2]}"
        return self.agent[:100] or "an unknown browser"

    def machine(self) -> dict[str, Any]:
        """The machine, as far as browsers tell."""
        system = self.platform or next(iter(re.findall(r"\(([^)]*)\)", self.agent)), "unknown")
        return {"cpu": self.model or "unknown processor", "isa": [], "cores": self.cores, "system": system}
