// What the filter chose: quadrants, their shares over the steps, tokens, positions and turns.

const QUADRANTS = [
  ["Q1", "unsure, and apart from the teacher", "var(--q1)"],
  ["Q2", "unsure, close to the teacher", "var(--q2)"],
  ["Q3", "confident and wrong", "var(--q3)"],
  ["Q4", "confident, close to the teacher", "var(--q4)"],
];

// Normalised entropy against divergence, the cuts as lines; what is kept is filled.
function quadrantPlot(step) {
  const points = step.scatter;
  const h = unpacked(points.h, "<f4"), d = unpacked(points.divergence, "<f4");
  const quadrant = unpacked(points.quadrant, "<u1"), kept = unpacked(points.kept, "<u1");
  // Most tokens lie near 0 on both axes: the square root spreads them.
  const root = Math.sqrt;
  const f = frame({ height: PLOT * 0.73, x: [0, 1], y: [0, 1], xLabel: "entropy, normalised (square root)", format: (v) => short(v * v) });
  f.root.querySelectorAll(".axes text:not(.axis-label)").forEach((text) => { if (text.getAttribute("text-anchor") === "middle") text.textContent = short(Number(text.textContent) ** 2); });
  const marks = [[], [], [], []].map(() => ({ kept: "", dropped: "" }));
  for (let i = 0; i < h.length; i++) {
    const x = f.px(root(h[i])).toFixed(1), y = f.py(root(d[i])).toFixed(1);
    marks[quadrant[i]][kept[i] ? "kept" : "dropped"] += `M${x} ${y}h.01`;
  }
  marks.forEach((mark, q) => {
    if (mark.dropped) f.over.append(svg("path", { d: mark.dropped, stroke: QUADRANTS[q][2], class: "dots dropped" }));
    if (mark.kept) f.over.append(svg("path", { d: mark.kept, stroke: QUADRANTS[q][2], class: "dots" }));
  });
  const [hCut, dCut] = step.cuts.map(root);
  f.over.append(
    svg("line", { x1: f.px(hCut), x2: f.px(hCut), y1: f.top, y2: f.top + f.h, class: "mark" }),
    svg("line", { x1: f.left, x2: f.left + f.w, y1: f.py(dCut), y2: f.py(dCut), class: "mark" }),
  );
  const share = [0, 0, 0, 0], keptOf = [0, 0, 0, 0];
  quadrant.forEach((q, i) => { share[q]++; keptOf[q] += kept[i]; });
  [["Q2", 1, f.left + f.w - 4, f.top + f.h - 6, "end"], ["Q1", 0, f.left + f.w - 4, f.top + 14, "end"], ["Q3", 2, f.left + 6, f.top + 14, "start"], ["Q4", 3, f.left + 6, f.top + f.h - 6, "start"]].forEach(([name, q, x, y, anchor]) => {
    f.over.append(svg("text", { x, y, "text-anchor": anchor, class: "quadrant-label", style: `fill:${QUADRANTS[q][2]}` }, name));
  });
  f.root.setAttribute("aria-label", `quadrants of step ${step.step}`);
  const rows = QUADRANTS.map(([name, words, hue], q) => el("tr", {}, el("td", {}, el("i", { class: "dot", style: `background:${hue}` }), el("b", {}, ` ${name} `), words),
    el("td", {}, percent(share[q] / h.length)), el("td", {}, share[q] ? percent(keptOf[q] / share[q]) : "")));
  return el("figure", { class: "chart wide" }, el("figcaption", {}, el("b", {}, `tokens of step ${step.step}`), el("span", { class: "quiet" }, ` ${h.length.toLocaleString("en-US")} of ${step.tokens.toLocaleString("en-US")}; divergence (up) and entropy, normalised; lines are the cuts; filled: kept`)),
    f.root, el("div", { class: "scroll" }, el("table", { class: "figures" }, el("thead", {}, el("tr", {}, el("th", {}, "quadrant"), el("th", {}, "share"), el("th", {}, "kept of it"))), el("tbody", {}, rows))));
}

function quadrantCurves(rows) {
  const shown = (figure, title) => {
    const curves = QUADRANTS.map(([name, , hue], q) => ({ label: name, hue, dashed: q > 1, points: seriesOf(rows, `tip/${name}/${figure}`).filter((p) => p[1] !== null) })).filter((c) => c.points.length);
    return curves.length ? curvePlot({ title, unit: "", curves }) : null;
  };
  return [shown("share", "share of the tokens, by quadrant"), shown("kept_share", "share of a quadrant that is kept")];
}

function oftenList(title, rows, word) {
  if (!rows.length) return null;
  const most = Math.max(...rows.map((row) => row[2]));
  return el("figure", { class: "chart" }, el("figcaption", {}, el("b", {}, title)),
    el("div", { class: "often" }, rows.map(([text, count, written]) => [
      el("code", { class: "token" }, shownToken(text)),
      el("span", { class: "bar two" }, el("i", { style: `width:${(100 * written) / most}%`, class: "back" }), el("i", { style: `width:${(100 * count) / most}%` })),
      el("span", { class: "quiet bar-value" }, `${count.toLocaleString("en-US")} ${word} of ${written.toLocaleString("en-US")}`),
    ])));
}

// Divergence and kept share by position, or by turn.
function byGroup(title, xLabel, groups, middle) {
  if (!groups.tokens || groups.tokens.length < 2) return null;
  const there = groups.tokens.map((count, i) => [i, count]).filter(([, count]) => count);
  const points = (name) => there.map(([i]) => [middle(i), groups[name][i], null]);
  const curves = [];
  if (groups.divergence) curves.push({ label: "divergence, nats", points: points("divergence"), hue: "var(--c1)" });
  if (groups.entropy) curves.push({ label: "entropy, nats", points: points("entropy"), hue: "var(--c0)" });
  curves.push({ label: "kept share", points: points("kept"), hue: "var(--c2)", dashed: true });
  return curvePlot({ title, unit: "means", curves, xLabel });
}

function choiceSection(data) {
  const steps = data.steps;
  const picked = el("div", {});
  const show = (i) => {
    const step = steps[i];
    const width = step.by_position.width ? step.by_position.width[0] : 1;
    picked.replaceChildren(
      el("div", { class: "charts" },
        step.cuts ? quadrantPlot(step) : null,
        el("div", { class: "column" },
          byGroup("by position in the response", "token", step.by_position, (k) => (k + 0.5) * width),
          byGroup("by turn", "turn", step.by_turn, (k) => k + 1))),
      el("div", { class: "charts" },
        oftenList("most often kept", step.often_kept, "kept"),
        oftenList("most often left out", step.often_dropped, "left out")));
  };
  const parts = [el("div", { class: "charts" }, quadrantCurves(data.rows).filter(Boolean)), chartGrid(data.charts, data.rows, "choice")];
  if (steps.length) {
    parts.push(stepPicker(steps, show), picked);
    show(steps.length - 1);
  }
  return parts;
}

// Buttons of steps that are shown from close by.
function stepPicker(steps, show, chosen = steps.length - 1) {
  const group = el("div", { class: "steps", role: "group", "aria-label": "step" }, el("span", { class: "quiet" }, "step"));
  const buttons = steps.map((step, i) => el("button", { type: "button", "aria-pressed": String(i === chosen), onclick: () => {
    buttons.forEach((button, k) => button.setAttribute("aria-pressed", String(k === i)));
    show(i);
  } }, String(step.step)));
  group.append(...buttons);
  return group;
}
