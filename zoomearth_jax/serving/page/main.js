// What the page does: opens an image, asks about it, and shows what the model does.

import { ask, Fault, picture, read, remove, upload, whenReady, windowPath } from "./api.js";
import { fillBox, givenBox, watchBox } from "./box_form.js";
import { boxText, byId, grouped, say, show, sizeOf } from "./dom.js";
import { Exchange, newRecord } from "./exchange.js";
import { saveBoxes, saveReport } from "./exports.js";
import * as history from "./history.js";
import { chosenTools, showExamples, showRecent, showTools } from "./offers.js";
import { Viewer } from "./viewer.js";

const SEEN = 512; // px of the longest side of an overview

let model = "";
let image, name = ""; // what is open: the server's words about it, and its name
let exchanges = []; // newest first
let overview; // address of the open image's overview
let working; // aborts what is under way
let following = true;
let reading = true; // whether answers are scrolled into sight as they grow
let retry; // what "Try again" does

const viewer = new Viewer({
  onBox: (box) => (setBox(box), say(`Box ${boxText(box)}. Ask about it.`), focusQuestion()),
  onTouched: () => (following = false),
});

// Starting

async function start() {
  const models = await read("v1/models");
  model = models.data[0].id;
  byId("model").textContent = model;
  await Promise.all([showExamples(openStored), showTools()]);
  showRecent(openStored);
}

// Opening an image

const whole = ({ width, height }) => [0, 0, width, height];

async function openFile(file) {
  await opening(`Uploading ${file.name}`, file.name, () => openFile(file), async (signal) => {
    const id = await upload(file, signal, (sent, total) => progress(sent / total, `${megabytes(sent)} of ${megabytes(total)} MB sent`));
    progress(undefined, "Making tiles …");
    say("Sent. The server makes tiles.");
    return whenReady(id, signal).catch((error) => (remove(id), Promise.reject(error)));
  });
}

async function openStored(id, title, question = "") {
  await opening(`Opening ${title}`, title, () => openStored(id, title, question), async (signal) => {
    try {
      return await whenReady(id, signal);
    } catch (error) {
      if (error.status !== 404) throw error;
      history.forget(id);
      throw new Fault(`The server no longer has ${title}. Open the file again.`);
    }
  });
  if (image?.id === id && question) (byId("question").value = question), byId("go").focus();
}

// Shows the progress of what gives an image, then the image.
async function opening(title, named, again, getting) {
  working?.abort();
  const own = (working = new AbortController());
  clearFault();
  close();
  byId("loading-title").textContent = title;
  progress(undefined, "");
  stage("loading");
  byId("loading-title").focus();
  say(title);
  try {
    const found = await getting(own.signal);
    if (!own.signal.aborted) await showImage(found, named);
  } catch (error) {
    if (working !== own) return; // another image is on its way
    stage("welcome");
    showRecent(openStored);
    if (error.name === "AbortError") return say("Cancelled."), byId("choose").focus();
    complain(error, again);
  } finally {
    if (working === own) working = undefined;
  }
}

async function showImage(found, named) {
  stage("stage");
  [image, name] = [found, named];
  byId("image-name").textContent = name;
  byId("image-facts").textContent = [sizeOf(image), image.crs && String(image.crs)].filter(Boolean).join(", ");
  asks(true);
  byId("boxes-out").textContent = image.crs ? "GeoJSON" : "Boxes (JSON)";
  await viewer.open(image, name);
  overview = await picture(windowPath(image.id, whole(image), image, SEEN));
  restore();
  remember();
  say(`${name} is open, ${image.width} by ${image.height} px. Ask a question.`);
  focusQuestion();
}

function close() {
  viewer.close();
  image = undefined;
  exchanges = [];
  byId("answers").replaceChildren();
  show("answers-part", false);
  asks(false);
  if (overview) URL.revokeObjectURL(overview);
  overview = undefined;
  byId("question").value = "";
  setBox(null);
  busy(false);
}

