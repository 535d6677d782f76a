"use strict";
// Texts of models and datasets only ever become text nodes and attributes of fixed meaning, never markup.

const byId = (id) => document.getElementById(id);
const { names, compared, right_box: rightBox, block: blockSize } = JSON.parse(byId("data").textContent);
const all = JSON.parse(byId("rows").textContent);
const blocks = [...document.querySelectorAll("script.thumbnails")];
const parsedBlocks = [];
const PAGE = 24; // cards; few, so that filters answer at once
const SVG = "http://www.w3.org/2000/svg";
const filters = byId("filters"), grid = byId("grid"), view = byId("view");
let list = all; // what the filters leave, in order
let page = 0, current = 0, viewed = 0; // places in the list: of the card that has or had the focus, and of the larger view

function pictureUrl(number) {
  const block = Math.floor(number / blockSize);
  parsedBlocks[block] ??= JSON.parse(blocks[block].textContent);
  return "data:image/jpeg;base64," + parsedBlocks[block][number % blockSize];
}

function element(name, values = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(values)) {
    if (key === "text") made.textContent = value;
    else if (value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

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

function searched(episode) {
  episode.hay ??= [
    episode.id, episode.image, episode.question, episode.reference, episode.category, episode.level, episode.fault,
    ...episode.runs.flatMap((run) => (run ? [run.answer, ...run.turns.map((turn) => turn.text)] : [])),
  ].filter(Boolean).join("\n").toLowerCase();
  return episode.hay;
}

// Filters and order

function accepts(chosen) {
  const words = (chosen.text ?? "").toLowerCase().split(/\s+/).filter(Boolean);
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
  const active = Object.entries(tests).filter(([name]) => chosen[name]);
  return (e) => active.every(([name, test]) => test(e, chosen[name])) && words.every((word) => searched(e).includes(word));
}

const orders = {
  id: (e) => e.rank,
  iou: (e) => e.runs[0]?.iou,
  tokens: (e) => e.runs[0]?.tokens ?? 0,
};

function sorted(found, by, down) {
  if (!orders[by]) return down ? found.reverse() : found;
  const keyed = found.map((e) => [orders[by](e), e]);
  const sign = down ? -1 : 1;
  // what has no value comes last in both directions
  keyed.sort(([a], [b]) => ((a ?? null) === null) - ((b ?? null) === null) || sign * (a - b) || 0);
  return keyed.map(([, e]) => e);
}

function apply() {
  const chosen = Object.fromEntries([...new FormData(filters)].filter(([, value]) => value));
  list = sorted(all.filter(accepts(chosen)), chosen.sort, chosen.order === "down");
  page = current = 0;
  draw();
  try { history.replaceState(null, "", "#" + new URLSearchParams(chosen)); } catch { /* too often: the address stays */ }
}

function restore() {
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    const field = filters.elements[name];
    if (field) field.value = value;
    if (field && field.selectedIndex === -1) field.selectedIndex = 0;
  }
}

// Cards

function draw() {
  const pages = Math.max(1, Math.ceil(list.length / PAGE));
  const start = page * PAGE;
  grid.replaceChildren(...list.slice(start, start + PAGE).map((e, i) => element("li", {}, card(e, start + i))));
  byId("count").textContent = `${list.length.toLocaleString("en")} of ${all.length.toLocaleString("en")} episodes`;
  byId("page").textContent = `page ${page + 1} of ${pages.toLocaleString("en")}`;
  byId("previous").disabled = page === 0;
  byId("next").disabled = byId("more").disabled = page >= pages - 1;
}

function turnPage(by) {
  page += by;
  current = page * PAGE;
  draw();
  byId("filters").scrollIntoView();
}

function card(episode, place) {
  const first = episode.runs[0];
  const open = element("button", { class: "open", type: "button", text: episode.question || episode.id, dir: "auto" });
  open.addEventListener("focus", () => (current = place));
  const differ = compared && changed(episode, "any 1");
  const made = element("article", { class: `card ${differ ? "differ" : verdict(first)}` }, element("h3", {}, open), meta(episode), pictures(episode, 160, 128));
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

function badge(text, kind = "") {
  return element("span", { class: `badge ${kind}`, text });
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

function said(turn) {
  return element("pre", { class: "said", text: turn.text, dir: "auto" });
}

// Pictures with boxes

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

function overlay(episode, width, height) {
  const svg = document.createElementNS(SVG, "svg");
  const [w, h] = [episode.width, episode.height];
  svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  for (const [[x1, y1, x2, y2], name] of marks(episode)) {
    const wide = Math.max(x2 - x1, (4 * w) / width), high = Math.max(y2 - y1, (4 * h) / height); // at least 4 px, to be seen
    for (const style of name === "window" ? [name] : ["under", name]) {
      const rect = document.createElementNS(SVG, "rect");
      const values = { x: (x1 + x2 - wide) / 2, y: (y1 + y2 - high) / 2, width: wide, height: high, class: `mark ${style}` };
      for (const [key, value] of Object.entries(values)) rect.setAttribute(key, value);
      svg.append(rect);
    }
  }
  return svg;
}

function overviewOf(episode, side) {
  if (!episode.width || !episode.height) return null;
  const scale = side / Math.max(episode.width, episode.height);
  const width = Math.max(1, Math.round(episode.width * scale)), height = Math.max(1, Math.round(episode.height * scale));
  const told = marks(episode).map(([box, , name]) => `${name} at ${box.map(Math.round).join(", ")}`).join("; ");
  const alt = `overview of ${episode.image ?? "the image"}, ${episode.width} by ${episode.height} px${told && "; " + told}`;
  const picture = episode.overview === undefined
    ? element("canvas", { class: "blank", width, height, role: "img", "aria-label": alt })
    : element("img", { src: pictureUrl(episode.overview), width, height, alt, decoding: "async" });
  const frame = element("div", { class: "frame" }, picture, overlay(episode, width, height));
  return element("figure", { class: "shot" }, frame);
}

function pictures(episode, side, small) {
  const made = element("div", { class: "pictures" });
  const overview = overviewOf(episode, side);
  if (overview) made.append(overview);
  episode.runs.forEach((run, r) => (run?.turns ?? []).forEach((turn, t) => {
    if (turn.picture === undefined) return;
    const [x1, y1, x2, y2] = turn.window, scale = small / Math.max(x2 - x1, y2 - y1, 1);
    const text = `${compared ? names[r] + ", " : ""}after turn ${t + 1}`;
    made.append(element("figure", { class: "shot" },
      element("img", { src: pictureUrl(turn.picture), alt: `what was shown ${text}: px ${turn.window.join(", ")}`, decoding: "async",
        width: Math.max(1, Math.round((x2 - x1) * scale)), height: Math.max(1, Math.round((y2 - y1) * scale)) }),
      element("figcaption", { text })));
  }));
  return made;
}

// The larger view

function show(place) {
  viewed = place;
  const episode = list[place];
  byId("view-title").textContent = episode.question || episode.id;
  byId("view-previous").disabled = place === 0;
  byId("view-next").disabled = place === list.length - 1;
  const large = Math.min(480, innerWidth - 80);
  const columns = element("div", { class: "columns" });
  episode.runs.forEach((run, i) => {
    const turns = run?.turns ?? [];
    if (i && !compared) return;
    columns.append(element("section", { "aria-label": names[i] }, element("p", { class: "run-name", text: names.length > 1 ? names[i] : "What it wrote" }),
      badges(episode, run), element("div", { class: "turns" }, ...turns.flatMap((turn, t) => [
        element("p", { class: "meta", text: `turn ${t + 1}` + (turn.box ? `: box ${turn.box.join(", ")}` : "") + (turn.window ? `, shown ${turn.window.join(", ")}` : "") }),
        said(turn)]))));
  });
  const parts = [meta(episode), pictures(episode, large, Math.min(320, large)), answers(episode), columns];
  if (episode.fault) parts.push(element("p", { class: "note", text: episode.fault }));
  if (episode.reference_box) parts.push(element("p", { class: "meta", text: `reference box ${episode.reference_box.join(", ")} (x1, y1, x2, y2 in px of the image)` }));
  byId("view-body").replaceChildren(...parts);
  if (!view.open) view.showModal();
  view.scrollTop = 0;
}

function focusCard(place) {
  current = Math.min(Math.max(place, 0), list.length - 1);
  if (current < 0) return;
  const wanted = Math.floor(current / PAGE);
  if (wanted !== page) {
    page = wanted;
    draw();
  }
  const item = grid.children[current - page * PAGE];
  item.querySelector(".open").focus({ preventScroll: true });
  item.scrollIntoView({ block: "nearest" });
}

// Events

filters.addEventListener("input", apply);
filters.addEventListener("reset", () => setTimeout(apply));
filters.addEventListener("submit", (event) => event.preventDefault());
byId("previous").addEventListener("click", () => turnPage(-1));
byId("next").addEventListener("click", () => turnPage(1));
byId("more").addEventListener("click", () => turnPage(1));
byId("view-previous").addEventListener("click", () => show(viewed - 1));
byId("view-next").addEventListener("click", () => show(viewed + 1));
byId("view-close").addEventListener("click", () => view.close());
view.addEventListener("click", (event) => event.target === view && view.close());
view.addEventListener("close", () => focusCard(viewed));

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest?.("input, select, textarea, .wide")) return;
  const by = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 }[event.key];
  if (event.key === "/" && !view.open) {
    filters.elements.text.focus();
  } else if (by && view.open) {
    if (list[viewed + by]) show(viewed + by);
  } else if (by) {
    focusCard(grid.contains(document.activeElement) ? current + by : current);
  } else {
    return;
  }
  event.preventDefault();
});

restore();
apply();
