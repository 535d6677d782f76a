// The page of a run's rollouts, behind gallery.js: a card is a group, its `runs` are the episodes of one question.

const { figures } = settings; // names of rewards, then of advantage and KL
const TOTAL = figures.indexOf("total"), ADVANTAGE = figures.indexOf("advantage");

function chosenFigure() {
  return Math.max(0, figures.indexOf(filters.elements.by.value));
}

function valuesOf(group, name) {
  const place = Math.max(0, figures.indexOf(name));
  return group.runs.map((run) => run.figures[place]).filter((value) => value !== null);
}

function spread(values) {
  return values.length ? Math.max(...values) - Math.min(...values) : null;
}

function within(run, chosen) {
  const value = run.figures[Math.max(0, figures.indexOf(chosen.by))];
  return value !== null && !(value < Number(chosen.least ?? -Infinity)) && !(value > Number(chosen.most ?? Infinity));
}

function someWithin(group, value, chosen) {
  return group.runs.some((run) => within(run, chosen));
}

const kinds = {
  flat: (g) => spread(valuesOf(g, "total")) === 0,
  right: (g) => g.runs.every((run) => run.correct),
  mixed: (g) => new Set(g.runs.map((run) => !!run.correct)).size === 2,
  wrong: (g) => !g.runs.some((run) => run.correct),
  zoomed: (g) => new Set(g.runs.map((run) => run.turns.some((turn) => turn.window))).size === 2,
};

const tests = {
  from: (g, v) => g.step >= Number(v),
  to: (g, v) => g.step <= Number(v),
  least: someWithin,
  most: someWithin,
  group: (g, v) => kinds[v]?.(g),
  level: (g, v) => g.level === v,
};

const orders = {
  step: (g) => g.step,
  mean: (g, { by }) => mean(valuesOf(g, by)),
  best: (g, { by }) => (valuesOf(g, by).length ? Math.max(...valuesOf(g, by)) : null),
  spread: (g, { by }) => spread(valuesOf(g, by)),
  tokens: (g) => mean(g.runs.map((run) => run.tokens ?? 0)),
};

function mean(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}

function texts(group) {
  return [
    group.question, group.reference, group.level, group.category,
    ...group.runs.flatMap((run) => [run.answer, ...run.turns.map((turn) => turn.text)]),
  ];
}

function title(group) {
  return group.question || group.id;
}

// Cards

function number(value, signed = false) {
  return value === null || value === undefined ? "none" : (signed && value > 0 ? "+" : "") + value.toFixed(2);
}

function above(run) {
  return ADVANTAGE >= 0 && run.figures[ADVANTAGE] > 0;
}

function marksOf(run) {
  const found = [], kind = above(run) ? "predicted-0" : "predicted-1", name = `box of episode ${run.sample}`;
  for (const turn of run.turns) {
    if (turn.window) found.push([turn.window, "window", `shown to episode ${run.sample}`]);
    if (turn.box) found.push([turn.box, kind, name]);
  }
  return found;
}

function withReference(group, found) {
  return [...(group.reference_looks ?? []).map((box) => [box, "reference", "reference box"]), ...found];
}

function marks(group) {
  return withReference(group, group.runs.flatMap(marksOf).filter(([, kind]) => kind !== "window"));
}

function meta(group) {
  const size = `${group.width.toLocaleString("en")} × ${group.height.toLocaleString("en")} px`;
  return element("div", { class: "meta", dir: "auto", text: [`step ${group.step}`, `group ${group.group}`, group.level, group.category, size].filter(Boolean).join(" · ") });
}

function card(group, place) {
  const right = group.runs.filter((run) => run.correct).length;
  const kind = right === group.runs.length ? "right" : right ? "differ" : "wrong";
  const made = element("article", { class: `card ${kind}` }, opener(group, place), meta(group));
  const overview = overviewOf(group, 160);
  if (overview) made.append(element("div", { class: "pictures" }, overview));
  made.append(samples(group), reference(group));
  made.addEventListener("click", () => !String(getSelection()) && show(place));
  return made;
}

function samples(group) {
  const place = chosenFigure(), chosen = Object.fromEntries(new FormData(filters));
  for (const name of ["least", "most"]) chosen[name] ||= undefined;
  const cell = (text, values = {}) => element("td", { text, dir: "auto", ...values });
  const limited = chosen.least !== undefined || chosen.most !== undefined;
  const rows = group.runs.map((run) => element("tr", limited && within(run, chosen) ? { class: "differ" } : {},
    element("th", { scope: "row", text: String(run.sample) }), cell(number(run.figures[place])),
    cell(number(run.figures[ADVANTAGE], true)), cell(`${run.correct ? "✓" : "✗"} ${run.answer ?? "(none)"}`)));
  const head = ["#", figures[place], "advantage", "answer"].map((text) => element("th", { scope: "col", text }));
  return element("table", { class: "samples" }, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
}

function reference(group) {
  return element("dl", { class: "answers" }, element("dt", { text: "reference" }), element("dd", { text: group.reference ?? "", dir: "auto" }));
}

// The larger view

function badges(group, run) {
  const made = element("div", { class: "badges" });
  made.append(badge(run.correct ? "✓ right" : "✗ wrong", run.correct ? "right" : "wrong"));
  figures.forEach((name, i) => run.figures[i] !== null && made.append(badge(`${name} ${number(run.figures[i], i === ADVANTAGE)}`, i === TOTAL ? "part" : "")));
  if (run.box_reason && run.box_reason !== "absent") made.append(badge(`box: ${run.box_reason}`, "part"));
  if (run.truncated) made.append(badge("cut off", "part"));
  made.append(badge(`${run.tokens ?? 0} tokens`));
  return made;
}

function details(group, large) {
  const columns = element("div", { class: "columns many" });
  for (const run of group.runs) {
    const name = `episode ${run.sample}`;
    const pictures = element("div", { class: "pictures" });
    const overview = overviewOf(group, 128, withReference(group, marksOf(run)));
    if (overview) pictures.append(overview);
    run.turns.forEach((turn, t) => turn.picture !== undefined && pictures.append(crop(turn, 112, `after turn ${t + 1}`)));
    const answer = element("p", { class: "facts-line", text: `answer: ${run.answer ?? "(none)"}`, dir: "auto" });
    columns.append(element("section", { "aria-label": name }, element("p", { class: "run-name", text: name }), badges(group, run), pictures, answer, written(run.turns)));
  }
  const parts = [meta(group), reference(group)];
  const overview = overviewOf(group, Math.min(320, large));
  if (overview) parts.push(element("div", { class: "pictures" }, overview));
  for (const box of group.reference_looks ?? []) {
    parts.push(element("p", { class: "meta", text: `reference box ${box.join(", ")} (x1, y1, x2, y2 in px of the image)` }));
  }
  return [...parts, columns];
}

restore();
apply();
