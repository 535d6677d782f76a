"use strict";
// What the pages of episodes share: pages of cards, filters, keys, the larger view, pictures with boxes. What a page has of its own
// comes behind it, in the same script: `tests`, `orders`, `texts`, `title`, `marks`, `card` and `details`.
// Texts of models and datasets only ever become text nodes and attributes of fixed meaning, never markup.

const byId = (id) => document.getElementById(id);
const settings = JSON.parse(byId("data").textContent);
const all = JSON.parse(byId("rows").textContent);
const blocks = [...document.querySelectorAll("script.thumbnails")];
const parsedBlocks = [];
const PAGE = 24; // cards; few, so that filters answer at once
const SVG = "http://www.w3.org/2000/svg";
const filters = byId("filters"), grid = byId("grid"), view = byId("view");
let list = all; // what the filters leave, in order
let page = 0, current = 0, viewed = 0; // places in the list: of the card that has or had the focus, and of the larger view

function pictureUrl(number) {
  const block = Math.floor(number / settings.block);
  parsedBlocks[block] ??= JSON.parse(blocks[block].textContent);
  return "data:image/jpeg;base64," + parsedBlocks[block][number % settings.block];
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

// Filters and order

function searched(episode) {
  episode.hay ??= texts(episode).filter(Boolean).join("\n").toLowerCase();
  return episode.hay;
}

function accepts(chosen) {
  const words = (chosen.text ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  const active = Object.entries(tests).filter(([name]) => chosen[name]);
  return (e) => active.every(([name, test]) => test(e, chosen[name], chosen)) && words.every((word) => searched(e).includes(word));
}

function sorted(found, chosen) {
  const order = orders[chosen.sort], down = chosen.order === "down";
  if (!order) return down ? found.reverse() : found;
  const keyed = found.map((e) => [order(e, chosen), e]);
  const sign = down ? -1 : 1;
  // what has no value comes last in both directions
  keyed.sort(([a], [b]) => ((a ?? null) === null) - ((b ?? null) === null) || sign * (a - b) || 0);
  return keyed.map(([, e]) => e);
}

function apply() {
  const chosen = Object.fromEntries([...new FormData(filters)].filter(([, value]) => value));
  list = sorted(all.filter(accepts(chosen)), chosen);
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
  byId("count").textContent = `${list.length.toLocaleString("en")} of ${all.length.toLocaleString("en")} ${settings.counted}`;
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

function opener(episode, place) {
  const open = element("button", { class: "open", type: "button", text: title(episode), dir: "auto" });
  open.addEventListener("focus", () => (current = place));
  return element("h3", {}, open);
}

function badge(text, kind = "") {
  return element("span", { class: `badge ${kind}`, text });
}

function said(turn) {
  return element("pre", { class: "said", text: turn.text, dir: "auto" });
}

// Pictures with boxes

function overlay(episode, found, width, height) {
  const svg = document.createElementNS(SVG, "svg");
  const [w, h] = [episode.width, episode.height];
  svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  for (const [[x1, y1, x2, y2], name] of found) {
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

function overviewOf(episode, side, found = marks(episode)) {
  if (!episode.width || !episode.height) return null;
  const scale = side / Math.max(episode.width, episode.height);
  const width = Math.max(1, Math.round(episode.width * scale)), height = Math.max(1, Math.round(episode.height * scale));
  const told = found.map(([box, , name]) => `${name} at ${box.map(Math.round).join(", ")}`).join("; ");
  const alt = `overview of ${episode.image ?? "the image"}, ${episode.width} by ${episode.height} px${told && "; " + told}`;
  const picture = episode.overview === undefined
    ? element("canvas", { class: "blank", width, height, role: "img", "aria-label": alt })
    : element("img", { src: pictureUrl(episode.overview), width, height, alt, decoding: "async" });
  const frame = element("div", { class: "frame" }, picture, overlay(episode, found, width, height));
  return element("figure", { class: "shot" }, frame);
}

function crop(turn, small, text) {
  const [x1, y1, x2, y2] = turn.window, scale = small / Math.max(x2 - x1, y2 - y1, 1);
  return element("figure", { class: "shot" },
    element("img", { src: pictureUrl(turn.picture), alt: `what was shown ${text}: px ${turn.window.join(", ")}`, decoding: "async",
      width: Math.max(1, Math.round((x2 - x1) * scale)), height: Math.max(1, Math.round((y2 - y1) * scale)) }),
    element("figcaption", { text }));
}

function written(turns) {
  return element("div", { class: "turns" }, ...turns.flatMap((turn, t) => [
    element("p", { class: "meta", text: `turn ${t + 1}` + (turn.source ? ` (${turn.source})` : "") + (turn.box ? `: box ${turn.box.join(", ")}` : "") + (turn.window ? `, shown ${turn.window.join(", ")}` : "") }),
    said(turn)]));
}

// The larger view

function show(place) {
  viewed = place;
  byId("view-title").textContent = title(list[place]);
  byId("view-previous").disabled = place === 0;
  byId("view-next").disabled = place === list.length - 1;
  byId("view-body").replaceChildren(...details(list[place], Math.min(480, innerWidth - 80)));
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
