// What the page offers to begin with: examples, images of this session, tools. `open(id, title, question)` opens an image.

import { picture, read, whenReady, windowPath } from "./api.js";
import { byId, element, show, sizeOf } from "./dom.js";
import { images } from "./history.js";

export async function showExamples(open) {
  const found = await read("v1/examples").catch(() => []);
  show("examples", found.length);
  const cards = found.map((example) => card(example.title, example.question, () => open(example.file_id, example.title, example.question)));
  byId("examples").querySelector("ul").replaceChildren(...cards.map(({ node }) => node));
  await Promise.all(found.map(async (example, i) => {
    const about = await whenReady(example.file_id);
    cards[i].shown(await picture(windowPath(about.id, [0, 0, about.width, about.height], about, 320)), sizeOf(about));
  }).map((promise) => promise.catch(() => {})));
}

function card(title, text, onChosen) {
  const thumb = element("img", { alt: "", hidden: true }), size = element("span", { class: "small" });
  const button = element("button", { type: "button", class: "card" }, element("span", { class: "thumb" }, thumb),
    element("span", { class: "card-title", text: title, dir: "auto" }), size, element("span", { class: "card-text", text, dir: "auto" }));
  button.addEventListener("click", onChosen);
  const shown = (source, words) => (Object.assign(thumb, { src: source, hidden: false }), (size.textContent = words));
  return { node: element("li", {}, button), shown };
}

export function showRecent(open) {
  const found = images();
  show("recent", found.length);
  byId("recent").querySelector("ul").replaceChildren(...found.map((one) => {
    const count = one.records.length;
    const button = element("button", { type: "button", class: "line" }, element("span", { text: one.name, dir: "auto" }),
      element("span", { class: "small", text: `${sizeOf(one)}, ${count} ${count === 1 ? "question" : "questions"}` }));
    button.addEventListener("click", () => open(one.id, one.name));
    return element("li", {}, button);
  }));
}

export async function showTools() {
  const found = await read("v1/tools").catch(() => []);
  const tools = (found.data ?? found).map((tool) => tool.function ?? tool);
  show("tools-part", tools.length);
  byId("tools").replaceChildren(...tools.map((tool) => element("label", { class: "check" },
    element("input", { type: "checkbox", name: "tool", value: tool.name }),
    element("span", {}, element("b", { text: tool.name }), tool.description && element("span", { class: "small", text: ` ${tool.description}` })))));
}

export function chosenTools() {
  return [...document.querySelectorAll("[name=tool]:checked")].map((field) => field.value);
}

byId("tools").onchange = () => (byId("tools-title").textContent = ["Tools", chosenTools().join(", ")].filter(Boolean).join(": "));