// Whether questions can be asked now.
function asks(wanted) {
  show("image-bar", wanted);
  show("ask", wanted);
  show("how", !wanted);
}

function stage(wanted) {
  for (const part of ["welcome", "loading", "stage"]) show(part, part === wanted);
}

const megabytes = (bytes) => grouped(Math.ceil(bytes / 1e6));

function progress(part, text) {
  const bar = byId("loading-bar");
  part === undefined ? bar.removeAttribute("value") : (bar.value = part);
  byId("loading-text").textContent = text;
}

// Asking

async function asking(question, box) {
  working?.abort();
  const own = (working = new AbortController()), began = performance.now();
  clearFault();
  busy(true);
  byId("box-part").open = byId("tools-part").open = false; // the answer needs the room; their titles say what is chosen
  following = byId("follow").checked;
  const exchange = add(newRecord(question, box));
  const seconds = () => (performance.now() - began) / 1000;
  say("Asked. Waiting for the model.");
  if (following) viewer.whole();
  reading = true;
  exchange.node.scrollIntoView({ block: "nearest" });
  try {
    const last = {};
    for await (const { text, trace, usage } of ask({ model, image: image.id, question, box, tools: chosenTools() }, own.signal)) {
      if (text) exchange.text(text);
      if (trace) happened(exchange, trace, last);
      if (usage) last.tokens = usage.completion_tokens;
      if (reading) exchange.scroll();
    }
    exchange.end("done", { ...last, seconds: seconds() });
    if (reading) exchange.scroll();
    say(last.answer ? `Answer: ${last.answer}` : "The model gave no answer.");
  } catch (error) {
    const stopped = error.name === "AbortError";
    exchange.end(stopped ? "stopped" : "failed", { message: error.message, seconds: seconds() });
    if (stopped) say("Stopped.");
    else if (working === own) refused(exchange, error, question, box);
  } finally {
    if (working === own) (working = undefined), busy(false), remember();
  }
}

// A question that the server never began is no answer: it goes back into the form.
function refused(exchange, error, question, box) {
  if (!exchange.record.turns.length) {
    exchanges = exchanges.filter((other) => other !== exchange);
    exchange.node.remove();
    show("answers-part", exchanges.length);
    byId("question").value = question;
  }
  complain(error, () => asking(question, box));
}

function happened(exchange, trace, last) {
  const turn = Number(trace.turn) || exchange.record.turns.length + 1;
  const kinds = {
    turn: () => {
      exchange.turn(turn, overview);
      if (turn > 1) say(`The model writes turn ${turn}.`);
    },
    look: () => {
      exchange.look(trace.box, trace.window);
      if (trace.box) viewer.mark(trace.box, "named", String(turn)), say(`The model asks for the box ${boxText(trace.box)}.`);
    },
    picture: () => {
      exchange.picture(trace.picture, trace.window);
      if (!trace.window) return;
      viewer.mark(trace.window, "window");
      if (following) viewer.goTo(trace.window);
    },
    answer: () => Object.assign(last, { answer: trace.answer ?? null, truncated: trace.truncated }),
  };
  kinds[trace.event]?.();
}

function add(record) {
  const exchange = new Exchange(record, image, { onBox: (box) => viewer.goTo(box), onOpen: showBoxes });
  for (const other of exchanges) other.node.open = false;
  exchanges.unshift(exchange);
  byId("answers").prepend(exchange.node);
  show("answers-part", true);
  viewer.clear("named", "window");
  return exchange;
}

// Shows an exchange's boxes over the image, those of others no longer.
function showBoxes(exchange) {
  if (exchange.record.state === "asking") return;
  for (const other of exchanges) if (other !== exchange) other.node.open = false;
  viewer.clear();
  markBox();
  for (const mark of exchange.boxes) viewer.mark(...mark);
  if (exchange.record.box) viewer.mark(exchange.record.box, "asked");
  exchange.fill(readWindow).catch((error) => complain(error));
}

