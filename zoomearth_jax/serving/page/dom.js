// Small helpers. Texts of models, files and users only ever become text nodes and attributes of fixed meaning, never markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

export function element(name, values = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(values)) {
    if (key === "text") made.textContent = value;
    else if (value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter(Boolean));
  return made;
}

export function drawing(name, values = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function show(id, wanted) {
  byId(id).hidden = !wanted;
}

// Tells a screen reader what happened; not for text as it streams.
export function say(text) {
  byId("says").textContent = text;
}

export const grouped = (number) => number.toLocaleString("en").replaceAll(",", "\u202f");
export const sizeOf = ({ width, height }) => `${grouped(width)} × ${grouped(height)} px`.replaceAll(" ", "\u00a0");

export function boxText(box) {
  const [x1, y1, x2, y2] = box.map(Math.round);
  return `${x1}, ${y1} to ${x2}, ${y2}`;
}

export function boxSize([x1, y1, x2, y2]) {
  return sizeOf({ width: Math.round(x2 - x1), height: Math.round(y2 - y1) });
}

// A picture with boxes of the image drawn over it.
export function framed(source, alt, size, boxes = []) {
  const overlay = drawing("svg", { viewBox: `0 0 ${size.width} ${size.height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const [box, kind] of boxes) overlay.append(...rectangles(box, kind, size));
  return element("div", { class: "frame" }, element("img", { src: source, alt, decoding: "async" }), overlay);
}

function rectangles([x1, y1, x2, y2], kind, { width, height }) {
  const least = 0.012 * Math.max(width, height); // to be seen
  const wide = Math.max(x2 - x1, least), high = Math.max(y2 - y1, least);
  const place = { x: (x1 + x2 - wide) / 2, y: (y1 + y2 - high) / 2, width: wide, height: high };
  return ["under", kind].map((name) => drawing("rect", { ...place, class: `mark ${name}` }));
}

export function saveAs(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
