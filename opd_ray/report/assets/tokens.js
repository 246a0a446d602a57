// The token view: rollouts token by token, coloured, chosen anew by rule and share while one looks.

const BLOCK = 240; // tokens of a stretch that is drawn as one
const LEVELS = 12; // of a colour

// A rollout of the record with its arrays unpacked when they are needed.
class Rollout {
  constructor(record, step, vocabulary, tokenIds) {
    this.record = record; this.step = step; this.vocabulary = vocabulary; this.tokenIds = tokenIds;
    this.mask = unpacked(record.mask, "<u1");
    this.size = this.mask.length;
    this.row = new Int32Array(this.size); // of each token among the student's
    let rows = 0;
    for (let i = 0; i < this.size; i++) this.row[i] = this.mask[i] ? rows++ : -1;
    this.rows = rows;
    this.weights = unpacked(record.weights, "<f4");
    this.quadrants = record.quadrants ? unpacked(record.quadrants, "<u1") : null;
    this.turns = record.turns ? unpacked(record.turns, "<i2") : new Int16Array(this.size);
    this.whole = record.tokens_shown === record.tokens;
    this.own = Uint8Array.from(this.weights, (weight) => (weight > 0 ? 1 : 0));
    this.kept = this.own;
    this.cache = {};
  }

  get ids() { return this.cache.ids || (this.cache.ids = unpacked(this.record.ids[1], this.record.ids[0])); }

  text(i) { return this.vocabulary[this.ids[i]]; }

  column(name) {
    if (!(name in this.cache)) this.cache[name] = this.record.columns[name] ? unpacked(this.record.columns[name], "<f4") : null;
    return this.cache[name];
  }

  // What rules read, by name.
  get columns() {
    if (this.cache.columns) return this.cache.columns;
    const positions = new Int32Array(this.rows), turns = new Int16Array(this.rows);
    for (let i = 0; i < this.size; i++) if (this.mask[i]) { positions[this.row[i]] = i; turns[this.row[i]] = this.turns[i]; }
    const found = { count: this.rows, positions, turns };
    for (const name of Object.keys(this.record.columns)) found[name] = this.column(name);
    if (found.entropy) found.h = entropyShare(found.entropy, this.step.vocab_size);
    found.divergence = this.column(this.step.tip.divergence);
    return (this.cache.columns = found);
  }

  settings(rho) {
    const tip = this.step.tip;
    return { rho, share_of: tip.share_of, alpha: tip.alpha, gamma: tip.gamma, keeps: this.step.keeps, seed: this.record.seed, first: this.record.first, edges: this.step.unpackedEdges };
  }

  // The log-probability of the student's token `row`, as this one has it; null where nobody knows.
  chance(whose, row) {
    const packed = this.record.chances[whose], key = `chance ${whose}`;
    if (!packed) return null;
    if (!this.cache[key]) this.cache[key] = unpacked(packed, "<f2");
    return this.cache[key][row];
  }

  likeliest(whose, row) {
    const found = this.record.likeliest[whose];
    if (!found) return [];
    const key = `likeliest ${whose}`;
    if (!this.cache[key]) this.cache[key] = [unpacked(found[1], found[0]), unpacked(found[2], "<f2"), found[0] === "<u2" ? 0xffff : 0xffffffff];
    const [ids, logprobs, none] = this.cache[key], count = ids.length / this.rows, list = [];
    for (let k = row * count; k < (row + 1) * count; k++) if (ids[k] !== none) list.push([ids[k], Math.exp(logprobs[k])]);
    return list;
  }

  isWrong(i) { return this.row[i] >= 0 && this.quadrants !== null && this.quadrants[this.row[i]] === 2; }
}

// A step with where shares of its batch end, by rule.
function withEdges(step) {
  const edges = Object.entries(step.edges).map(([name, [least, last]]) => [name, [unpacked(least, "<f4"), unpacked(last, "<i4")]]);
  return { ...step, unpackedEdges: Object.fromEntries(edges) };
}

