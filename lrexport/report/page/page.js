"use strict";
// Draws the figures in #figures with plotly, in the reader's colours; hidden charts are drawn when they are shown.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const drawn = new Set();
  const pages = {};  // by chart: the page shown
  const COLOUR_KEYS = new Set(["color", "fillcolor", "gridcolor", "linecolor", "zerolinecolor", "bordercolor", "bgcolor"]);
  const CONFIG = { displayModeBar: false, responsive: false, scrollZoom: false, doubleClick: false, showTips: false };
  const PANEL = 156;  // pixels of a spectrum's height
  const colour = (role) => getComputedStyle(document.documentElement).getPropertyValue(`--${role}`).trim();

  // "@role" → its colour, only in keys for colours: names in texts are not changed.
  const painted = (value, key) => {
    if (Array.isArray(value)) return value.map((each) => painted(each, key));
    if (value !== null && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, painted(each, name)]));
    return typeof value === "string" && value[0] === "@" && COLOUR_KEYS.has(key) ? colour(value.slice(1)) : value;
  };

  const axis = { gridcolor: "@grid", linecolor: "@line", zerolinecolor: "@line", fixedrange: true, ticks: "" };
  const base = (width) => ({
    width,
    font: { family: getComputedStyle(document.body).fontFamily, size: width < 500 ? 11 : 12, color: "@ink" },
    paper_bgcolor: colour("paper"), plot_bgcolor: colour("paper"),
    margin: { l: 10, r: width < 500 ? 34 : 60, t: 40, b: 20 }, dragmode: false, hovermode: "closest",
    hoverlabel: { bgcolor: "@raised", bordercolor: "@line", font: { color: "@ink" }, align: "left" },
    legend: { orientation: "h", x: 0, xanchor: "left", xref: "container", y: 1, yanchor: "top", yref: "container", bgcolor: "rgba(0,0,0,0)" },
    showlegend: true,
  });

  const plain = (figure, width) => {
    const layout = { ...base(width), ...figure.layout };
    layout.xaxis = { ...axis, automargin: true, ...layout.xaxis };
    layout.yaxis = { ...axis, ...layout.yaxis };
    const top = layout.xaxis.side === "top";
    layout.margin = { ...layout.margin, t: top ? 76 : 44, b: top ? 12 : 48 };
    return { traces: figure.traces, layout };
  };

  // Small multiples: one panel per layer, in as many columns as fit.
  const spectra = (figure, width, id) => {
    const columns = Math.max(2, Math.min(5, Math.floor(width / 215)));
    const all = figure.panels, perPage = columns * (columns > 2 ? 5 : 6);
    const count = Math.ceil(all.length / perPage), page = Math.min(pages[id] || 0, count - 1);
    const panels = all.slice(page * perPage, (page + 1) * perPage), rows = Math.ceil(panels.length / columns);
    pager(id, page, count, perPage, all.length);
    const height = rows * PANEL + 46, layout = { ...base(width), height, shapes: [], annotations: [] };
    layout.margin = { l: 38, r: 12, t: 40, b: 6 };
    const inner = height - layout.margin.t - layout.margin.b, traces = [];
    panels.forEach((panel, i) => {
      const n = i ? i + 1 : "", column = i % columns, row = Math.floor(i / columns);
      const gap = 26 / (width - 50), wide = (1 - gap * (columns - 1)) / columns;
      const left = column * (wide + gap), high = 1 / rows, top = 1 - row * high;
      const bottom = top - high + 26 / inner, end = top - 30 / inner;
      layout[`xaxis${n}`] = { ...axis, domain: [left, left + wide], anchor: `y${n}`, range: [0.5, panel.full_rank + 0.5], nticks: 4, showgrid: false, showline: true };
      layout[`yaxis${n}`] = { ...axis, domain: [bottom, end], anchor: `x${n}`, type: "log", range: [-4, 0.15],
        tickvals: [1e-4, 1e-2, 1], ticktext: ["10<sup>−4</sup>", "10<sup>−2</sup>", "1"], showticklabels: column === 0 };
      layout.annotations.push({ xref: "paper", yref: "paper", x: left, y: end, xanchor: "left", yanchor: "bottom", showarrow: false,
        align: "left", text: `<b>${panel.title}</b><br>${panel.cut}`, font: { size: width < 500 ? 9.5 : 11 } });
      const lines = panel.after ? [["before", panel.before, "@dense", "dot"], ["after", panel.after, "@compressed", "solid"]]
        : [["dense network", panel.before, "@compressed", "solid"]];
      for (const [name, points, role, dash] of lines)
        traces.push({ type: "scatter", mode: "lines", name, legendgroup: name, showlegend: i === 0, xaxis: `x${n}`, yaxis: `y${n}`,
          x: points.map((p) => p[0]), y: points.map((p) => p[1]), line: { color: role, dash, width: 2 }, hoverinfo: "text",
          hovertext: points.map((p) => `${panel.title}<br>${name}, value ${p[0]}: ${p[1].toPrecision(3)} of the largest`) });
      if (panel.rank === null) return;
      const at = panel.rank + 0.5, where = { xref: `x${n}`, yref: `y${n} domain`, y0: 0, y1: 1 };
      layout.shapes.push({ ...where, type: "rect", x0: at, x1: panel.full_rank + 0.5, fillcolor: "@dropped", line: { width: 0 }, layer: "below" });
      layout.shapes.push({ ...where, type: "line", x0: at, x1: at, line: { color: "@cut", width: 1.5, dash: "dash" } });
    });
    traces.push({ type: "scatter", mode: "lines", name: "cut", x: [null], y: [null], line: { color: "@cut", dash: "dash", width: 1.5 }, hoverinfo: "skip" });
    return { traces, layout };
  };

  const pager = (id, page, count, perPage, total) => {
    const place = document.querySelector(`[data-pager="${id}"]`);
    place.hidden = count < 2;
    if (place.hidden) return;
    const go = (to) => { pages[id] = to; draw(id); };
    const names = [...Array(count).keys()].map((i) => `layers ${i * perPage + 1} to ${Math.min(total, (i + 1) * perPage)} of ${total}`);
    if (place.dataset.names !== names.join()) {
      place.dataset.names = names.join();
      const button = (sign, name, step) => {
        const made = document.createElement("button");
        made.type = "button"; made.textContent = sign; made.setAttribute("aria-label", name); made.addEventListener("click", () => go((pages[id] || 0) + step));
        return made;
      };
      const select = document.createElement("select");
      select.setAttribute("aria-label", "Layers shown");
      select.append(...names.map((name, i) => new Option(name, i)));
      select.addEventListener("change", () => go(Number(select.value)));
      place.replaceChildren(button("←", "Previous layers", -1), select, button("→", "Next layers", 1));
    }
    place.children[0].disabled = page === 0;
    place.children[1].value = page;
    place.children[2].disabled = page === count - 1;
  };

  const scrolls = (frame, name) => {
    frame.classList.add("tall");
    frame.tabIndex = 0;
    frame.setAttribute("role", "region");
    frame.setAttribute("aria-label", name);
  };

  const draw = (id) => {
    const place = document.getElementById(id), width = place.clientWidth;
    if (!width) return;  // hidden
    const made = (figures[id].kind === "spectra" ? spectra : plain)(figures[id], width, id);
    if (made.layout.height > 900 && figures[id].kind === "plain") scrolls(place.parentElement, place.getAttribute("aria-label"));
    Plotly.react(place, painted(made.traces), painted(made.layout), CONFIG);
    drawn.add(id);
  };
  const drawShown = () => Object.keys(figures).forEach((id) => drawn.has(id) || draw(id));
  const drawAgain = () => [...drawn].forEach(draw);

  document.documentElement.classList.add("charts");
  document.querySelectorAll("[data-choices]").forEach((group) => group.addEventListener("change", (event) => {
    group.querySelectorAll("[data-frame]").forEach((frame) => { frame.hidden = frame.dataset.frame !== event.target.value; });
    draw(event.target.value);
  }));
  document.querySelectorAll("details").forEach((each) => each.addEventListener("toggle", drawShown));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAgain);
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawAgain(); } });
  drawShown();
})();
