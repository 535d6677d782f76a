// The server's API. Paths are relative, so that the page also works below a prefix of a proxy.

import { byId } from "./dom.js";

const KEY = "zoomearth.key";
const PART = 8 * 2 ** 20; // bytes of a part of an upload
let asked; // the key dialog's promise while it is open

// What the server refused, in words for the reader.
export class Fault extends Error {
  constructor(message, { status, retryAfter } = {}) {
    super(message);
    Object.assign(this, { status, retryAfter });
  }
}

export function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

export async function request(path, { json, ...options } = {}) {
  if (json !== undefined) Object.assign(options, { method: "POST", body: JSON.stringify(json) });
  for (;;) {
    const sent = headers();
    const type = json === undefined ? {} : { "Content-Type": "application/json" };
    const response = await reached(path, { ...options, headers: { ...sent, ...type } });
    if (response.ok) return response;
    if (response.status !== 401) throw await fault(response);
    if (sent.Authorization === headers().Authorization) await enterKey(Boolean(sent.Authorization));
  }
}

export async function read(path, options) {
  return (await request(path, options)).json();
}

// An address of a picture for <img>. It is read by fetch, because <img> cannot send the key.
export async function picture(path) {
  return URL.createObjectURL(await (await request(path)).blob());
}

export function windowPath(id, box, { width, height }, side) {
  const scale = Math.min(1, side / Math.max(width, height));
  const [w, h] = [width, height].map((length) => Math.max(1, Math.round(length * scale)));
  return `v1/images/${encodeURIComponent(id)}/window?box=${box.join(",")}&width=${w}&height=${h}`;
}

async function reached(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault("The server does not answer. Look whether it is still running, then try again.");
  }
}

async function fault(response) {
  const body = await response.json().catch(() => ({}));
  const retryAfter = Number(response.headers.get("Retry-After")) || undefined;
  const said = body?.error?.message ?? `The server answered ${response.status} ${response.statusText}`.trim();
  return new Fault(said, { status: response.status, retryAfter });
}

function enterKey(refused) {
  asked ??= new Promise((resolve, reject) => {
    const dialog = byId("key-dialog"), field = byId("key");
    byId("key-title").textContent = refused ? "The server refused this key" : "This server needs a key";
    field.value = "";
    const done = (settle) => {
      asked = undefined;
      dialog.onclose = dialog.onsubmit = byId("key-cancel").onclick = null;
      dialog.close();
      settle();
    };
    dialog.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, field.value.trim());
      done(resolve);
    };
    const refuse = () => done(() => reject(new Fault("This server needs a key.", { status: 401 })));
    dialog.onclose = byId("key-cancel").onclick = refuse;
    dialog.showModal();
  });
  return asked;
}

// Uploads

export async function upload(file, signal, onProgress) {
  if (!file.size) throw new Fault(`${file.name} is empty. Choose another file.`);
  const about = { filename: file.name, bytes: file.size, mime_type: file.type || "application/octet-stream", purpose: "vision" };
  const { id } = await read("v1/uploads", { json: about, signal });
  const place = `v1/uploads/${encodeURIComponent(id)}`;
  try {
    const parts = [];
    for (let from = 0; from < file.size; from += PART) {
      onProgress(from, file.size);
      parts.push(await sendPart(place, file, from, signal));
    }
    onProgress(file.size, file.size);
    return (await read(`${place}/complete`, { json: { part_ids: parts }, signal })).file.id;
  } catch (error) {
    request(`${place}/cancel`, { method: "POST" }).catch(() => {}); // the server forgets it by itself too
    throw error;
  }
}

async function sendPart(place, file, from, signal, tries = 3) {
  const form = new FormData();
  form.append("data", file.slice(from, from + PART), "part");
  try {
    return (await read(`${place}/parts`, { method: "POST", body: form, signal })).id;
  } catch (error) {
    if (error.status || error.name === "AbortError" || tries === 1) throw error; // only what did not arrive is sent again
    await pause(1000, signal);
    return sendPart(place, file, from, signal, tries - 1);
  }
}

export async function whenReady(id, signal) {
  for (;;) {
    const image = await read(`v1/images/${encodeURIComponent(id)}`, { signal });
    if (image.error) throw new Fault(image.error.message ?? image.error);
    if (image.ready) return image;
    await pause(400, signal);
  }
}

// Lets the server forget an image that nobody waits for any more.
export function remove(id) {
  request(`v1/files/${encodeURIComponent(id)}`, { method: "DELETE" }).catch(() => {});
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

// Questions

// Asks, and yields {text} and {trace} as the model writes, and {usage} at the end.
export async function* ask({ model, image, question, box, tools }, signal) {
  const content = [{ type: "file", file: { file_id: image } }, { type: "text", text: question }];
  const body = { model, agent: true, stream: true, stream_options: { include_usage: true }, temperature: 0, messages: [{ role: "user", content }] };
  if (box) body.box = box;
  if (tools.length) body.tools_offered = tools;
  const response = await request("v1/chat/completions", { json: body, signal });
  for await (const data of events(response.body)) {
    if (data.error) throw new Fault(data.error.message ?? String(data.error));
    const delta = data.choices?.[0]?.delta ?? {};
    if (delta.trace) yield { trace: delta.trace };
    if (delta.content) yield { text: delta.content };
    if (data.usage) yield { usage: data.usage };
  }
}

// The JSON values of a stream of server-sent events, up to [DONE].
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Fault("The connection broke before the answer was complete. Ask again.");
    const blocks = (rest + value.replaceAll("\r", "")).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}
