// What was asked in this tab: texts and boxes, no pictures. It lives in sessionStorage and goes with the tab.

const NAME = "zoomearth.history";
const IMAGES = 12, QUESTIONS = 40; // what is kept at most

export function images() {
  try {
    const found = JSON.parse(sessionStorage.getItem(NAME) ?? "[]");
    return Array.isArray(found) ? found : [];
  } catch {
    return [];
  }
}

// The records of an image, newest first.
export function records(id) {
  return images().find((image) => image.id === id)?.records ?? [];
}

// Puts an image first, with its records.
export function keep({ id, name, width, height }, list) {
  const others = images().filter((image) => image.id !== id);
  let kept = [{ id, name, width, height, records: list.slice(0, QUESTIONS) }, ...others].slice(0, IMAGES);
  for (; kept.length; kept = kept.slice(0, -1)) {
    try {
      return sessionStorage.setItem(NAME, JSON.stringify(kept));
    } catch { /* full: the oldest image goes */ }
  }
}

export function forget(id) {
  sessionStorage.setItem(NAME, JSON.stringify(images().filter((image) => image.id !== id)));
}
