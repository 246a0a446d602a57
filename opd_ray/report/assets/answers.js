// The same held-out prompts, answered before and after.

function answersSection(answers) {
  return answers.map((task) => {
    const after = new Map(task.after.problems.map((one) => [one.id, one]));
    const pairs = task.before.problems.map((before) => [before, after.get(before.id)]).filter(([, found]) => found);
    const solved = (i) => pairs.filter((pair) => pair[i].correct).length;
    return [
      el("h3", {}, `${task.task}, ${task.mode}`),
      el("p", { class: "quiet" }, `The first ${pairs.length} problems: ${solved(0)} solved before (step ${task.before.step}), ${solved(1)} after (step ${task.after.step}).`),
      pairs.map(([before, found]) => el("article", { class: "problem" },
        el("div", { class: "asked" }, el("pre", {}, visible(before.prompt)), el("p", {}, el("span", { class: "quiet" }, "gold answer "), el("b", {}, visible(before.gold)))),
        answer("before", before), answer("after", found))),
    ];
  });
}

function answer(label, one) {
  return el("div", { class: `answer ${one.correct ? "right" : "wrong"}` },
    el("p", { class: "verdict" }, el("b", {}, `${one.correct ? "✓" : "✗"} ${label}`), el("span", { class: "quiet" }, ` ${one.tokens} tokens${one.finish_reason === "stop" ? "" : `, ended by ${one.finish_reason}`}, answer read: ${one.extracted === null ? "none" : visible(one.extracted)}`)),
    one.messages.length ? one.messages.map(([role, text]) => el("div", { class: `message ${role === "assistant" ? "" : "others"}` }, el("span", { class: "role" }, role), el("pre", {}, visible(text)))) : el("pre", {}, visible(one.response)));
}