class TokenView {
  constructor(data) {
    this.steps = data.steps.map(withEdges);
    this.rollouts = data.rollouts.map((record) => new Rollout(record, this.steps.find((step) => step.step === record.step), data.vocabulary, data.token_ids));
    this.steps = this.steps.filter((step) => this.rollouts.some((one) => one.step === step));
    this.colour = "choice"; this.wrongOnly = false; this.cursor = null;
    this.observer = new IntersectionObserver((entries) => entries.forEach((entry) => (entry.isIntersecting ? this.fill(entry.target) : this.empty(entry.target))), { rootMargin: "900px 0px" });
    this.root = this.build();
    this.showStep(this.steps.length - 1);
  }

  build() {
    const self = this;
    this.rule = el("select", { id: "rule", onchange: () => self.reselect() });
    this.rho = el("input", { id: "rho", type: "range", min: 0, max: 100, step: 1, oninput: () => self.reselect() });
    this.rhoWords = el("output", { for: "rho", id: "rho-words" });
    this.place = el("span", { class: "quiet small" });
    this.told = el("p", { class: "told quiet", id: "told", "aria-live": "polite" });
    const colours = [["choice", "choice"], ["entropy", "entropy"], ["divergence", "divergence"], ["score", "score"]];
    this.colourButtons = colours.map(([name, label]) => el("button", { type: "button", "data-colour": name, "aria-pressed": String(name === this.colour), onclick: () => self.setColour(name) }, label));
    this.scale = el("span", { class: "scale" });
    this.picker = el("div", {});
    const wrong = el("input", { type: "checkbox", id: "wrong", onchange: (event) => { self.wrongOnly = event.target.checked; self.paper.classList.toggle("wrong-only", self.wrongOnly); } });
    const controls = el("div", { class: "controls" },
      el("div", { class: "line" }, this.picker),
      el("div", { class: "line" },
        el("span", { class: "group", role: "group", "aria-label": "colour by" }, el("span", { class: "quiet" }, "colour"), this.colourButtons), this.scale),
      el("div", { class: "line" },
        el("label", {}, el("span", { class: "quiet" }, "rule "), this.rule),
        el("label", { class: "slider" }, el("span", { class: "quiet" }, "rho "), this.rho, this.rhoWords),
        el("button", { type: "button", id: "as-run", onclick: () => self.asRun() }, "as the run chose"),
        el("label", {}, wrong, " only confident and wrong"),
        el("span", { class: "group" }, el("button", { type: "button", onclick: () => self.goWrong(-1), title: "previous one (key p)", "aria-label": "previous confident and wrong token" }, "‹"), el("button", { type: "button", onclick: () => self.goWrong(1), title: "next one, the worst first (key n)", "aria-label": "next confident and wrong token" }, "›"), this.place)),
      this.told);
    this.paper = el("div", { class: "paper", tabindex: 0, role: "application", "aria-label": "tokens; arrow keys go from token to token, n and p to the next and previous one that is confident and wrong, [ and ] change rho" });
    this.paper.addEventListener("pointerover", (event) => this.look(event.target));
    this.paper.addEventListener("click", (event) => this.look(event.target, true));
    this.paper.addEventListener("keydown", (event) => this.key(event));
    this.card = el("aside", { class: "card", id: "card", "aria-live": "polite" }, el("p", { class: "quiet" }, "Point at a token, or press → in the text."));
    return el("div", { class: "tokens" }, controls, el("div", { class: "two" }, this.paper, this.card));
  }

  showStep(i) {
    this.step = this.steps[i];
    this.picker.replaceChildren(stepPicker(this.steps, (k) => this.showStep(k), i));
    this.shown = this.rollouts.filter((one) => one.step === this.step);
    const tip = this.step.tip, has = this.shown[0].columns;
    const edges = this.step.unpackedEdges;
    const known = Object.keys(RULES).filter((name) => RULES[name].needs.every((need) => has[need]) && (tip.share_of !== "batch" || RULES[name].keeps === "all" || edges[name]));
    if (!known.includes(tip.rule) && tip.share_of !== "batch") known.unshift(tip.rule);
    this.rule.replaceChildren(...known.map((name) => el("option", { value: name }, name === tip.rule ? `${name} (the run's)` : name)));
    this.asRun(false);
    this.measure();
    this.blocks = new Map();
    this.observer.disconnect();
    this.paper.replaceChildren(...this.shown.map((one, k) => this.article(one, k)));
    this.cursor = null;
    this.worstOf = null;
    this.place.textContent = "";
  }

