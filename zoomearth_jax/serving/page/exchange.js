// One question and what came of it, as a part of the page that grows while the model writes.

import { boxSize, boxText, element, framed, grouped, sizeOf } from "./dom.js";

const TAGS = /(<\/?[a-z_]+>)/i;

// record: {question, box, turns: [{text, box, window}], answer, state, seconds}; state is asking, done, stopped or failed.
export function newRecord(question, box) {
  return { question, box, turns: [], answer: null, state: "asking", seconds: 0 };
}

export class Exchange {
  #list; #answer; #image; #turn; #overview; #pending = false;

  // onBox is called with a box whose place somebody wants to see, onOpen when this exchange opens.
  constructor(record, image, { onBox, onOpen }) {
    this.record = record;
    this.onBox = onBox;
    this.#image = image;
    this.#list = element("ol", { class: "turns", role: "list" });
    this.#answer = element("div", { class: "answer" });
    this.summary = element("summary", { dir: "auto" }, element("span", { class: "asked-text", text: record.question }), element("span", { class: "short" }));
    this.node = element("details", { class: "exchange", open: true }, this.summary,
      record.box && element("p", { class: "your-box" }, this.#boxButton(record.box, "asked", "Your box:")), this.#list, this.#answer);
    this.node.addEventListener("toggle", () => this.node.open && onOpen(this));
    this.#tell("Waiting for the model …");
  }

  // A turn begins; what it sees is the overview or the last picture.
  turn(number, overview) {
    if (this.#turn) this.#spell(this.#turn);
    const first = number === 1;
    const shown = this.#turn?.picture || this.#turn?.record.window;
    const sees = first ? ": it sees the whole image" : shown ? ": it sees what it asked for" : "";
    const item = element("li", {}, element("h3", { text: `Turn ${number}${sees}` }));
    if (first && overview) this.#setOverview(item, overview);
    if (shown) item.append(this.#crop(this.#turn));
    const said = element("pre", { class: "said", dir: "auto" });
    item.append(said);
    this.#list.append(item);
    this.#turn = { record: { text: "", box: null, window: null }, said, item };
    this.record.turns.push(this.#turn.record);
    this.#tell(first ? "Looks at the whole image …" : "Reads the picture …");
  }

  text(words) {
    if (!this.#turn) this.turn(1, this.#overview);
    this.#turn.record.text += words;
    if (this.#pending) return;
    this.#pending = true;
    requestAnimationFrame(() => ((this.#pending = false), this.#spell(this.#turn)));
  }

  look(box, window) {
    if (!this.#turn) this.turn(1, this.#overview);
    const { record, item } = this.#turn;
    Object.assign(record, { box: box ?? null, window: window ?? null });
    if (box) item.append(element("p", {}, this.#boxButton(box, "named", "Asks for")));
    if (window) this.#tell("Gets that part of the image …");
    this.#setOverview(this.#list.firstChild, this.#overview);
  }

  picture(source, window) {
    if (!this.#turn) return;
    this.#turn.picture = source;
    if (window) this.#turn.record.window = window;
  }

  // The end: an answer, or the reason why there is none.
  end(state, { answer = null, seconds = 0, message = "", tokens, truncated } = {}) {
    this.#turn && this.#spell(this.#turn);
    Object.assign(this.record, { state, answer, seconds });
    const none = { done: "The model gave no answer.", stopped: "Stopped.", failed: message || "No answer came." }[state];
    const facts = [seconds && `${seconds.toFixed(1)} s`, tokens && `${grouped(tokens)} tokens`, truncated && "cut off: a turn was full"].filter(Boolean).join(" · ");
    this.#answer.replaceChildren(...[
      element("h3", { text: "Answer" }),
      element("p", { class: answer === null ? "none" : "payload", text: answer ?? none, dir: "auto" }),
      facts && element("p", { class: "small", text: facts }),
    ].filter(Boolean));
    this.summary.querySelector(".short").textContent = answer ?? "no answer";
  }

  // Brings what was written last into sight.
  scroll() {
    (this.#turn?.item ?? this.node).scrollIntoView({ block: "end" });
  }

  get boxes() {
    return this.record.turns.flatMap(({ box, window }, i) => [window && [window, "window", ""], box && [box, "named", `${i + 1}`]]).filter(Boolean);
  }

  // Reads the pictures that came from the history: read(window) gives an address.
  async fill(read) {
    for (const picture of this.#list.querySelectorAll("img[data-window]")) {
      const window = picture.dataset.window.split(",").map(Number);
      picture.removeAttribute("data-window");
      picture.src = await read(window);
    }
  }

  #tell(text) {
    this.#answer.replaceChildren(element("p", { class: "waiting", text }));
  }

  #setOverview(item, source) {
    this.#overview = source;
    if (!source || !item) return;
    const boxes = this.boxes.filter(([, kind]) => kind === "named").map(([box, kind]) => [box, kind]);
    const frame = framed(source, "Overview of the image", this.#image, boxes);
    const old = item.querySelector("figure");
    const figure = element("figure", { class: "overview" }, frame);
    old ? old.replaceWith(figure) : item.querySelector("h3").after(figure);
  }

  #crop({ picture, record }) {
    const from = record.window ? boxSize(record.window) : "", caption = element("figcaption", { text: from });
    const values = { src: picture, "data-window": picture ? undefined : record.window.join(","), decoding: "async" };
    const made = element("img", { ...values, alt: `What the model was shown${from && ", " + from + " of the original"}` });
    const size = () => `shown as ${sizeOf({ width: made.naturalWidth, height: made.naturalHeight })}`;
    if (picture) made.onload = () => (caption.textContent = [from, size()].filter(Boolean).join(", "));
    return element("figure", {}, made, caption);
  }

  #boxButton(box, kind, words) {
    const made = element("button", { type: "button", class: "chip", "aria-label": `${words} box ${boxText(box)}, ${boxSize(box)}: show it` },
      element("i", { class: `key ${kind}` }), `${words} ${boxText(box)}`);
    made.addEventListener("click", () => this.onBox(box));
    return made;
  }

  // The marks of the protocol step back, so that the thought is easy to read.
  #spell({ said, record }) {
    said.replaceChildren(...record.text.split(TAGS).filter(Boolean).map((part) => (TAGS.test(part) ? element("span", { class: "tag", text: part }) : part)));
  }
}
