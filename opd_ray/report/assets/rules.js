// The selection rules of opd_ray/tip/rules and the choice of opd_ray/tip/select, for tokens that are
// shown. Numbers are rounded to float32 where the library's are, so that the choice is the same.

const f32 = Math.fround;

const CRC_TABLE = Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

function crc32(text) {
  let crc = 0xffffffff;
  for (const c of text) crc = CRC_TABLE[(crc ^ c.charCodeAt(0)) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

const WORD = (1n << 64n) - 1n;

function mixed(n) {
  n ^= n >> 30n;
  n = (n * 0xbf58476d1ce4e5b9n) & WORD;
  n ^= n >> 27n;
  n = (n * 0x94d049bb133111ebn) & WORD;
  return n ^ (n >> 31n);
}

// A number in (0, 1) for each position, from the rollout's seed: opd_ray/tip/sampling.py.
function uniforms(seed, positions, salt) {
  const state = mixed((BigInt(seed) & WORD) ^ mixed(BigInt(salt)));
  return Float64Array.from(positions, (position) => {
    const n = mixed(((BigInt(position) + 1n) * 0x9e3779b97f4a7c15n + state) & WORD);
    return (Number(n >> 11n) + 0.5) * 2 ** -53;
  });
}

// Keys of which the greatest win a draw without replacement in proportion to the weights.
function raceKeys(weights, u) {
  const keys = new Float32Array(weights.length);
  for (let i = 0; i < keys.length; i++) {
    let time = -Math.log(u[i]) / weights[i];
    time = weights[i] === 0 ? (1 + u[i]) * 2 ** 100 : Math.min(Math.max(time, 2 ** -100), 2 ** 99);
    keys[i] = -time;
  }
  return keys;
}

// What each rule reads, which tokens it prefers, and its score of token i; c has the columns.
const RULES = {
  all: { needs: [], keeps: "all", score: () => 1 },
  bottom_soft_or: { needs: ["normalised_entropy", "normalised_divergence"], keeps: "bottom",
    score: (c, i) => RULES.soft_or.score(c, i) },
  divergence_topk: { needs: ["divergence"], keeps: "top", score: (c, i) => c.divergence[i] },
  entropy_sample: { needs: ["h"], keeps: "sampled", score: (c, i) => c.h[i] },
  entropy_topk: { needs: ["h"], keeps: "top", score: (c, i) => c.h[i] },
  product: { needs: ["h", "jsd"], keeps: "sampled",
    score: (c, i, s) => f32(f32(c.h[i] ** s.alpha) * f32(c.jsd[i] ** s.gamma)) },
  q3_only: { needs: ["forward_kl", "normalised_entropy"], keeps: "top",
    score: (c, i) => f32(c.forward_kl[i] * f32(1 - c.normalised_entropy[i])) },
  random: { needs: [], keeps: "sampled", score: () => 1 },
  soft_or: { needs: ["normalised_entropy", "normalised_divergence"], keeps: "top",
    score: (c, i) => {
      const h = c.normalised_entropy[i], d = c.normalised_divergence[i];
      return f32(f32(h + d) - f32(h * d));
    } },
  teachability: { needs: ["between_union_forward_kl", "between_teacher_mass"], keeps: "top",
    score: (c, i) => f32(c.between_union_forward_kl[i] * c.between_teacher_mass[i]) },
};

// h = H / ln V in float32, as opd_ray/tip/rule.py has it.
function entropyShare(entropy, vocabularySize) {
  const most = f32(Math.log(vocabularySize));
  return Float32Array.from(entropy, (value) => f32(value / most));
}

const ruleOf = (name, settings) => RULES[name] || { needs: ["score"], keeps: settings.keeps, score: (c, i) => c.score[i] };

function ruleScores(name, columns, settings) {
  const rule = ruleOf(name, settings);
  const scores = new Float32Array(columns.count);
  for (let i = 0; i < scores.length; i++) scores[i] = rule.score(columns, i, settings);
  return scores;
}

// What a rule keeps the greatest of.
function preferences(name, columns, settings) {
  const rule = ruleOf(name, settings);
  const scores = ruleScores(name, columns, settings);
  if (rule.keeps === "sampled") {
    const weights = scores.map((score) => (score === -Infinity ? 0 : score));
    const keys = raceKeys(weights, uniforms(settings.seed, columns.positions, crc32(name)));
    return keys.map((key, i) => (scores[i] === -Infinity ? -Infinity : key));
  }
  if (rule.keeps === "bottom") return scores.map((score) => (score === -Infinity ? score : -score));
  return scores;
}

// floor(rho m), as share_counts in opd_ray/tip/select.py.
const shareCount = (size, rho) => Math.floor(rho * size * (1 + 1e-12));

// The `count` greatest of those from `begin` to `end`; ties go to the earlier one.
function keepGreatest(values, begin, end, count, kept) {
  const order = [];
  for (let i = begin; i < end; i++) if (values[i] > -Infinity) order.push(i);
  order.sort((a, b) => values[b] - values[a] || a - b);
  for (const i of order.slice(0, count)) kept[i] = 1;
}

// Begins of the runs of equal turns, and the end.
function turnEdges(turns, count) {
  const edges = [0];
  for (let i = 1; i < count; i++) if (turns[i] !== turns[i - 1]) edges.push(i);
  if (count) edges.push(count);
  return edges;
}

// Which tokens of one rollout a rule keeps at a share of rho: 1 or 0 each.
//
// columns: count, positions, turns, and the scores by name; settings: rho, share_of, alpha, gamma,
// seed, keeps (of a rule of the user's), first (the rollout's place in the batch) and edges (where
// shares of the batch end, by rule).
function choose(name, columns, settings) {
  const kept = new Uint8Array(columns.count);
  const rule = ruleOf(name, settings);
  if (rule.keeps === "all") {
    const scores = ruleScores(name, columns, settings);
    return kept.map((_, i) => (scores[i] > -Infinity ? 1 : 0));
  }
  const values = preferences(name, columns, settings);
  if (settings.share_of === "batch") {
    const [least, last] = settings.edges[name];
    const at = Math.round(100 * settings.rho);
    return kept.map((_, i) => (values[i] > least[at] || (values[i] === least[at] && values[i] > -Infinity && settings.first + i <= last[at]) ? 1 : 0));
  }
  const edges = settings.share_of === "turn" ? turnEdges(columns.turns, columns.count) : [0, columns.count];
  for (let k = 0; k + 1 < edges.length; k++) {
    keepGreatest(values, edges[k], edges[k + 1], shareCount(edges[k + 1] - edges[k], settings.rho), kept);
  }
  return kept;
}
