// Header, alarms, figures of the run as a whole, held-out table, set-up.

const STATES = { finished: "finished", running: "running", stopped: "stopped", failed: "failed", unknown: "ended without a word" };

function header(head) {
  return el("header", { class: "head" },
    el("div", { class: "title" }, el("h1", {}, head.name), el("span", { class: `state ${head.state}` }, STATES[head.state])),
    el("p", { class: "quiet" }, `${head.taken} of ${head.steps} steps${head.state === "finished" ? "" : `: ${head.ended}`}`),
    el("p", { class: "quiet small" }, [
      `opd-ray ${head.opd_ray}`, ...Object.entries(head.packages).map(([name, version]) => `${name} ${version}`),
      head.nodes.length ? `${head.nodes.length} machine${head.nodes.length > 1 ? "s" : ""}: ${short(head.nodes.reduce((sum, node) => sum + node.cpus, 0))} CPUs, ${head.nodes.reduce((sum, node) => sum + node.gpus, 0) || "no"} GPUs` : null,
    ].filter(Boolean).join(" · "), " · ", el("a", { href: "#setup" }, `${head.keys.length} keys differ from their defaults`)),
    el("dl", { class: "about" }, head.about.map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, shortPath(value))))),
  );
}

// The end of a path tells more than its beginning.
const shortPath = (value) => {
  const text = String(value), parts = text.split("/");
  return text.length > 24 && parts.length > 2 ? `…/${parts.slice(-2).join("/")}` : text;
};

function alarmList(alarms) {
  if (!alarms.length) return el("p", { class: "fine" }, "No alarms: figures lie where they should.");
  const words = { bad: "look at this first", warn: "worth a look", note: "to know" };
  return el("ul", { class: "alarms" }, alarms.map((alarm) => el("li", { class: alarm.level },
    el("b", {}, alarm.title), el("span", { class: "level" }, words[alarm.level]),
    el("p", {}, alarm.found), el("p", { class: "remedy" }, alarm.remedy))));
}

function factGrid(facts) {
  const written = ([, value, unit]) => (unit === "share" ? percent(value, 1) : unit === "duration" ? duration(value) : short(value));
  return el("dl", { class: "facts" }, facts.map((fact) => el("div", {},
    el("dt", {}, fact[0]), el("dd", {}, written(fact), ["share", "duration"].includes(fact[2]) ? null : el("small", {}, ` ${fact[2]}`)))));
}

// A figure with the interval in which it lies in 95 of 100 cases.
const estimate = ([value, error]) => (value === null ? "" : error ? [short(value, 4), el("small", { class: "quiet" }, ` ± ${short(1.96 * error, 2)}`)] : short(value, 4));

function heldOutTable(rows, taken) {
  if (!rows.length) return null;
  const teacher = rows.some((row) => row.teacher[0] !== null);
  const minor = (name) => /tokens|truncated|sync_gap/.test(name);
  const line = (row) => el("tr", { class: minor(row.name) ? "quiet" : "" }, el("th", { scope: "row" }, row.name.replace("eval/", "")),
    el("td", {}, estimate(row.before)), el("td", {}, estimate(row.after)), teacher ? el("td", {}, estimate(row.teacher)) : null);
  return el("div", { class: "scroll" }, el("table", { class: "figures" },
    el("thead", {}, el("tr", {}, el("th", {}, "held-out"), el("th", {}, "before"), el("th", {}, `after ${taken} steps`), teacher ? el("th", {}, "teacher") : null)),
    el("tbody", {}, rows.filter((row) => !minor(row.name)).map(line), rows.filter((row) => minor(row.name)).map(line))));
}

// One row a source of prompts, or a teacher: figures of the run, some with what they were at first.
function groupTables(groups, section) {
  const written = (value, unit) => (value === null ? "—" : unit === "share" ? percent(value, 1) : short(value));
  return groups.filter((group) => group.section === section).map((group) => el("div", { class: "scroll" }, el("table", { class: "figures" },
    el("thead", {}, el("tr", {}, el("th", {}, group.title), group.columns.map(([label, unit]) => el("th", {}, unit && unit !== "share" ? `${label}, ${unit}` : label)))),
    el("tbody", {}, group.rows.map(([name, ...cells]) => el("tr", {}, el("th", { scope: "row" }, name || "(no name)"),
      cells.map(([before, after], i) => el("td", {}, before === null ? null : el("small", { class: "quiet" }, `${written(before, group.columns[i][1])} → `), written(after, group.columns[i][1])))))))));
}

function setup(data) {
  const head = data.head;
  const value = (v) => (v === null || v === undefined ? "null" : v === "???" ? "none" : typeof v === "object" ? JSON.stringify(v) : String(v));
  return [
    el("h3", {}, "Keys that differ from their defaults"),
    el("div", { class: "scroll" }, el("table", { class: "keys" },
      el("thead", {}, el("tr", {}, el("th", {}, "key"), el("th", {}, "here"), el("th", {}, "default"))),
      el("tbody", {}, head.keys.map(([key, here, before]) => el("tr", {}, el("th", { scope: "row" }, key), el("td", {}, value(here)), el("td", { class: "quiet" }, value(before))))))),
    el("h3", {}, "Machines and versions"),
    el("p", {}, head.nodes.length ? head.nodes.map((node) => `${node.name}: ${short(node.cpus)} CPUs, ${gigabytes(node.memory_bytes)}, ${node.gpus ? `${node.gpus} GPUs` : "no GPU"}`).join("; ") : "Machines are not recorded."),
    el("p", {}, `opd-ray ${head.opd_ray}, Python ${head.python}, ${Object.entries(head.packages).map(([name, version]) => `${name} ${version}`).join(", ")}`),
    el("p", { class: "quiet" }, head.platform),
    el("h3", {}, "Parts of the run"),
    el("ul", { class: "parts" }, head.parts.map((part) => el("li", {}, `from step ${part.from_step}, begun ${part.started}`, part.changed && part.changed.length ? `: ${part.changed.join("; ")}` : ""))),
    data.left_out.length ? [el("h3", {}, "Left out of this page"), el("ul", {}, data.left_out.map((text) => el("li", {}, text)))] : null,
  ];
}

const seriesOf = (rows, name, error) => rows.step.map((step, i) => [step, rows[name] ? rows[name][i] : null, error && rows[error] ? rows[error][i] : null]);

function chartGrid(charts, rows, group) {
  return el("div", { class: "charts" }, charts.filter((chart) => chart.group === group).map((chart) => {
    const there = rows.step.map((_, i) => chart.curves.some((curve) => rows[curve.name] && rows[curve.name][i] !== null));
    const curves = chart.curves.map((curve) => ({ label: curve.label, points: seriesOf(rows, curve.name, curve.error).filter((_, i) => there[i]) }));
    if (!curves[0].points.length) return null;
    return (chart.stacked ? stackPlot : curvePlot)({ ...chart, curves });
  }));
}
