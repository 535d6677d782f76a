// The page of an evaluation, behind gallery.js.

const { names, compared, right_box: rightBox } = settings;

// Verdicts

function verdict(run) {
  if (!run || run.official === null) return "unread";
  return run.official === 1 ? "right" : "wrong";
}

function boxVerdict(episode) {
  const run = episode.runs[0];
  if (!episode.reference_box) return "none";
  if (!run || !run.box) return "missing";
  return run.iou >= rightBox ? "right" : "wrong";
}

function changed(episode, wanted) {
  const [which, other] = wanted.split(" ");
  const first = verdict(episode.runs[0]), second = verdict(episode.runs[Number(other)]);
  if (first === "unread" || second === "unread" || first === second) return false;
  return which === "any" || (which === "first") === (first === "right");
}

function texts(episode) {
  return [
    episode.id, episode.image, episode.question, episode.reference, episode.category, episode.level, episode.fault,
    ...episode.runs.flatMap((run) => (run ? [run.answer, ...run.turns.map((turn) => turn.text)] : [])),
  ];
}

function title(episode) {
  return episode.question || episode.id;
}

const tests = {
  verdict: (e, v) =>
    v === "differs" ? e.runs[0] && e.runs[0].official !== e.runs[0].strict
    : v === "unparsed" ? e.runs[0]?.parsed === false
    : verdict(e.runs[0]) === v,
  level: (e, v) => e.level === v,
  category: (e, v) => e.category === v,
  zoom: (e, v) => e.runs[0] && e.runs[0].zoomed === (v === "yes"),
  box: (e, v) => boxVerdict(e) === v,
  change: changed,
};

const orders = {
  id: (e) => e.rank,
  iou: (e) => e.runs[0]?.iou,
  tokens: (e) => e.runs[0]?.tokens ?? 0,
};

// Cards

function card(episode, place) {
  const first = episode.runs[0];
  const differ = compared && changed(episode, "any 1");
  const made = element("article", { class: `card ${differ ? "differ" : verdict(first)}` }, opener(episode, place), meta(episode), pictures(episode, 160, 128));
  if (episode.fault) made.append(element("p", { class: "note", text: episode.fault, dir: "auto" }));
  if (compared) {
    episode.runs.forEach((run, i) => made.append(element("p", { class: "run-name", text: names[i] }), badges(episode, run)));
  } else if (first) {
    made.append(element("div", { class: "turns" }, ...first.turns.map(said)), badges(episode, first));
  }
  made.append(answers(episode));
  made.addEventListener("click", () => !String(getSelection()) && show(place));
  return made;
}

function meta(episode) {
  const size = episode.width ? `${episode.image ?? ""} ${episode.width.toLocaleString("en")} × ${episode.height.toLocaleString("en")} px` : episode.image;
  return element("div", { class: "meta", dir: "auto", text: [episode.id, episode.level, episode.category, size].filter(Boolean).join(" · ") });
}

function ruled(name, score) {
  if (score === 1) return badge(`✓ ${name}: right`, "right");
  return score === 0 ? badge(`✗ ${name}: wrong`, "wrong") : badge(`◐ ${name}: ${score.toFixed(2)}`, "part");
}

function badges(episode, run) {
  const made = element("div", { class: "badges" });
  if (!run || run.official === null) return made.append(badge("not scored")), made;
  made.append(ruled("official", run.official), ruled("strict", run.strict));
  if (!run.parsed) made.append(badge("no answer found", "part"));
  if (episode.reference_box) made.append(run.box ? badge(`IoU ${run.iou.toFixed(2)}`, run.iou >= rightBox ? "right" : "wrong") : badge("no box", "wrong"));
  made.append(badge(run.zoomed ? "zoomed" : "not zoomed"));
  if (run.box_reason && run.box_reason !== "absent") made.append(badge(`box: ${run.box_reason}`, "part"));
  if (run.truncated) made.append(badge("cut off", "part"));
  if (run.tokens) made.append(badge(`${run.tokens} tokens`));
  if (run.visual_tokens) made.append(badge(`${run.visual_tokens.toLocaleString("en")} visual tokens`));
  return made;
}

function answers(episode) {
  const made = element("dl", { class: "answers" });
  const row = (name, text) => made.append(element("dt", { text: name }), element("dd", { text, dir: "auto" }));
  row("reference", episode.reference ?? "");
  episode.runs.forEach((run, i) => {
    if (!run) return row(names[i], "not scored");
    const mark = i === 0 && !compared ? "" : { right: " ✓ right", wrong: " ✗ wrong", unread: "" }[verdict(run)];
    row(names.length > 1 ? names[i] : "answer", (run.answer ?? "(none)") + mark);
  });
  return made;
}

function marks(episode) {
  const found = [];
  episode.runs.slice(0, compared ? 2 : 1).forEach((run, i) => {
    for (const turn of run?.turns ?? []) {
      if (turn.window) found.push([turn.window, "window", "shown"]);
      if (turn.box) found.push([turn.box, `predicted-${i}`, compared ? `box of ${names[i]}` : "predicted box"]);
    }
    if (run?.box && !run.turns.some((turn) => turn.box)) found.push([run.box, `predicted-${i}`, compared ? `box of ${names[i]}` : "predicted box"]);
  });
  if (episode.reference_box) found.unshift([episode.reference_box, "reference", "reference box"]);
  return found;
}

function pictures(episode, side, small) {
  const made = element("div", { class: "pictures" });
  const overview = overviewOf(episode, side);
  if (overview) made.append(overview);
  episode.runs.forEach((run, r) => (run?.turns ?? []).forEach((turn, t) => {
    if (turn.picture !== undefined) made.append(crop(turn, small, `${compared ? names[r] + ", " : ""}after turn ${t + 1}`));
  }));
  return made;
}

function details(episode, large) {
  const columns = element("div", { class: "columns" });
  episode.runs.forEach((run, i) => {
    if (i && !compared) return;
    columns.append(element("section", { "aria-label": names[i] }, element("p", { class: "run-name", text: names.length > 1 ? names[i] : "What it wrote" }),
      badges(episode, run), written(run?.turns ?? [])));
  });
  const parts = [meta(episode), pictures(episode, large, Math.min(320, large)), answers(episode), columns];
  if (episode.fault) parts.push(element("p", { class: "note", text: episode.fault }));
  if (episode.reference_box) parts.push(element("p", { class: "meta", text: `reference box ${episode.reference_box.join(", ")} (x1, y1, x2, y2 in px of the image)` }));
  return parts;
}

restore();
apply();
