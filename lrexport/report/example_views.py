"""Example pictures of a run, ready for the page: what is drawn, and the texts beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lrexport.metric import DECIBEL, TOP1, Metric
from lrexport.report.drawing import OPACITY, colour_of, data_uri
from lrexport.runs.examples import NOT_COUNTED, Box, Example, Examples, Guess, Said
from lrexport.text import visible
from lrexport.units import format_percent

_SHARPEST = 96  # pixels: smaller pictures are drawn with sharp pixels
_MOST_NAMED = 8  # classes in a legend or a text
_BACKGROUND, _NAMELESS = "background", ("0", "class 0")
_FACTORS = (1, 2, 4, 8, 16, 32)  # by which differences of pictures are multiplied
_TITLES = {"target": "Target", "dense": "Dense", "compressed": "Compressed"}


@dataclass(frozen=True)
class Line:
    """A class with its probability, or an output with its figure; ``width`` is the length of a bar in percent."""

    name: str
    value: str
    width: float = 0.0
    is_true: bool = False


@dataclass(frozen=True)
class Frame:
    """A box over a picture, in its pixels, and the colour of its class."""

    x: float
    y: float
    width: float
    height: float
    text: str
    colour: str


@dataclass(frozen=True)
class Panel:
    """One picture with what is drawn over it. ``base`` is the id of the picture under it; ``source`` and ``mask`` are URIs.

    A panel without a size has ``lines`` only.
    """

    title: str
    alt: str = ""
    width: int = 0
    height: int = 0
    base: str = ""
    source: str = ""
    mask: str = ""
    frames: tuple[Frame, ...] = ()
    lines: tuple[Line, ...] = ()
    text: str = ""

    @property
    def is_sharp(self) -> bool:
        """Whether its pixels are drawn as squares."""
        return max(self.width, self.height) <= _SHARPEST


@dataclass(frozen=True)
class ExampleView:
    """One example: a title, why it is shown, pictures side by side, and the colours of classes in them."""

    id: str
    title: str
    text: str
    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, str], ...] = ()


def example_views(examples: Examples, names: Sequence[str], id: str, most: int) -> tuple[ExampleView, ...]:
    """At most ``most`` of the examples, half of them the worst; ``names`` are those of the classes."""
    worst = [place for place, each in enumerate(examples.about.examples) if each.why == "worst"]
    random = [place for place, each in enumerate(examples.about.examples) if each.why != "worst"]
    least = max(most // 2, most - len(random))
    chosen = [*random[: max(0, most - len(worst[:least]))], *worst[:least]]
    return tuple(_View(examples, place, names, f"{id}-{place}").made() for place in chosen)


@dataclass(frozen=True)
class _View:
    examples: Examples
    place: int
    names: Sequence[str]
    id: str

    @property
    def example(self) -> Example:
        return self.examples.about.examples[self.place]

    def made(self) -> ExampleView:
        form = self.example.form
        legend: tuple[tuple[str, str], ...] = ()
        first = self._picture(
            "Input", self.examples.of(self.place, "picture"), f"{self.id}-picture", "as the network gets it"
        )
        if form == "classes":
            if self.example.label is not None:
                first = replace(first, text=f"true class: {self._name(self.example.label)}")
            panels = [first, *(self._guesses(part) for part in ("dense", "compressed"))]
        elif form == "masks":
            panels, legend = self._masks(first)
        elif form == "boxes":
            panels = [first, *self._boxes(first)]
        elif form == "pictures":
            panels = [first, *self._pictures()]
        else:
            lines = tuple(Line(name, f"{value:.1f} dB") for name, value in self.example.sqnr_db.items())
            panels = [first, Panel("SQNR of the outputs", lines=lines, text="" if lines else "They differ in shape.")]
        why = "drawn at random" if self.example.why == "random" else "one of the worst"
        return ExampleView(
            self.id, f"Held-out picture {self.example.number + 1:,}, {why}", self._text(), tuple(panels), legend
        )

    def _text(self) -> str:
        """The figures of this picture."""
        example, metric = self.example, self.examples.metric
        parts = [_verdict(example, metric) or _scores(example, metric)]
        ratios = example.sqnr_db
        fidelity = metric is not None and metric.unit == DECIBEL and example.dense_score is None
        if ratios and example.form != "values" and not (fidelity and parts[0]):
            least = min(ratios, key=ratios.__getitem__)
            parts.append(f"SQNR {ratios[least]:.1f} dB" + (f" ({least}, the least)" if len(ratios) > 1 else ""))
        if example.stretched:
            parts.append("the range of the pixels is not known, so their contrast is stretched")
        return "; ".join(part for part in parts if part)

    def _picture(self, title: str, pixels: Any, id: str, alt: str) -> Panel:
        height, width = pixels.shape[:2]
        return Panel(
            title, f"{title}: held-out picture {self.example.number + 1}, {alt}", width, height, id, data_uri(pixels)
        )

    def _name(self, label: int) -> str:
        return visible(self.names[label]) if 0 <= label < len(self.names) else f"class {label}"

    def _said(self, part: str) -> Said:
        return {"target": self.example.target, "dense": self.example.dense, "compressed": self.example.compressed}[
            part
        ] or Said()

    def _guesses(self, part: str) -> Panel:
        lines = tuple(self._line(guess) for guess in self._said(part).guesses)
        return Panel(_TITLES[part], lines=lines, text="" if lines else "no classes")

    def _line(self, guess: Guess) -> Line:
        is_true = guess.label == self.example.label
        return Line(self._name(guess.label), format_percent(guess.share), round(100 * guess.share, 2), is_true)

    def _masks(self, first: Panel) -> tuple[list[Panel], tuple[tuple[str, str], ...]]:
        import numpy as np

        counted: dict[int, int] = {}
        panels, masks = [first], {part: self.examples.of(self.place, part) for part in _TITLES}
        for part, mask in masks.items():
            if mask is None:
                continue
            labels, counts = np.unique(mask, return_counts=True)
            shares = sorted(zip(counts.tolist(), labels.tolist(), strict=True), reverse=True)
            for count, label in shares:
                counted[label] = counted.get(label, 0) + count
            listed = [f"{self._name(label)} {count / mask.size:.0%}" for count, label in shares if label != NOT_COUNTED]
            panel = Panel(
                _TITLES[part],
                f"{_TITLES[part]}: classes of the pixels: {_listed(listed)}",
                first.width,
                first.height,
                base=first.base,
                mask=self._coloured(mask),
            )
            panels.append(panel)
        target = masks["target"]
        if target is not None:
            panels = [panel if panel.title in ("Input", "Target") else self._right(panel, masks, target) for panel in panels]
        most = sorted(counted, key=counted.__getitem__, reverse=True)
        coloured = [label for label in most if label != NOT_COUNTED and self._colour(label)]
        legend = [(self._colour(label), self._name(label)) for label in coloured[:_MOST_NAMED]]
        if len(coloured) > _MOST_NAMED:
            legend.append(("", f"and {len(coloured) - _MOST_NAMED} more"))
        legend += [
            ("", f"{self._name(label)}: no colour") for label in most if label != NOT_COUNTED and not self._colour(label)
        ]
        return panels, tuple(legend)

    def _right(self, panel: Panel, masks: dict[str, Any], target: Any) -> Panel:
        mask = masks["dense" if panel.title == _TITLES["dense"] else "compressed"]
        counts = target != NOT_COUNTED
        if mask.shape != target.shape or not counts.any():
            return panel
        return replace(panel, text=f"{((mask == target) & counts).sum() / counts.sum():.1%} of the pixels right")

    def _colour(self, label: int) -> str:
        """The colour of a class; none for a background, which class 0 is taken for if it has no name."""
        name = self._name(label).lower()
        return "" if name == _BACKGROUND or (label == 0 and name in _NAMELESS) else colour_of(label)

    def _coloured(self, mask: Any) -> str:
        import numpy as np

        pixels = np.zeros((*mask.shape, 4), np.uint8)
        for label in np.unique(mask).tolist():
            colour = "" if label == NOT_COUNTED else self._colour(label)
            if colour:
                pixels[mask == label] = (*bytes.fromhex(colour[1:]), OPACITY)
        return data_uri(pixels)

    def _boxes(self, first: Panel) -> Iterable[Panel]:
        for part, title in _TITLES.items():
            said = self._said(part)
            if part == "target" and self.example.target is None:
                continue
            texts = [self._box_text(box) for box in said.boxes]
            more = f" and {said.more} more" if said.more else ""
            yield Panel(
                title,
                f"{title}: {_listed(texts) or 'no boxes'}{more}",
                first.width,
                first.height,
                base=first.base,
                frames=tuple(self._frame(box, first) for box in said.boxes),
                text=f"{len(said.boxes) + said.more} {'box' if len(said.boxes) + said.more == 1 else 'boxes'}"
                + (f", {len(said.boxes)} shown" if said.more else "")
                + (f": {_listed(texts)}" if texts else ""),
            )

    def _box_text(self, box: Box) -> str:
        return self._name(box.label) + (f" {box.score:.2f}" if box.score is not None else "")

    def _frame(self, box: Box, on: Panel) -> Frame:
        left, right = sorted((box.corners[0] * on.width, box.corners[2] * on.width))
        top, bottom = sorted((box.corners[1] * on.height, box.corners[3] * on.height))
        x, y, width, height = (round(value, 2) for value in (left, top, right - left, bottom - top))
        return Frame(x, y, width, height, self._box_text(box), colour_of(box.label))

    def _pictures(self) -> Iterable[Panel]:
        import numpy as np

        parts = {part: self.examples.of(self.place, part) for part in _TITLES}
        for part, pixels in parts.items():
            if pixels is not None:
                yield self._picture(_TITLES[part], pixels, f"{self.id}-{part}", f"the {part} picture")
        if parts["dense"].shape != parts["compressed"].shape:
            return
        difference = np.abs(parts["dense"].astype(np.int16) - parts["compressed"].astype(np.int16))
        most = int(difference.max())
        factor = max(factor for factor in _FACTORS if factor == 1 or factor * most <= 255)
        title = "Difference" if factor == 1 else f"Difference × {factor}"
        alt = f"dense minus compressed, at most {most} of 255"
        panel = self._picture(title, (difference * factor).astype(np.uint8), f"{self.id}-difference", alt)
        yield replace(panel, text=f"at most {most} of 255" if most else "none")


def _verdict(example: Example, metric: Metric | None) -> str:
    """For a picture with a class: which of the networks is right."""
    if metric != TOP1 or example.dense_score is None or example.score is None:
        return ""
    dense, small = example.dense_score == 1, example.score == 1
    if dense == small:
        return "both right" if dense else "both wrong"
    return "dense right, compressed wrong" if dense else "dense wrong, compressed right"


def _scores(example: Example, metric: Metric | None) -> str:
    if metric is None or example.score is None:
        return ""
    name, after = visible(metric.name), visible(metric.format(example.score))
    if example.dense_score is None:
        return f"{name} {after}"
    return f"{name} {visible(metric.format(example.dense_score))} → {after}"


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    return ", ".join(texts[:_MOST_NAMED]) + more
