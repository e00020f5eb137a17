"use strict";
(() => {
  const { parts, pictures } = JSON.parse(document.getElementById("data").textContent);
  const every = (selector, within = document) => [...within.querySelectorAll(selector)];
  const picture = (place) => `data:image/png;base64,${pictures[place]}`;
  const PALETTE = ["#3b82f6", "#e8710a", "#1e9e5a", "#d6409f", "#8b6cef", "#0e9aa7", "#e5484d", "#a1752b", "#7a7f87", "#5b5bd6"];
  const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  // Plotly reads texts as a little HTML of its own.
  const plain = (text) => (text.length > 24 ? `${text.slice(0, 23)}…` : text)
    .replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll("$", "&#36;");

  // --- charts: colours come from the style sheet, so that they follow light, dark and print

  const theme = () => {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { gridcolor: colour("--grid"), zerolinecolor: colour("--line"), linecolor: colour("--line"), tickcolor: colour("--line") };
    return {
      layout: {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", xaxis: axis, yaxis: axis,
        font: { color: colour("--ink"), family: getComputedStyle(document.body).fontFamily, size: 12 },
        hoverlabel: { bgcolor: colour("--panel"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
        coloraxis: { colorscale: [[0, colour("--cold")], [1, colour("--hot")]] },
        modebar: { color: colour("--muted"), activecolor: colour("--accent"), bgcolor: "rgba(0,0,0,0)" },
        margin: { l: 50, r: 12, t: 30, b: 45 }, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
        hovermode: "closest", dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      },
    };
  };
  const charts = [];
  const draw = (node, { data, layout }) => {
    if (!charts.includes(node)) charts.push(node);
    node.style.height = `${layout.height}px`; // else it collapses on paper
    return Plotly.react(node, data, { ...layout, template: theme(), autosize: true }, CONFIG);
  };
  const redraw = () => charts.forEach((node) => Plotly.relayout(node, { template: theme(), autosize: true }));
  const printing = (now) => () => {
    document.documentElement.classList.toggle("printing", now);
    redraw();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", printing(true));
  addEventListener("afterprint", printing(false));

  // --- what a filter leaves

  const fate = (right, at) => (!right[0] ? "wrong" : right[at] ? "held" : "fell");
  const passes = (controls, name, its) => {
    const [wanted, shown] = [".of-class", ".fate"].map((control) => controls.querySelector(control).value);
    return (!wanted || wanted === name) && (!shown || shown === its);
  };
  const tell = (node, said, right) => {
    node.textContent = node.title = said;
    node.className = `said ${right ? "right" : "wrong"}`;
  };

  // --- gallery: a slider over the grid of eps

  const showGallery = (node, { eps, cards }, controls) => {
    const at = Math.min(Number(controls.querySelector(".eps").value), eps.length - 1);
    const shown = every(".card", node).filter((card, place) => {
      const { attacked, moved, said, right, sure, true: name } = cards[place];
      card.querySelector(".attacked").src = picture(attacked[at]);
      card.querySelector(".moved").src = picture(moved[at]);
      tell(card.querySelector("img.attacked + p > .said"), said[at], right[at]);
      card.querySelector(".sure").textContent = `${sure[at]} %`;
      card.hidden = !passes(controls, name, fate(right, at));
      return !card.hidden;
    });
    const still = cards.filter(({ right }) => right[at]).length;
    node.querySelector(".state").textContent =
      `eps ${eps[at]}: the model is right on ${still} of these ${cards.length} images` +
      (shown.length < cards.length ? `; ${shown.length} are shown` : "");
    return eps[at];
  };

  // --- map: lines between twins, a trace for each class

  const traces = ({ points }, { points: at }, chosen) => {
    const labels = [...new Set(chosen.map((place) => points[place].label))].sort((a, b) => a - b);
    return labels.flatMap((label) => {
      const members = chosen.filter((place) => points[place].label === label);
      const [colour, legendgroup] = [PALETTE[label % PALETTE.length], String(label)];
      const joined = (axis) => members.flatMap((place) => [at[0][place][axis], at[1][place][axis], null]);
      const marks = (twin) => ({
        type: "scatter", mode: "markers", legendgroup, customdata: members, hoverinfo: "none",
        x: members.map((place) => at[twin][place][0]), y: members.map((place) => at[twin][place][1]),
      });
      return [
        { type: "scatter", mode: "lines", legendgroup, x: joined(0), y: joined(1), showlegend: false, hoverinfo: "skip",
          line: { color: colour, width: 1 }, opacity: 0.45 },
        { ...marks(0), name: plain(points[members[0]].true), marker: { color: colour, size: 7 } },
        { ...marks(1), showlegend: false,
          marker: { color: colour, size: 7, symbol: members.map((place) => (points[place].right[1] ? "square-open" : "x-thin-open")) } },
      ];
    });
  };
  let mapped = [];
  const showMap = (node, data, controls) => {
    const { views, points } = data;
    const wanted = controls.querySelector(".view").value;
    const view = views.find(({ name }) => name === wanted) || { axes: ["this model has no such embedding", ""] };
    const chosen = [...points.keys()].filter(
      (place) => view.points && passes(controls, points[place].true, fate(points[place].right, 1)));
    const [x, y] = view.axes;
    const axis = (text) => ({ title: { text }, showticklabels: false, zeroline: false });
    const chart = node.querySelector(".chart");
    draw(chart, { data: traces(data, view, chosen), layout: { xaxis: axis(x), yaxis: axis(y), height: 460 } });
    const [step, state] = [node.querySelector(".step"), node.querySelector(".state")];
    step.max = Math.max(chosen.length - 1, 0);
    step.disabled = !chosen.length;
    const show = (place) => {
      if (!chosen.includes(place)) return;
      step.value = chosen.indexOf(place);
      const { index, said, right, pictures: twins, true: name } = points[place];
      every(".pair > div", node).forEach((side, k) => {
        const image = side.querySelector("img");
        image.src = picture(twins[k]);
        image.alt = `Test image ${index}, ${name}, ${["as it is", "attacked"][k]}`;
        tell(side.querySelector(".said"), said[k], right[k]);
      });
      state.textContent = `test image ${index}: ${name}`;
      const ends = view.points.map((twin) => twin[place]);
      Plotly.relayout(chart, { shapes: ends.map(([xanchor, yanchor]) => ({
        type: "circle", xsizemode: "pixel", ysizemode: "pixel", xanchor, yanchor, x0: -9, x1: 9, y0: -9, y1: 9,
        line: { width: 2, color: getComputedStyle(document.documentElement).getPropertyValue("--ink").trim() },
      })) });
    };
    // The same image in every map, as far as it is there.
    const everywhere = (place) => mapped.forEach(({ of, at }) => at(of.findIndex(({ index }) => index === points[place].index)));
    mapped.push({ of: points, at: show });
    step.oninput = () => everywhere(chosen[step.value]);
    chart.removeAllListeners("plotly_hover");
    chart.on("plotly_hover", ({ points: [point] }) => {
      if (point.customdata === undefined) return;
      everywhere(point.customdata);
    });
    if (chosen.length) show(chosen[step.value]);
    else state.textContent = "no image is left by these filters";
  };

  // --- all of it

  const SHOW = { gallery: showGallery, map: showMap };
  for (const [name, show] of Object.entries(SHOW)) {
    const controls = document.querySelector(`.controls[data-for="${name}"]`);
    if (!controls) continue;
    const update = () => {
      if (show === showMap) mapped = [];
      const told = every(`.${name}[id]`).filter((node) => parts[node.id]).map((node) => show(node, parts[node.id], controls));
      const eps = controls.querySelector(".eps");
      if (eps) eps.setAttribute("aria-valuetext", `eps ${told[0]}`);
    };
    controls.addEventListener("submit", (event) => event.preventDefault());
    controls.addEventListener("input", update);
    update();
  }
  every("img[data-picture]").forEach((image) => { image.src ||= picture(image.dataset.picture); });
  for (const [id, part] of Object.entries(parts)) if (part.data && part.layout) draw(document.getElementById(id), part);
})();
