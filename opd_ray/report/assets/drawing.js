// Elements, and the few kinds of plots of the page. All text goes in as text, never as markup.

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(9).filter((child) => child !== null && child !== undefined));
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.flat());
  return node;
}

const HUES = ["var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)", "var(--c7)", "var(--q2)", "var(--q3)"];

// Round numbers between two values.
function ticks(low, high, count = 4) {
  const span = high - low || Math.abs(high) || 1;
  const raw = span / count, power = 10 ** Math.floor(Math.log10(raw));
  const unit = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= raw * 0.999);
  const found = [];
  for (let value = Math.ceil(low / unit - 1e-9) * unit; value <= high + unit * 1e-9; value += unit) {
    found.push(Math.abs(value) < unit * 1e-9 ? 0 : value);
  }
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const n of [1, 3]) {
      const value = n * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
    }
  }
  return found.length >= 2 ? found : ticks(low, high);
}

function path(points) {
  let text = "";
  points.forEach(([x, y], i) => { text += `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`; });
  return text;
}

// A frame with axes; returns scales, and where to draw.
// On a phone plots are narrower, so that their words stay as large.
const PLOT = globalThis.innerWidth < 700 ? 370 : 520;

function frame({ width = PLOT, height = 210, x, y, log = false, xLabel = "", left = 52, format = short }) {
  const right = 10, top = 10, bottom = 30;
  const w = width - left - right, h = height - top - bottom;
  const [y0, y1] = log ? y.map(Math.log10) : y;
  const px = (value) => left + (x[1] > x[0] ? ((value - x[0]) / (x[1] - x[0])) * w : w / 2);
  const py = (value) => top + h - ((log ? Math.log10(value) : value) - y0) / (y1 - y0 || 1) * h;
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "plot", role: "img" });
  const under = svg("g", { class: "axes" }), over = svg("g");
  for (const value of log ? logTicks(...y) : ticks(...y)) {
    under.append(
      svg("line", { x1: left, x2: left + w, y1: py(value), y2: py(value), class: "rule" }),
      svg("text", { x: left - 7, y: py(value) + 3.5, "text-anchor": "end" }, format(value)),
    );
  }
  const across = ticks(...x, Math.max(2, Math.floor(w / 90))).filter((value) => value >= x[0] && value <= x[1]);
  for (const value of across) under.append(svg("text", { x: px(value), y: top + h + 16, "text-anchor": "middle" }, short(value)));
  if (xLabel && xLabel !== "step") under.append(svg("text", { x: left + w, y: height - 2, "text-anchor": "end", class: "axis-label" }, xLabel));
  root.append(under, over);
  return { root, over, px, py, left, top, w, h, width, height };
}

// Curves with their errors, horizontal lines, and the values under the pointer.
//
// curves: [{label, points: [[x, y, error or null]], hue, dashed}]; lines: [[label, y]].
function curvePlot({ title, unit, curves, lines = [], log = false, xLabel = "step" }) {
  const every = curves.flatMap((curve) => curve.points).filter((p) => p[1] !== null);
  const holder = el("figure", { class: "chart" });
  const head = el("figcaption", {}, el("b", {}, title), unit ? el("span", { class: "quiet" }, ` ${unit}`) : null);
  holder.append(head);
  if (!every.length) return holder;
  const positive = every.filter((p) => p[1] > 0).map((p) => p[1]);
  const useLog = log && positive.length > 1 && positive.length === every.length && Math.max(...positive) > 20 * Math.min(...positive);
  let low = Infinity, high = -Infinity;
  for (const [, value, error] of every) {
    low = Math.min(low, value - (useLog ? 0 : error || 0));
    high = Math.max(high, value + (useLog ? 0 : error || 0));
  }
  for (const [, value] of lines) if (!useLog || value > 0) { low = Math.min(low, value); high = Math.max(high, value); }
  if (!useLog) {
    if (low > 0 && low < 0.4 * high) low = 0;
    const pad = (high - low || Math.abs(high) || 1) * 0.06;
    low = low === 0 ? 0 : low - pad; high += pad;
  } else { low /= 1.15; high *= 1.15; }
  const xs = every.map((p) => p[0]);
  const x = [Math.min(...xs), Math.max(...xs)];
  const f = frame({ x, y: [low, high], log: useLog, xLabel });
  f.root.setAttribute("aria-label", `${title}: ${curves.map((c) => { const p = c.points.filter((q) => q[1] !== null); return p.length ? `${c.label} from ${short(p[0][1])} to ${short(p[p.length - 1][1])}` : ""; }).join("; ")}`);
  for (const [label, value] of lines) {
    f.over.append(
      svg("line", { x1: f.left, x2: f.left + f.w, y1: f.py(value), y2: f.py(value), class: "mark" }),
      svg("text", { x: f.left + f.w - 2, y: f.py(value) - 4, "text-anchor": "end", class: "mark-label" }, `${label} ${short(value)}`),
    );
  }
  curves.forEach((curve, i) => {
    const hue = curve.hue || HUES[i % HUES.length];
    const there = curve.points.filter((p) => p[1] !== null);
    const withError = there.filter((p) => p[2]);
    if (withError.length && !useLog) {
      const band = [...withError.map(([a, v, e]) => [f.px(a), f.py(v + e)]), ...withError.slice().reverse().map(([a, v, e]) => [f.px(a), f.py(v - e)])];
      f.over.append(svg("path", { d: `${path(band)}Z`, fill: hue, opacity: 0.15 }));
      for (const [a, v, e] of withError.length < 40 ? withError : []) f.over.append(svg("line", { x1: f.px(a), x2: f.px(a), y1: f.py(v - e), y2: f.py(v + e), stroke: hue, "stroke-width": 1.2 }));
    }
    if (there.length > 120) {
      const window = Math.max(3, Math.round(there.length / 60));
      f.over.append(svg("path", { d: path(there.map((p) => [f.px(p[0]), f.py(p[1])])), stroke: hue, class: "curve faint" }));
      const smooth = there.map((p, k) => {
        const near = there.slice(Math.max(0, k - window), k + window + 1);
        return [f.px(p[0]), f.py(near.reduce((sum, q) => sum + q[1], 0) / near.length)];
      });
      f.over.append(svg("path", { d: path(smooth), stroke: hue, class: "curve", "stroke-dasharray": curve.dashed ? "5 4" : "none" }));
    } else {
      f.over.append(svg("path", { d: path(there.map((p) => [f.px(p[0]), f.py(p[1])])), stroke: hue, class: "curve", "stroke-dasharray": curve.dashed ? "5 4" : "none" }));
      if (there.length <= 30) for (const p of there) f.over.append(svg("circle", { cx: f.px(p[0]), cy: f.py(p[1]), r: 2.6, fill: hue }));
    }
  });
  if (curves.length > 1) head.append(legend(curves.map((c, i) => [c.label, c.hue || HUES[i % HUES.length]])));
  holder.append(f.root, readout(f, curves, x, xLabel));
  return holder;
}