  asRun(paint = true) {
    const tip = this.step.tip;
    this.rule.value = tip.rule;
    this.rho.value = Math.round(100 * tip.rho);
    for (const one of this.shown) one.kept = one.own;
    this.live = false;
    this.tell();
    if (paint) { this.measure(); this.repaint(); }
  }

  reselect() {
    const rho = Number(this.rho.value) / 100;
    this.live = true;
    for (const one of this.shown) if (one.whole) one.kept = choose(this.rule.value, one.columns, one.settings(rho));
    this.tell();
    if (this.colour === "score") this.measure();
    this.repaint();
  }

  tell() {
    let kept = 0, own = 0, both = 0, all = 0;
    for (const one of this.shown) for (let i = 0; i < one.rows; i++) { all++; kept += one.kept[i]; own += one.own[i]; both += one.kept[i] & one.own[i]; }
    this.rhoWords.textContent = `${this.rho.value} %`;
    const tip = this.step.tip, cut = this.shown.filter((one) => !one.whole).length;
    const words = this.live
      ? `${this.rule.value} at ${this.rho.value} % keeps ${kept.toLocaleString("en-US")} of the ${all.toLocaleString("en-US")} tokens shown; the run kept ${own.toLocaleString("en-US")}, ${both.toLocaleString("en-US")} of them the same (overlap ${short(kept + own - both ? both / (kept + own - both) : 1, 2)}).`
      : `As the run chose: ${tip.rule}, rho ${short(tip.rho)}${tip.selection === "top_share" ? "" : ` (${tip.selection})`}, ${own.toLocaleString("en-US")} of the ${all.toLocaleString("en-US")} tokens shown are kept.`;
    this.told.textContent = words + (cut ? ` ${cut} rollouts are not shown to their end: there the choice stays the run's.` : "");
  }

  setColour(name) {
    this.colour = name;
    for (const button of this.colourButtons) button.setAttribute("aria-pressed", String(button.dataset.colour === name));
    this.measure();
    this.repaint();
  }

  // The value of a colour, of the student's token `row`.
  value(one, row) {
    if (this.colour === "entropy") return one.columns.entropy ? one.columns.entropy[row] : 0;
    if (this.colour === "divergence") return one.columns.divergence ? one.columns.divergence[row] : 0;
    return one.scores ? one.scores[row] : 0;
  }

  // The greatest value that has a colour of its own: the 98th percentile of what is shown.
  measure() {
    this.scale.replaceChildren();
    this.paper.dataset.colour = this.colour;
    if (this.colour === "choice") {
      this.scale.append(el("span", { class: "quiet" }, el("span", { class: "t k" }, "kept"), " ", el("span", { class: "t d" }, "left out"), " ", el("span", { class: "t k new" }, "kept here only"), " ", el("span", { class: "t d gone" }, "kept by the run only"), " ", el("span", { class: "t o" }, "not the student's")));
      return;
    }
    const all = [];
    for (const one of this.shown) {
      if (this.colour === "score") one.scores = ruleScores(this.rule.value, one.columns, one.settings(0));
      for (let row = 0; row < one.rows; row++) { const value = this.value(one, row); if (Number.isFinite(value)) all.push(value); }
    }
    all.sort((a, b) => a - b);
    this.most = all[Math.floor(0.98 * (all.length - 1))] || 1;
    this.scale.append(el("span", { class: "quiet" }, "0 "), ...Array.from({ length: LEVELS }, (_, k) => el("i", { class: `t v${k}` })), el("span", { class: "quiet" }, ` ${short(this.most)}${this.colour === "score" ? "" : " nats"} and more (square root)`));
  }

