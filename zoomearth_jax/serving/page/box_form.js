// The box in the form: four fields, which also show a box that was drawn.

import { boxText, byId, sizeOf } from "./dom.js";

const CORNERS = ["x1", "y1", "x2", "y2"];

// onChange is called when somebody types into the fields.
export function watchBox(onChange) {
  for (const corner of CORNERS) byId(corner).addEventListener("input", onChange);
}

export function fillBox(box) {
  CORNERS.forEach((corner, i) => (byId(corner).value = box ? box[i] : ""));
  byId("box-part").open = byId("box-part").open || Boolean(box);
}

// {box} of an image, or {wrong}: what is wrong with it; neither where the fields are empty.
export function givenBox(image) {
  const written = CORNERS.map((corner) => byId(corner).value.trim());
  if (written.every((text) => !text)) return {};
  const box = written.map(Number), [x1, y1, x2, y2] = box;
  if (written.includes("") || !box.every(Number.isFinite)) return { wrong: "A box needs four numbers: x1, y1, x2, y2. Fill them in, or clear them." };
  if (x1 >= x2 || y1 >= y2) return { wrong: "The box has no area. x1 must be less than x2, and y1 less than y2." };
  if (x1 < 0 || y1 < 0 || x2 > image.width || y2 > image.height) return { wrong: `The box leaves the image, which is ${sizeOf(image)}.` };
  return { box };
}