function readWindow([x1, y1, x2, y2]) {
  return picture(windowPath(image.id, [x1, y1, x2, y2], { width: x2 - x1, height: y2 - y1 }, SEEN));
}

// What was asked about this image before, played from the history; pictures are read anew.
function restore() {
  for (const record of history.records(image.id).toReversed()) {
    const exchange = add(newRecord(record.question, record.box));
    record.turns.forEach(({ text, box, window }, i) => {
      exchange.turn(i + 1, overview);
      exchange.text(text);
      exchange.look(box, window);
    });
    exchange.end(record.state, record);
    exchange.node.open = false;
  }
}

function remember() {
  if (image) history.keep({ ...image, name }, ended());
}

function ended() {
  return exchanges.map(({ record }) => record).filter(({ state }) => state !== "asking");
}

// While the model writes there is Stop in the place of Ask; the focus goes with it.
function busy(on) {
  const held = document.activeElement === byId(on ? "go" : "stop");
  show("go", !on);
  show("stop", on);
  if (held) byId(on ? "stop" : "go").focus({ preventScroll: true });
}

// A touch screen's keyboard would cover the page, so there the focus stays above the question.
function focusQuestion() {
  byId(matchMedia("(pointer: coarse)").matches ? "image-name" : "question").focus({ preventScroll: true });
}

function setBox(box) {
  fillBox(box);
  markBox();
}

// Shows the form's box on the view and in its title.
function markBox() {
  viewer.clear("asked");
  const { box } = image ? givenBox(image) : {};
  byId("box-title").textContent = box ? `About the box ${boxText(box)}` : "Ask about a box";
  if (box) viewer.mark(box, "asked");
}

// Faults

function complain(error, again) {
  const { retryAfter, status } = error;
  const later = status === 429 || status === 503;
  const said = later ? `The server is busy: ${error.message}. Try again in ${retryAfter ?? 10} s.` : error.message;
  byId("fault").querySelector("p").textContent = said;
  retry = again;
  show("again", Boolean(again));
  show("fault", true);
  if (!(error instanceof Fault)) console.error(error);
}

function clearFault() {
  show("fault", false);
  byId("fault").querySelector("p").textContent = "";
}

// Events

byId("choose").onclick = () => byId("file").click();
byId("file").onchange = ({ target }) => {
  const [file] = target.files;
  target.value = "";
  if (file) openFile(file);
};
byId("cancel").onclick = () => working?.abort();
byId("stop").onclick = () => working?.abort();
byId("again").onclick = () => (clearFault(), retry?.());
byId("another").onclick = () => {
  working?.abort();
  clearFault();
  close();
  showRecent(openStored);
  stage("welcome");
  byId("choose").focus();
};
byId("clear").onclick = () => setBox(null);
byId("visible").onclick = () => image && setBox(viewer.visible());
watchBox(markBox);
byId("boxes-out").onclick = () => exporting(saveBoxes(image, name, ended()), "Boxes");
byId("report-out").onclick = () => exporting(saveReport(image, name, model, ended()), "Report");

function exporting(promise, what) {
  promise.then(() => say(`${what} saved.`), (error) => complain(error));
}

byId("ask").onsubmit = (event) => {
  event.preventDefault();
  const question = byId("question").value.trim();
  if (!image || byId("go").hidden) return;
  if (!question) return complain(new Fault("Write a question first.")), byId("question").focus();
  const { box = null, wrong } = givenBox(image);
  if (wrong) return complain(new Fault(wrong)), byId("x1").focus();
  asking(question, box);
};
byId("question").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("ask").requestSubmit();
};

for (const name of ["wheel", "touchmove", "pointerdown", "keydown"]) byId("panel").addEventListener(name, () => (reading = false), { capture: true, passive: true });

addEventListener("dragover", (event) => (event.preventDefault(), byId("drop").classList.add("over")));
addEventListener("dragleave", (event) => event.relatedTarget || byId("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) openFile(file);
});

start().catch((error) => complain(error, () => start().catch(complain)));
