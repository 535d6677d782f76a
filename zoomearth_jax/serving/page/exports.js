// Downloads: boxes as GeoJSON (or in px, where the image has no place on Earth), and a report that is one HTML file.

import { request, windowPath } from "./api.js";
import { boxSize, boxText, element, framed, saveAs, sizeOf } from "./dom.js";

const OVERVIEW = 1024, CROP = 640; // px of the longest side in a report

const REPORT_STYLE = `
:root { color-scheme: light dark; }
body { max-width: 900px; margin: 0 auto; padding: 20px; font: 15px/1.5 system-ui, sans-serif; }
h1, h2, p { overflow-wrap: anywhere; } h2 { margin-top: 40px; } figure { margin: 8px 0; } img { display: block; max-width: 100%; }
.frame { position: relative; width: fit-content; } .frame svg { position: absolute; inset: 0; width: 100%; height: 100%; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, monospace; border-left: 3px solid #8887; padding-left: 10px; }
.mark { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke; } .under { stroke: #000; stroke-width: 4; stroke-opacity: .65; }
.named { stroke: #ff3cd0; } .asked { stroke: #ffd23c; } .window { stroke: #40e0ff; }
.payload { font-size: 20px; font-weight: 600; }`;

// The box that an exchange is about: the last one that the model named, or the one that was drawn.
export function boxOf(record) {
  return record.turns.findLast((turn) => turn.box)?.box ?? record.box ?? null;
}

export async function saveBoxes(image, name, records) {
  const boxes = records.map((record) => ({ box: boxOf(record), question: record.question, answer: record.answer })).filter(({ box }) => box);
  const stem = name.replace(/\.[^.]*$/, "");
  if (!image.crs) {
    const plain = { image: name, width: image.width, height: image.height, frame: "px of the image, x to the right, y down", boxes };
    return saveAs(`${stem}.boxes.json`, "application/json", JSON.stringify(plain, null, 2));
  }
  const answer = await request(`v1/images/${encodeURIComponent(image.id)}/geojson`, { json: { boxes } });
  saveAs(`${stem}.geojson`, "application/geo+json", await answer.text());
}

export async function saveReport(image, name, model, records) {
  const made = document.implementation.createHTMLDocument(`${name}: questions and answers`);
  made.documentElement.lang = "en";
  made.head.append(
    element("meta", { charset: "utf-8" }),
    element("meta", { "http-equiv": "Content-Security-Policy", content: "default-src 'none'; img-src data:; style-src 'unsafe-inline'" }),
    element("meta", { name: "viewport", content: "width=device-width, initial-scale=1" }));
  const when = new Date().toISOString().slice(0, 16).replace("T", " ");
  const main = element("main", {}, element("h1", { text: name }), element("p", { text: `${sizeOf(image)}, model ${model}, ${when} UTC` }));
  made.body.append(main);
  const overview = await embedded(windowPath(image.id, [0, 0, image.width, image.height], image, OVERVIEW));
  for (const record of records) main.append(await section(record, image, overview));
  saveAs(`${name.replace(/\.[^.]*$/, "")}.report.html`, "text/html", `<!doctype html>\n${styled(made)}`);
}

// The document's markup with the style; as an element here it would be stopped by this page's policy.
function styled(made) {
  return made.documentElement.outerHTML.replace("</head>", () => `<style>${REPORT_STYLE}</style></head>`);
}

async function section(record, image, overview) {
  const marks = record.turns.filter((turn) => turn.box).map((turn) => [turn.box, "named"]);
  if (record.box) marks.unshift([record.box, "asked"]);
  const made = element("section", {}, element("h2", { text: record.question, dir: "auto" }),
    element("p", { class: "payload", text: record.answer ?? "no answer", dir: "auto" }),
    element("figure", {}, framed(overview, "overview of the image", image, marks)),
    record.box && element("p", { text: `About the box ${boxText(record.box)}.` }));
  for (const { text, box, window } of record.turns) {
    made.append(element("pre", { text, dir: "auto" }));
    if (box) made.append(element("p", { text: `Box ${boxText(box)} (${boxSize(box)}).` }));
    if (!window) continue;
    const [x1, y1, x2, y2] = window;
    const crop = await embedded(windowPath(image.id, window, { width: x2 - x1, height: y2 - y1 }, CROP));
    made.append(element("figure", {}, element("img", { src: crop, alt: `px ${boxText(window)} of the image` }),
      element("figcaption", { text: `The part that it was shown: ${boxText(window)} (${boxSize(window)}).` })));
  }
  return made;
}

async function embedded(path) {
  const blob = await (await request(path)).blob();
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
