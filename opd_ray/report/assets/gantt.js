// Who had work when within a step: a lane an actor, idle time shaded, the tail marked.

const ROLES = { rollouts: ["writing rollouts", "var(--c0)"], teacher: ["teacher", "var(--c1)"], training: ["training", "var(--c2)"], coordinator: ["filter and weights", "var(--c3)"] };

function gantt(step) {
  const lanes = step.lanes, row = 26, left = 110, right = 80, top = 30, width = 1040;
  const height = top + lanes.length * row + 26, w = width - left - right;
  const px = (seconds) => left + (seconds / step.seconds) * w;
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "plot gantt", role: "img" });
  root.append(svg("defs", {}, svg("pattern", { id: `idle${step.step}`, width: 7, height: 7, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, svg("line", { x1: 0, y1: 0, x2: 0, y2: 7, class: "hatch" }))));
  const written = step.written, last = written[written.length - 1];
  if (written.length > 1) {
    const tenth = written[Math.ceil(0.9 * written.length) - 1], half = written[Math.ceil(0.5 * written.length) - 1];
    const begin = Math.max(0, tenth), end = Math.max(0, last);
    if (end > begin) root.append(svg("rect", { x: px(begin), width: Math.max(1, px(end) - px(begin)), y: top - 4, height: lanes.length * row + 4, class: "tail" }));
    if (end > 0) root.append(svg("text", { x: Math.min(px(begin), width - 260), y: 14, class: "mark-label" }, `tail: ${short(last - half)} s from half of the rollouts to the last, ${short(last - tenth)} s from nine tenths`));
  }
  lanes.forEach(([name, role], i) => {
    const y = top + i * row, spans = step.spans.filter((span) => span[0] === name);
    const busy = spans.reduce((sum, span) => sum + span[2] - span[1], 0);
    root.append(
      svg("text", { x: left - 8, y: y + 14, "text-anchor": "end" }, name),
      svg("rect", { x: left, y: y + 3, width: w, height: row - 8, fill: `url(#idle${step.step})`, class: "idle" }),
      svg("text", { x: width - right + 8, y: y + 14, class: "quiet-text" }, `${percent(1 - busy / step.seconds)} idle`),
    );
    for (const [, begin, end] of spans) {
      root.append(svg("rect", { x: px(begin), y: y + 3, width: Math.max(0.8, px(end) - px(begin)), height: row - 8, rx: 2, fill: ROLES[role][1] }, svg("title", {}, `${name}: ${short(begin)} to ${short(end)} s (${short(end - begin)} s)`)));
    }
    if (role === "rollouts" && i === 0) for (const at of written) if (at >= 0 && at <= step.seconds) root.append(svg("line", { x1: px(at), x2: px(at), y1: y, y2: y + 4, class: "tick" }));
  });
  for (const value of ticks(0, step.seconds, 8)) if (value <= step.seconds) root.append(svg("text", { x: px(value), y: height - 8, "text-anchor": "middle" }, `${short(value)} s`));
  root.setAttribute("aria-label", `who worked when in step ${step.step}`);
  const used = [...new Set(lanes.map(([, role]) => role))];
  return el("figure", { class: "chart full" }, el("figcaption", {}, el("b", {}, `step ${step.step}`), el("span", { class: "quiet" }, ` ${short(step.seconds)} s, ${step.rollouts} rollouts; hatched: idle; small marks: a rollout was written`), legend(used.map((role) => ROLES[role]))), el("div", { class: "scroll" }, root));
}

function timeSection(data) {
  const holder = el("div", {});
  const parts = [];
  if (data.steps.length) {
    const show = (i) => holder.replaceChildren(gantt(data.steps[i]));
    parts.push(stepPicker(data.steps, show), holder);
    show(data.steps.length - 1);
  }
  return [...parts, groupTables(data.groups, "time"), el("div", { class: "below" }, chartGrid(data.charts, data.rows, "time"))];
}