  paint(span, one, i) {
    const row = one.row[i];
    if (row < 0) { span.className = "t o"; return; }
    let name = "t";
    if (this.colour === "choice") {
      name += one.kept[row] ? " k" : " d";
      if (one.kept[row] !== one.own[row]) name += one.kept[row] ? " new" : " gone";
    } else {
      const value = this.value(one, row);
      name += ` v${Number.isFinite(value) ? Math.min(LEVELS - 1, Math.floor(LEVELS * Math.sqrt(Math.max(value, 0) / this.most))) : 0}`;
      if (one.kept[row]) name += " u";
    }
    if (one.isWrong(i)) name += " w";
    if (this.cursor && this.cursor.one === one && this.cursor.i === i) name += " at";
    span.className = name;
  }

  repaint() {
    for (const [block, { one, begin }] of this.blocks) {
      const spans = block.children;
      for (let k = 0; k < spans.length; k++) this.paint(spans[k], one, begin + k);
    }
    for (const article of this.paper.children) this.strip(article.querySelector("canvas"), this.shown[article.dataset.rollout]);
  }

  article(one, number) {
    const record = one.record;
    const kept = one.own.reduce((sum, value) => sum + value, 0);
    const divergence = one.columns.divergence;
    const mean = divergence ? divergence.reduce((sum, value) => sum + value, 0) / (one.rows || 1) : null;
    const canvas = el("canvas", { class: "strip", height: 18, title: "all tokens; click to go there", "aria-hidden": "true" });
    const body = el("div", { class: "text" });
    const article = el("article", { class: "rollout", "data-rollout": number },
      el("h4", {}, visible(record.prompt_id), el("span", { class: "quiet" }, ` sample ${record.sample}, ${one.rows.toLocaleString("en-US")} tokens, ${percent(kept / (one.rows || 1))} kept${mean === null ? "" : `, mean divergence ${short(mean)} nats`}, ended by ${record.finish_reason}`)),
      canvas,
      el("details", { class: "prompt", open: record.prompt.length < 700 }, el("summary", {}, `prompt as the student reads it, ${record.prompt.length.toLocaleString("en-US")} characters${record.prompt_left_out ? `; ${record.prompt_left_out.toLocaleString("en-US")} left out in its middle` : ""}`), el("pre", {}, visible(record.prompt))),
      body);
    for (const [begin, end] of segments(one)) {
      const turns = one.record.turns !== null;
      const label = one.mask[begin] ? (turns ? `turn ${one.turns[begin] + 1}` : null) : "tools, environment, template";
      const segment = el("div", { class: one.mask[begin] ? "segment" : "segment others" }, label ? el("span", { class: "role" }, label) : null);
      for (const [from, to] of stretches(one, begin, end)) {
        const block = el("div", { class: "block" });
        let characters = 0;
        for (let i = from; i < to; i++) characters += one.text(i).length;
        block.info = { one, begin: from, end: to, height: Math.max(1, Math.ceil(characters / 80)) * 27 };
        block.style.minHeight = `${block.info.height}px`;
        segment.append(block);
        this.observer.observe(block);
      }
      body.append(segment);
    }
    if (!one.whole) body.append(el("p", { class: "quiet" }, `${(record.tokens - record.tokens_shown).toLocaleString("en-US")} further tokens are left out.`));
    requestAnimationFrame(() => this.strip(canvas, one));
    canvas.addEventListener("click", (event) => {
      const box = canvas.getBoundingClientRect();
      this.go(one, Math.min(one.size - 1, Math.floor(((event.clientX - box.left) / box.width) * one.size)));
    });
    return article;
  }

  // All tokens of a rollout in one line.
  strip(canvas, one) {
    const width = canvas.clientWidth || 600;
    if (canvas.width !== width) canvas.width = width;
    const context = canvas.getContext("2d"), style = getComputedStyle(this.paper);
    const [keep, heat, others] = ["--keep", "--heat", "--others"].map((name) => style.getPropertyValue(name).trim());
    context.clearRect(0, 0, width, 18);
    for (let x = 0; x < width; x++) {
      const from = Math.floor((x * one.size) / width), to = Math.max(from + 1, Math.floor(((x + 1) * one.size) / width));
      let value = 0, count = 0;
      for (let i = from; i < to && i < one.size; i++) {
        const row = one.row[i];
        if (row < 0) continue;
        count++;
        value += this.colour === "choice" ? one.kept[row] : Math.min(1, Math.sqrt(Math.max(this.value(one, row), 0) / this.most)) || 0;
      }
      context.globalAlpha = count ? 0.08 + 0.9 * (value / count) : 0.35;
      context.fillStyle = count ? (this.colour === "choice" ? keep : heat) : others;
      context.fillRect(x, 0, 1, 18);
    }
  }

