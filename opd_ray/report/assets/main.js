// The page: what there is to show, section by section.

const data = JSON.parse(document.getElementById("data").textContent);
const root = document.getElementById("page");

// Light or dark: as the system has it, until somebody chooses.
const THEMES = ["auto", "light", "dark"];
function themeButton() {
  const button = el("button", { type: "button", class: "theme", title: "light, dark, or as the system has it" });
  let theme = 0;
  const apply = () => {
    document.documentElement.dataset.theme = THEMES[theme];
    button.textContent = ["◐ auto", "○ light", "● dark"][theme];
    if (view) view.repaint();
  };
  button.addEventListener("click", () => { theme = (theme + 1) % 3; apply(); });
  document.documentElement.dataset.theme = "auto";
  button.textContent = "◐ auto";
  return button;
}

let view = null;
let sections;
if (data.kind === "compare") {
  sections = comparison(data);
} else {
  const rows = data.rows;
  sections = [
    ["Overview", "overview", [alarmList(data.alarms), factGrid(data.facts), heldOutTable(data.held_out, data.head.taken), chartGrid(data.charts, rows, "held-out")]],
    ["Tokens", "tokens", data.rollouts.length ? [(view = new TokenView(data)).root] : [el("p", { class: "quiet" }, "No rollout was kept from close by (report.close_ups, report.rollouts).")]],
    ["Choice", "choice", choiceSection(data)],
    ["Training", "training", [groupTables(data.groups, "training"), chartGrid(data.charts, rows, "training")]],
    ["Time", "time", timeSection(data)],
    ["Answers", "answers", data.answers.length ? answersSection(data.answers).flat(9) : [el("p", { class: "quiet" }, "No answers were kept (report.problems, eval.tasks).")]],
    ["Set-up", "setup", setup(data)],
  ];
}
root.append(
  el("nav", { "aria-label": "sections" }, el("b", {}, "opd-ray"), sections.map(([title, id]) => el("a", { href: `#${id}` }, title)), themeButton()),
  data.kind === "compare" ? el("header", { class: "head" }, el("h1", {}, data.title)) : header(data.head),
  el("main", {}, sections.map(([title, id, parts]) => el("section", { id }, el("h2", {}, title), parts.flat(9).filter(Boolean)))),
  el("footer", { class: "quiet" }, `Written ${data.kind === "compare" ? data.made : data.head.made} by opd-ray. This page is one file and loads nothing.`,
    data.left_out && data.left_out.length ? ` Left out: ${data.left_out.join("; ")}.` : ""),
);
// For tests, and for whoever wants to look.
globalThis.opdRay = { data, view, choose };
addEventListener("beforeprint", () => { if (view) view.fillAll(); });
addEventListener("resize", () => { if (view) view.repaint(); });
