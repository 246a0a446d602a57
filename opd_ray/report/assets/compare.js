// Several runs: curves over steps, tokens trained on and wall time; final figures; keys that differ.

const AXES = { step: "step", kept: "tokens trained on", seconds: "seconds of wall time" };

function comparison(data) {
  const runs = data.runs;
  const hue = (i) => HUES[i % HUES.length];
  const charts = el("div", { class: "charts" });
  const draw = (axis) => charts.replaceChildren(...data.charts.map((chart) => {
    const curves = runs.map((run, i) => ({ label: run.name, hue: hue(i), points: run.rows.step.map((_, k) => [run.rows[axis][k], run.rows[chart.name] ? run.rows[chart.name][k] : null, chart.error && run.rows[chart.error] ? run.rows[chart.error][k] : null]).filter((p) => p[1] !== null) })).filter((curve) => curve.points.length);
    return curves.length ? curvePlot({ title: chart.title, unit: chart.unit, log: chart.log, curves, lines: chart.lines, xLabel: AXES[axis] }) : null;
  }).filter(Boolean));
  const buttons = Object.entries(AXES).map(([axis, label]) => el("button", { type: "button", "aria-pressed": String(axis === "step"), onclick: (event) => {
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button === event.target)));
    draw(axis);
  } }, label));
  draw("step");
  const value = (v) => (v === null || v === undefined ? "—" : typeof v === "object" ? JSON.stringify(v) : String(v));
  const names = runs.map((run, i) => el("th", {}, el("i", { class: "dot", style: `background:${hue(i)}` }), ` ${run.name}`));
  return [
    ["Runs", "runs", [el("div", { class: "scroll" }, el("table", { class: "figures" }, el("thead", {}, el("tr", {}, el("th", {}, ""), names.map((n) => n.cloneNode(true)))), el("tbody", {},
      el("tr", {}, el("th", { scope: "row" }, "how it ended"), runs.map((run) => el("td", {}, el("span", { class: `state ${run.state}` }, STATES[run.state])))),
      el("tr", {}, el("th", { scope: "row" }, "steps"), runs.map((run) => el("td", {}, `${run.taken} of ${run.steps}`))),
      el("tr", {}, el("th", { scope: "row" }, "alarms"), runs.map((run) => el("td", {}, run.alarms.length ? el("ul", { class: "plain" }, run.alarms.map((alarm) => el("li", { class: alarm.level }, alarm.title))) : "none"))))))]],
    ["Final figures", "figures", [el("p", { class: "quiet" }, `± is the interval in which the figure lies in 95 of 100 cases, ${data.spread}; where two of them overlap, the difference may be chance.`),
      el("div", { class: "scroll" }, el("table", { class: "figures" }, el("thead", {}, el("tr", {}, el("th", {}, ""), names.map((n) => n.cloneNode(true)))), el("tbody", {}, data.figures.map((row) => el("tr", {}, el("th", { scope: "row" }, row.name.replace("eval/", "")), row.values.map((v) => el("td", {}, estimate(v)))))))) ]],
    ["Curves", "curves", [el("div", { class: "steps", role: "group", "aria-label": "over" }, el("span", { class: "quiet" }, "over"), buttons), charts]],
    ["Keys that differ", "keys", [data.keys.length ? el("div", { class: "scroll" }, el("table", { class: "keys" }, el("thead", {}, el("tr", {}, el("th", {}, "key"), names)), el("tbody", {}, data.keys.map(([key, ...values]) => el("tr", {}, el("th", { scope: "row" }, key), values.map((v) => el("td", {}, value(v)))))))) : el("p", {}, "None: the runs have the same configuration.")]],
  ];
}