  fill(block) {
    if (this.blocks.has(block)) return;
    const { one, begin, end } = block.info;
    const part = document.createDocumentFragment();
    for (let i = begin; i < end; i++) {
      const span = document.createElement("span");
      const text = one.text(i);
      span.textContent = text === "" ? "∅" : visible(text).replace(/\n/g, "⏎\n");
      this.paint(span, one, i);
      part.append(span);
    }
    block.replaceChildren(part);
    block.style.minHeight = "";
    this.blocks.set(block, block.info);
  }

  // On paper all of it is seen.
  fillAll() {
    this.observer.disconnect();
    for (const block of this.paper.querySelectorAll(".block")) this.fill(block);
  }

  empty(block) {
    if (!this.blocks.delete(block)) return;
    block.style.minHeight = `${block.offsetHeight}px`;
    block.replaceChildren();
  }

  look(target, tapped = false) {
    const block = target.parentElement;
    if (!block || !block.info || !target.classList.contains("t")) return;
    const i = block.info.begin + [...block.children].indexOf(target);
    this.point(block.info.one, i, target);
    if (tapped) this.card.classList.add("open");
  }

  point(one, i, span) {
    if (this.cursor && this.cursor.span) this.cursor.span.classList.remove("at");
    this.cursor = { one, i, span };
    if (span) span.classList.add("at");
    this.card.replaceChildren(...tokenCard(this, one, i), el("button", { type: "button", class: "close", onclick: () => this.card.classList.remove("open"), "aria-label": "close" }, "×"));
  }

  go(one, i) {
    for (const block of this.paper.querySelectorAll(".block")) {
      const info = block.info;
      if (info.one === one && i >= info.begin && i < info.end) {
        this.fill(block);
        const span = block.children[i - info.begin];
        this.point(one, i, span);
        span.scrollIntoView({ block: "nearest" });
        const box = span.getBoundingClientRect();
        if (box.top < 170 || box.bottom > innerHeight - 40) span.scrollIntoView({ block: "center" });
        return;
      }
    }
  }

  // Tokens that the student was sure of and the teacher would not write, the worst first.
  get worst() {
    if (this.worstOf === this.step) return this.worstFound;
    const found = [];
    for (const one of this.shown) for (let i = 0; i < one.size; i++) if (one.isWrong(i)) {
      const c = one.columns, row = one.row[i];
      found.push({ one, i, value: (c.divergence ? c.divergence[row] : 0) * (1 - (c.normalised_entropy ? c.normalised_entropy[row] : 0)) });
    }
    this.worstOf = this.step;
    this.worstAt = -1;
    return (this.worstFound = found.sort((a, b) => b.value - a.value));
  }

  // To the next of them.
  goWrong(by) {
    const worst = this.worst;
    if (!worst.length) { this.place.textContent = "none here"; return; }
    this.worstAt = this.worstAt < 0 ? (by > 0 ? 0 : worst.length - 1) : (this.worstAt + by + worst.length) % worst.length;
    this.place.textContent = `${this.worstAt + 1} of ${worst.length}`;
    this.go(worst[this.worstAt].one, worst[this.worstAt].i);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (move) {
      const at = this.cursor || { one: this.shown[0], i: -1 };
      let number = this.shown.indexOf(at.one), i = at.i + move;
      if (i >= at.one.size && number + 1 < this.shown.length) { number++; i = 0; }
      if (i < 0 && number > 0) { number--; i = this.shown[number].size - 1; }
      if (i >= 0 && i < this.shown[number].size) this.go(this.shown[number], i);
      event.preventDefault();
    } else if (event.key === "n") this.goWrong(1);
    else if (event.key === "p") this.goWrong(-1);
    else if (event.key === "[" || event.key === "]") {
      this.rho.value = Number(this.rho.value) + (event.key === "]" ? 5 : -5);
      this.reselect();
    } else if (event.key === "Escape") this.card.classList.remove("open");
  }
}