// The values nearest to the pointer, in a line below the plot.
function readout(f, curves, x, xLabel) {
  const words = el("div", { class: "readout", "aria-hidden": "true" }, "\u00a0");
  const hair = svg("line", { y1: f.top, y2: f.top + f.h, class: "hair", visibility: "hidden" });
  f.root.append(hair);
  f.root.addEventListener("pointermove", (event) => {
    const box = f.root.getBoundingClientRect();
    const at = x[0] + (((event.clientX - box.left) / box.width) * f.width - f.left) / f.w * (x[1] - x[0]);
    const near = curves.map((curve) => {
      const there = curve.points.filter((p) => p[1] !== null);
      return there.length ? there.reduce((best, p) => (Math.abs(p[0] - at) < Math.abs(best[0] - at) ? p : best)) : null;
    });
    const first = near.find((p) => p);
    if (!first) return;
    hair.setAttribute("x1", f.px(first[0])); hair.setAttribute("x2", f.px(first[0])); hair.setAttribute("visibility", "visible");
    words.textContent = `${xLabel} ${short(first[0], 6)}: ${curves.map((c, i) => (near[i] ? `${curves.length > 1 ? `${c.label} ` : ""}${short(near[i][1], 4)}${near[i][2] ? ` ± ${short(near[i][2], 2)}` : ""}` : "")).filter(Boolean).join(",  ")}`;
  });
  f.root.addEventListener("pointerleave", () => { hair.setAttribute("visibility", "hidden"); words.textContent = "\u00a0"; });
  return words;
}

function legend(entries) {
  return el("span", { class: "legend" }, entries.map(([label, hue]) => el("span", {}, el("i", { style: `background:${hue}` }), label)));
}

// Areas on top of each other.
function stackPlot({ title, unit, curves, xLabel = "step" }) {
  const holder = el("figure", { class: "chart" }, el("figcaption", {}, el("b", {}, title), unit ? el("span", { class: "quiet" }, ` ${unit}`) : null, legend(curves.map((c, i) => [c.label, HUES[i % HUES.length]]))));
  const xs = curves[0].points.map((p) => p[0]);
  const sums = xs.map(() => 0);
  const layers = curves.map((curve) => curve.points.map((p, i) => { const from = sums[i]; sums[i] += p[1] || 0; return [p[0], from, sums[i]]; }));
  const sorted = sums.slice().sort((a, b) => a - b);
  // A few long steps would flatten all others.
  const top = Math.min(sorted[sorted.length - 1], 2.5 * sorted[Math.floor(sorted.length * 0.9)]) * 1.05 || 1;
  const x = [xs[0], xs[xs.length - 1]];
  const f = frame({ x, y: [0, top], xLabel });
  layers.forEach((layer, i) => {
    const clip = (value) => f.py(Math.min(value, top));
    const outline = [...layer.map(([a, , to]) => [f.px(a), clip(to)]), ...layer.slice().reverse().map(([a, from]) => [f.px(a), clip(from)])];
    f.over.append(svg("path", { d: `${path(outline)}Z`, fill: HUES[i % HUES.length], opacity: 0.75 }));
  });
  f.root.setAttribute("aria-label", `${title}, stacked`);
  holder.append(f.root, readout(f, curves, x, xLabel));
  return holder;
}

// Bars side by side with a label each: values in [0, most].
function bars(rows, { most, hue = "var(--c0)", format = short }) {
  return el("div", { class: "bars" }, rows.map(([label, value, note]) => [
    el("span", { class: "bar-label" }, label),
    el("span", { class: "bar" }, el("i", { style: `width:${most ? (100 * value) / most : 0}%;background:${hue}` })),
    el("span", { class: "bar-value quiet" }, note === undefined ? format(value) : note),
  ]));
}

// What a token looks like: nothing of it is invisible, and nothing turns the text around.
function visible(text) {
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, (c) => String.fromCharCode(c === "\u007f" ? 0x2421 : 0x2400 + c.charCodeAt(0)))
    .replace(/[\u0080-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g, (c) => `⟨${c.charCodeAt(0).toString(16)}⟩`);
}

// A token by itself, its white space too.
const shownToken = (text) => visible(text).replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "(nothing)";
