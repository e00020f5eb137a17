"use strict";
// Follows state.json and draws it. Whatever comes from the run is put in as text, never as markup.

const EVERY = 2000; // milliseconds
const COLOURS = ["one", "two", "three", "four", "five"];
const DASHES = ["", "6 3", "2 3", "8 3 2 3", "1 4"]; // curves differ in more than colour
const ACCURACIES = ["validation_clean", "validation_robust", "batch_accuracy"];
const AROUND = new Set(["step", "epoch", "lr", "images_per_s", "memory_mb", "seconds", ...ACCURACIES]);
const SPOKEN = {
  validation_clean: "validation clean",
  validation_robust: "validation robust",
  batch_accuracy: "training batches",
  contrast: "contrastive loss",
  lr: "learning rate",
  images_per_s: "images per second",
  memory_mb: "memory at most, MB",
};

const percent = (value) => `${(100 * value).toFixed(1)} %`;
const plain = (value) => (Math.abs(value) >= 1e-3 || value === 0 ? Number(value.toPrecision(4)).toString() : value.toExponential(2));
const spoken = (key) => SPOKEN[key] ?? key.replace("cross_entropy", "cross-entropy").replaceAll("_", " ");

function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  return minutes < 90 ? `${minutes} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function drawn(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// About four round numbers: from at most low to at least high.
function ticks(low, high) {
  const rough = (high - low || 1) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const first = Math.floor(low / step + 1e-9), last = Math.max(first + 1, Math.ceil(high / step - 1e-9));
  return Array.from({ length: last - first + 1 }, (_, place) => (first + place) * step);
}

class Chart {
  constructor(title, spell, bounds = []) {
    this.title = title;
    this.spell = spell;
    this.bounds = bounds;
    this.figure = element("figure");
    this.legend = element("ul", undefined, { class: "legend" });
    this.svg = drawn("svg", { class: "chart", role: "img" });
    this.read = element("p", "", { class: "read", "aria-hidden": "true" });
    this.figure.append(element("figcaption", title), this.legend, this.svg, this.read);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.choose(null));
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  show(lines, keys, epochs) {
    this.lines = lines;
    this.keys = keys;
    this.epochs = epochs;
    const named = keys.length > 1 ? keys : [];
    this.legend.replaceChildren(...named.map((key, place) => {
      const item = element("li");
      const swatch = drawn("svg", { viewBox: "0 0 28 10", "aria-hidden": "true" });
      swatch.append(drawn("line", { x1: 0, x2: 28, y1: 5, y2: 5, ...this.style(place) }));
      item.append(swatch, spoken(key));
      return item;
    }));
    const latest = keys.map((key) => [key, lines.findLast((line) => key in line)]).filter(([, line]) => line);
    const told = latest.map(([key, line]) => `${spoken(key)} ${this.spell(line[key])}`).join(", ");
    this.svg.setAttribute("aria-label", `${this.title}; last: ${told}`);
    this.draw();
  }

  style(place) {
    const colour = COLOURS[place % COLOURS.length];
    // The second round through the colours has other dashes than the first.
    const dashes = DASHES[(place + Math.floor(place / COLOURS.length)) % DASHES.length];
    return { class: "curve", stroke: `var(--${colour})`, "stroke-dasharray": dashes };
  }

  draw() {
    const width = this.svg.clientWidth, height = this.svg.clientHeight;
    if (!this.lines || !width) return;
    const values = this.lines.flatMap((line) => this.keys.filter((key) => key in line).map((key) => line[key]));
    if (!values.length) return;
    const scale = ticks(Math.min(...this.bounds, ...values), Math.max(...this.bounds, ...values));
    const low = scale[0], high = scale[scale.length - 1];
    const left = 48, right = width - 12, top = 8, bottom = height - 24;
    this.x = (epoch) => left + ((epoch - 1) / Math.max(1, this.epochs - 1)) * (right - left);
    const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
    const parts = [];
    for (const tick of scale) {
      parts.push(drawn("line", { class: "grid", x1: left, x2: right, y1: y(tick), y2: y(tick) }));
      parts.push(drawn("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, this.spell(tick).replace(".0 %", " %")));
    }
    const whole = (tick) => Number.isInteger(tick) && tick > 1 && tick <= this.epochs;
    for (const tick of [1, ...ticks(1, this.epochs).filter(whole)]) {
      parts.push(drawn("text", { x: this.x(tick), y: height - 6, "text-anchor": "middle" }, tick));
    }
    this.keys.forEach((key, place) => {
      const points = this.lines.filter((line) => key in line).map((line) => [this.x(line.epoch), y(line[key])]);
      parts.push(drawn("polyline", { points: points.join(" "), ...this.style(place) }));
      if (points.length) {
        const [x, height] = points[points.length - 1];
        parts.push(drawn("circle", { cx: x, cy: height, r: 3.5, fill: `var(--${COLOURS[place % COLOURS.length]})` }));
      }
    });
    this.mark = drawn("line", { class: "at", y1: top, y2: bottom, visibility: "hidden" });
    this.svg.replaceChildren(...parts, this.mark);
  }

  point(event) {
    if (!this.lines?.length) return;
    const at = event.clientX - this.svg.getBoundingClientRect().left;
    const away = (line) => Math.abs(this.x(line.epoch) - at);
    this.choose(this.lines.reduce((nearest, line) => (away(line) < away(nearest) ? line : nearest)));
  }

  choose(line) {
    this.mark?.setAttribute("visibility", line ? "visible" : "hidden");
    if (!line) { this.read.textContent = ""; return; }
    for (const end of ["x1", "x2"]) this.mark.setAttribute(end, this.x(line.epoch));
    const told = this.keys.filter((key) => key in line).map((key) => `${spoken(key)} ${this.spell(line[key])}`);
    this.read.textContent = `epoch ${line.epoch}: ${told.join(", ")}`;
  }
}

const charts = {
  accuracy: new Chart("Accuracy by epoch", percent, [0, 1]),
  loss: new Chart("Loss and its parts by epoch", plain),
  lr: new Chart("Learning rate by epoch", plain, [0]),
};

// The status is read out when it changes; how long ago something was changes all the time, so it stands apart.
function say(status, silence) {
  for (const [id, text] of Object.entries({ status, silence })) {
    const place = document.getElementById(id);
    if (place.textContent !== text) place.textContent = text;
  }
}

function tell(state) {
  const last = state.lines.at(-1), ago = `${duration(state.silent)} ago`;
  if (state.finished) return say(`finished after ${duration(last.seconds)} of training`, `next: anchor evaluate ${state.run}`);
  if (!last) return say(`epoch 1 of ${state.epochs} under way`, `begun ${ago}`);
  const stopped = state.silent > 60 + 4 * (last.seconds / last.epoch);
  const hint = stopped ? `; if it has stopped, anchor train --resume ${state.run} goes on` : "";
  say(`epoch ${last.epoch + 1} of ${state.epochs} under way`, `the one before ended ${ago}${hint}`);
}

function facts(state) {
  const last = state.lines.at(-1);
  if (!last) return [];
  const best = (key) => {
    const validated = state.lines.filter((line) => key in line);
    return validated.length ? validated.reduce((most, line) => (line[key] >= most[key] ? line : most)) : null;
  };
  const told = [["epoch", `${last.epoch} of ${state.epochs}`, `step ${last.step.toLocaleString("en")}`]];
  for (const [key, name] of [["validation_clean", "best clean"], ["validation_robust", "best robust"]]) {
    const line = best(key);
    if (line) told.push([name, percent(line[key]), `validation, epoch ${line.epoch}`]);
  }
  if (!state.finished) {
    const left = (last.seconds / last.epoch) * (state.epochs - last.epoch) - state.silent;
    told.push(["time left", `about ${duration(Math.max(0, left))}`, "without validation"]);
  }
  told.push(["speed", `${Math.round(last.images_per_s).toLocaleString("en")}`, "images a second"]);
  told.push(["learning rate", plain(last.lr), ""]);
  if ("memory_mb" in last) told.push(["memory", `${last.memory_mb.toLocaleString("en")} MB`, "at most"]);
  return told;
}

function show(state) {
  const lines = state.lines, known = [...new Set(lines.flatMap(Object.keys))];
  document.title = `${lines.at(-1)?.epoch ?? 0}/${state.epochs} ${state.name}`;
  document.getElementById("name").textContent = state.name;
  document.getElementById("progress").value = (lines.at(-1)?.epoch ?? 0) / state.epochs;
  document.getElementById("facts").replaceChildren(...facts(state).map(([name, value, note]) => {
    const fact = element("div"), described = element("dd", value);
    if (note) described.append(" ", element("small", note));
    fact.append(element("dt", name), described);
    return fact;
  }));
  const parts = known.filter((key) => !AROUND.has(key));
  const accuracies = ACCURACIES.filter((key) => known.includes(key));
  charts.accuracy.show(lines, accuracies, state.epochs);
  charts.loss.show(lines, parts, state.epochs);
  charts.lr.show(lines, ["lr"], state.epochs);
  if (lines.length) document.getElementById("charts").replaceChildren(...Object.values(charts).map((chart) => chart.figure));
  const around = ["lr", "images_per_s", "memory_mb", "seconds"].filter((key) => known.includes(key));
  tabulate(lines, ["epoch", ...accuracies, ...parts, ...around]);
}

function tabulate(lines, keys) {
  const spell = (key, value) => (value === undefined ? "" : ACCURACIES.includes(key) ? percent(value) : plain(value));
  const head = element("thead"), body = element("tbody"), row = element("tr");
  row.append(...keys.map((key) => element("th", spoken(key), { scope: "col" })));
  head.append(row);
  body.append(...lines.map((line) => {
    const cells = element("tr");
    cells.append(...keys.map((key) => element("td", spell(key, line[key]))));
    return cells;
  }));
  document.getElementById("table").replaceChildren(head, body);
}

async function follow() {
  let shown = "";
  for (;;) {
    try {
      const state = await (await fetch("state.json")).json();
      if (state.error) {
        say(state.error, "");
      } else {
        tell(state);
        // Drawn anew only after an epoch, so that a reader keeps the place.
        if (JSON.stringify(state.lines) !== shown) show(state);
        shown = JSON.stringify(state.lines);
        if (state.finished) return;
      }
    } catch {
      say("anchor watch has ended", "these are the last numbers it gave");
    }
    await new Promise((wake) => setTimeout(wake, EVERY));
  }
}

follow();