// Runs of tokens that the student wrote, and of those that others did.
function segments(one) {
  const found = [];
  for (let begin = 0, i = 1; i <= one.size; i++) {
    if (i === one.size || one.mask[i] !== one.mask[begin]) { found.push([begin, i]); begin = i; }
  }
  return found;
}

// Parts of a segment that are drawn at once; where it can be they end with a line.
function stretches(one, begin, end) {
  const found = [];
  while (begin < end) {
    let to = Math.min(end, begin + BLOCK);
    if (to < end) for (let i = to; i > begin + BLOCK / 2; i--) if (one.text(i - 1).includes("\n")) { to = i; break; }
    found.push([begin, to]);
    begin = to;
  }
  return found;
}

// All that is known of one token.
function tokenCard(view, one, i) {
  const row = one.row[i];
  const title = el("p", { class: "big" }, el("code", { class: "token" }, shownToken(one.text(i))), el("span", { class: "quiet" }, ` id ${one.tokenIds[one.ids[i]]}`));
  const place = `token ${(i + 1).toLocaleString("en-US")} of ${one.record.tokens.toLocaleString("en-US")}${one.record.turns === null ? "" : `, turn ${one.turns[i] + 1}`}`;
  if (row < 0) return [title, el("p", { class: "quiet" }, place), el("p", {}, "A tool, the environment or the template wrote it: it is never scored or trained on.")];
  const quadrant = one.quadrants ? QUADRANTS[one.quadrants[row]] : null;
  const of = (name) => { const values = one.column(name); return values ? values[row] : null; };
  const facts = [
    ["entropy", of("entropy"), "nats"], ["KL(student ‖ teacher)", of("reverse_kl"), "nats"], ["KL(teacher ‖ student)", of("forward_kl"), "nats"],
    ["score of the run's rule", ruleScores(one.step.tip.rule, one.columns, one.settings(0))[row], ""], ["weight in the loss", one.weights[row], ""],
  ].filter(([, value]) => value !== null);
  const student = one.chance("student", row), teacher = one.chance("teacher", row);
  const chances = [["student", student, "var(--c0)"], ["teacher", teacher, "var(--c1)"]].filter(([, value]) => value !== null);
  const lists = [["student", "var(--c0)"], ["teacher", "var(--c1)"]].map(([whose, hue]) => {
    const list = one.likeliest(whose, row);
    return list.length ? el("div", {}, el("p", { class: "quiet small" }, `likeliest, ${whose}`), el("div", { class: "likeliest" }, list.map(([id, p]) => [
      el("code", { class: `token ${id === one.ids[i] ? "this" : ""}` }, shownToken(one.vocabulary[id])), el("span", { class: "bar" }, el("i", { style: `width:${100 * p}%;background:${hue}` })), el("span", { class: "quiet bar-value" }, chance(p))]))) : null;
  }).filter(Boolean);
  return [
    title, el("p", { class: "quiet" }, place),
    el("p", {}, el("b", {}, one.own[row] ? "kept" : "left out"), " by the run", view.live && one.whole ? [", ", el("b", {}, one.kept[row] ? "kept" : "left out"), " here"] : null),
    quadrant ? el("p", {}, el("i", { class: "dot", style: `background:${quadrant[2]}` }), ` ${quadrant[0]}: ${quadrant[1]}`, el("br"), el("span", { class: "quiet small" }, `by the step's cuts: ${short(one.step.cuts[0], 2)} of normalised entropy, ${short(one.step.cuts[1], 2)} of divergence`)) : null,
    chances.length ? [el("p", { class: "quiet small" }, "probability of this token"), bars(chances.map(([label, value]) => [label, Math.exp(value), chance(Math.exp(value))]), { most: 1 })] : null,
    el("table", { class: "small" }, facts.map(([label, value, unit]) => el("tr", {}, el("td", { class: "quiet" }, label), el("td", {}, `${short(value)} ${unit}`)))),
    lists.length ? el("div", { class: "lists" }, lists) : el("p", { class: "quiet small" }, "Likeliest tokens are not recorded here."),
  ].flat().filter(Boolean);
}
